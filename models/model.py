"""A resolved model: what it consists of, and what it was trained on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from ..core.errors import PrefloopError
from ..core.hub import loading

if TYPE_CHECKING:
    from .families.settings import PipelineSettings

Component = Literal["unet", "transformer"]
PartName = Literal["unet", "transformer", "vae"]
Kind = Literal["pipeline", "unet", "transformer", "lora", "parts"]
COMPONENTS: tuple[Component, ...] = ("unet", "transformer")
TITLES: dict[PartName, str] = {"unet": "U-Net", "transformer": "transformer", "vae": "VAE"}


@dataclass(frozen=True)
class Part:
    """A U-Net, a transformer or a VAE that replaces a pipeline's own, or a LoRA that another program made."""

    source: str
    """A local folder, or a hub id; of a LoRA, its file."""
    subfolder: str | None
    part_id: UUID
    revision: str | None = None

    def loading(self) -> dict[str, Any]:
        """Arguments of diffusers' from_pretrained."""
        below = {} if self.subfolder is None else {"subfolder": self.subfolder}
        return below | loading(self.source, self.revision)


@dataclass(frozen=True)
class Composition:
    """What a model consists of: a pipeline, parts that replace its own, and LoRAs on the component that is trained, first to last."""

    root: "Model"
    component: Part | None = None
    """The U-Net or transformer."""
    vae: Part | None = None
    loras: tuple[str, ...] = ()
    """The folders of results, and files of other programs."""


@dataclass(frozen=True)
class Model:
    """The model that a name means."""

    name: str
    source: str
    """A local folder, or a hub id; the name again if kind is `parts`."""
    model_id: UUID
    kind: Kind = "pipeline"
    """What its folder contains: a whole pipeline, or a U-Net, a transformer or a LoRA that needs its base. `parts` is
    a base with another component, LoRA or VAE, named in the settings of a run."""
    base: "Model | None" = None
    """The model it is loaded on top of; None for a whole pipeline."""
    component: Part | None = None
    """The U-Net or transformer that replaces the base's."""
    vae: Part | None = None
    lora: Part | None = None
    """A LoRA in one file, made by another program, that is added to the base."""
    trained_with: dict | None = None
    """What `train` wrote beside the weights; None if another program made them."""
    revision: str | None = None
    """The revision of a hub id."""
    find_parent: "Callable[[], Model] | None" = field(default=None, repr=False, compare=False)
    """Finds what a whole pipeline was trained on, if `train` recorded it."""
    built_in: bool = False

    @property
    def root(self) -> "Model":
        """The whole pipeline that everything else is added to: its base's root, or itself."""
        return self if self.base is None else self.base.root

    @cached_property
    def settings(self) -> "PipelineSettings":
        """The settings of the root's parts, read once.

        Raises:
            UsageError: if a file names code to be run.
            PrefloopError: if they cannot be read or fetched.
        """
        from .families.settings import read_pipeline

        return read_pipeline(self) if self.base is None else self.root.settings

    @cached_property
    def trained_on(self) -> "Model | None":
        """The model that `train` started from and used as the reference; None if that is unknown or no longer exists."""
        if self.kind == "lora" or self.kind in COMPONENTS:
            return self.base
        try:
            return None if self.find_parent is None else self.find_parent()
        except (PrefloopError, OSError):
            return None

    @property
    def composition(self) -> Composition:
        if self.base is None:
            return Composition(self)
        below = self.base.composition
        if self.kind == "lora":
            return Composition(below.root, below.component, below.vae, (*below.loras, self.source))
        own = Part(self.source, self.kind, self.model_id) if self.kind in COMPONENTS else self.component
        loras = below.loras if own is None else ()
        if self.lora is not None:
            loras = (*loras, self.lora.source)
        return Composition(below.root, own or below.component, self.vae or below.vae, loras)

    def loading(self) -> dict[str, Any]:
        """Arguments of diffusers' and transformers' from_pretrained."""
        return loading(self.source, self.revision)


def training_chain(model: Model) -> Iterator[Model]:
    """The model, the model it was trained on, and so on as far as they can be found."""
    seen, current = set(), model
    while current is not None and current.model_id not in seen:
        yield current
        seen.add(current.model_id)
        current = current.base if current.kind == "parts" else current.trained_on


def built_in_base(model: Model) -> str | None:
    """The name of the built-in model that it is or was trained on; None without one in its chain."""
    return next((link.name for link in training_chain(model) if link.built_in), None)
