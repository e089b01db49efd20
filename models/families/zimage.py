"""Z-Image, and Z-Image-Turbo, which is distilled from it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...core.errors import IntegrityError
from .checks import LARGEST, refuse_bad_scales, refuse_others
from .settings import PipelineSettings
from .transformer import TransformerFamily

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

TITLE = "Z-Image"
PIPELINES = ("ZImagePipeline",)
TOKENS = 512
PATCH = 2
TURBO_SHIFT = 3.0  # of the scheduler, the only setting in which the two published models differ; the base model has 6


def family(settings: PipelineSettings) -> "ZImage":
    scheduler = settings.parts.get("scheduler", {})
    turbo = scheduler.get("shift") == TURBO_SHIFT and not scheduler.get("use_dynamic_shifting")
    return ZImage(
        name="z-image-turbo" if turbo else "z-image",
        settings=settings,
        usual=(8, 0.0) if turbo else (50, 4.0),  # the model cards' settings
        recipe=None if turbo else "z-image-lora",
        distilled=turbo,
        text_encoders=settings.text_encoders,
        call_settings={"max_sequence_length": TOKENS},
    )


def _rows(prompts: "dict[str, Tensor]") -> "list[Tensor]":
    """The embeddings of each prompt, (tokens, width), without padding: the transformer fills them up with a token of its own."""
    embeds, mask = prompts["prompt_embeds"], prompts.get("prompt_embeds_mask")
    if mask is None:
        return list(embeds)
    return [row[:length] for row, length in zip(embeds, mask.sum(1).tolist(), strict=True)]


@dataclass(frozen=True, kw_only=True)
class ZImage(TransformerFamily):
    """Text and image in one sequence. The pipeline computes positive + guidance (positive - negative): 0 is without guidance."""

    model_class: str = "ZImageTransformer2DModel"
    lora_targets: tuple[str, ...] = (
        *("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
        *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    )

    @property
    def resolution(self) -> int:
        """The VAE's; the transformer has none."""
        return self._vae["sample_size"]

    @property
    def image_multiple(self) -> int:
        return self.vae_factor * PATCH

    def encode(self, pipeline: Any, prompts: list[str]) -> "dict[str, list[Tensor]]":
        """prompt_embeds, N of (tokens, width)."""
        embeds, _ = pipeline.encode_prompt(
            list(prompts),  # which the pipeline changes
            device=pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            **self.call_settings,
        )
        return {"prompt_embeds": embeds}

    def predict(self, model: Any, noisy: "Tensor", timesteps: "Tensor", conditions: "dict[str, Tensor]") -> "Tensor":
        import torch

        # one frame for each image; time runs from noise to image, and so does what is predicted
        images = list(noisy.unsqueeze(2))
        predicted = model(images, (1000 - timesteps) / 1000, _rows(conditions), return_dict=False)[0]
        return -torch.stack(list(predicted)).squeeze(2)

    def call_arguments(
        self, prompt: "dict[str, Tensor]", negative: "dict[str, Tensor]"
    ) -> "Mapping[str, Tensor | list[Tensor]]":
        return {"prompt_embeds": _rows(prompt), "negative_prompt_embeds": _rows(negative)}

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt_embeds": (TOKENS, self._transformer["cap_feat_dim"])}

    def refuse_unusable(self) -> None:
        model, transformer, vae = self.settings.model, self._transformer, self._vae
        width = self.settings.parts.get("text_encoder", {}).get("hidden_size", transformer["cap_feat_dim"])
        patches = zip(transformer["all_patch_size"], transformer["all_f_patch_size"], strict=True)
        step = self.image_multiple
        allowed = {
            "sample_size of the VAE": (vae["sample_size"], range(step, LARGEST + 1, step)),
            "in_channels of the transformer": (transformer["in_channels"], (vae["latent_channels"],)),
            "cap_feat_dim of the transformer": (transformer["cap_feat_dim"], (width,)),
            "patch size": (", ".join(f"{side} x {frames}" for side, frames in patches), (f"{PATCH} x 1",)),
        }
        refuse_others(model, allowed)
        # positions: of text 1 to TOKENS, and the image's frame after them; of the image's rows and columns
        lengths, patches_a_side = transformer["axes_lens"], vae["sample_size"] // step
        shortest = (TOKENS + 2, patches_a_side, patches_a_side)
        if not isinstance(lengths, list | tuple) or len(lengths) != len(shortest):
            raise IntegrityError(f"the model {model} cannot be used: axes_lens is {lengths!r}, not three numbers")
        for at, (length, least) in enumerate(zip(lengths, shortest, strict=True)):
            refuse_others(model, {f"axes_lens[{at}]": (length, range(least, LARGEST + 1))})
        refuse_bad_scales(model, vae)
        if vae["shift_factor"] is None:
            raise IntegrityError(f"the model {model} cannot be used: its VAE has no shift_factor")
