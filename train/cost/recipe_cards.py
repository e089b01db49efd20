"""`prefloop train --recipes --dry-run`: on which GPUs each recipe fits, by the published settings of its model."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...models.cost.speed import DeviceSpeed
from ...models.families import Family
from ..config import TrainConfig
from ..recipes import read_settings, recipes
from .cards import CARDS, options_by_card
from .cost_model import CostModel, DatasetSize
from .dry_run import cost_settings
from .published import MODELS

_DATA = DatasetSize(n_pairs=1, n_images=2, n_prompts=1)  # memory does not depend on it
_GPU = DeviceSpeed("cuda", {"no": 1.0, "fp16": 1.0, "bf16": 1.0}, 1.0)  # nor on that, but for its being a GPU
HEADER = f"| recipe | encoding, GiB | training, GiB | int8 | nf4 | {' | '.join(f'{card} GB' for card in CARDS)} |"
"""Of a Markdown table."""
ESTIMATED = (
    "Memory is an estimate: activations are counted on the model's published settings, weights and optimizer follow from their number. "
    "Nothing has been measured on a GPU."
)


@dataclass(frozen=True)
class RecipeCards:
    """Bytes are the peaks per GPU."""

    recipe: str
    encoding_bytes: int
    """Of the text encoders before training, or of the VAE between its steps."""
    training_bytes: int
    """With gradient checkpointing where a recipe leaves it to auto."""
    quantized_bytes: dict[str, int]
    """Of training with --quantize int8 and nf4; empty if every weight is trained."""
    cards: dict[float, str | None]
    """GiB of a GPU's memory → the options that make the recipe fit, "" for none; None if it is too small."""

    def row(self) -> str:
        """Of a Markdown table."""
        sizes = [
            self.encoding_bytes,
            self.training_bytes,
            *(self.quantized_bytes.get(kind) for kind in ("int8", "nf4")),
        ]
        cells = ["" if size is None else f"{size / 2**30:.1f}" for size in sizes]
        for options in self.cards.values():
            cells.append("too small" if options is None else f"`{options}`" if options else "as it is")
        return f"| `{self.recipe}` | {' | '.join(cells)} |"


def cards_of_recipes() -> Iterator[RecipeCards]:
    """One recipe after the other, each after a few seconds."""
    for name in recipes():
        yield cards_of(name)


def cards_of(recipe: str) -> RecipeCards:
    config = TrainConfig(**{"output_dir": "unused", "labelers": ("any",)} | read_settings(recipe))
    family: Family = MODELS[config.model]()
    costs, settings = CostModel(family, _DATA, _GPU), cost_settings(config, family)
    cards = options_by_card(costs, settings)
    # what auto turns on where it is needed
    settings = replace(settings, gradient_checkpointing=settings.gradient_checkpointing or settings.auto_checkpointing)
    phases = {phase: sum(parts.values()) for phase, parts in costs.memory(settings).items()}
    quantized = {}
    for kind in ("int8", "nf4") if settings.lora_rank else ():
        memory = costs.memory(replace(settings, quantize=kind))
        quantized[kind] = max(sum(parts.values()) for phase, parts in memory.items() if phase != "caching")
    training = max(size for phase, size in phases.items() if phase != "caching")
    return RecipeCards(recipe, phases["caching"], training, quantized, cards)
