"""The settings of a pipeline's parts, read from their JSON files; nothing is loaded, and the folder's name does not matter."""

from dataclasses import dataclass
from typing import Any

from ..config_files import INDEX, config_folder, read_settings
from ..model import COMPONENTS, Component, Model


@dataclass(frozen=True)
class PipelineSettings:
    """The files of a pipeline, unchecked: values may be missing or of any type."""

    model: str
    """The model's name, for messages."""
    index: dict[str, Any]
    """model_index.json: the pipeline's class, and the library and class of each part."""
    parts: dict[str, dict[str, Any]]
    """Name of a part → its settings; empty if it has no file."""

    @property
    def pipeline_class(self) -> str:
        return str(self.index.get("_class_name"))

    @property
    def component(self) -> Component:
        """The part that denoises."""
        return "unet" if "unet" in self.index else "transformer"

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Names of the text encoders that the pipeline has."""
        return tuple(
            part
            for part, value in sorted(self.index.items())
            if part.startswith("text_encoder") and isinstance(value, list) and value[1] is not None
        )

    @property
    def left_out(self) -> tuple[str, ...]:
        """Text encoders and tokenizers that the pipeline was saved without; diffusers wants to be told again."""
        return tuple(
            part
            for part, value in sorted(self.index.items())
            if part.startswith(("text_encoder", "tokenizer")) and value == [None, None]
        )


def read_pipeline(model: Model) -> PipelineSettings:
    """
    Args:
        model: a whole pipeline.

    Raises:
        UsageError: if a file names code to be run.
        PrefloopError: if the settings cannot be read or fetched.
    """
    folder = config_folder(model)
    index = read_settings(folder / INDEX)
    encoders = [part for part in index if part.startswith("text_encoder") and part.isidentifier()]
    parts = {part: read_settings(folder / part / "config.json") for part in (*COMPONENTS, "vae", *encoders)} | {
        "scheduler": read_settings(folder / "scheduler" / "scheduler_config.json")
    }
    return PipelineSettings(model.name, index, parts)
