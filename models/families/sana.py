"""SANA, 0.6 to 4.8 billion parameters: 32 x 32 pixels in one latent value, linear attention, a language model that encodes
prompts."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...core.errors import UsageError
from .checks import refuse_others
from .masked import EMBEDS, MASK, masked_arguments, own_tokens
from .settings import PipelineSettings
from .transformer import TransformerFamily

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "SANA"
PIPELINES = ("SanaPipeline",)
TOKENS = 300
SIDES = 32  # the pipeline generates multiples of this many pixels, whatever the VAE


def family(settings: PipelineSettings) -> "Sana":
    scheduler = settings.parts.get("scheduler", {})
    # flow_shift of the DPM-Solver that the models come with is also that of their training; shift of FlowMatchEuler
    shift = scheduler.get("flow_shift", scheduler.get("shift", 1.0))
    return Sana(
        name="sana",
        settings=settings,
        usual=(20, 4.5),  # the model cards' settings
        recipe="sana-lora",
        text_encoders=("text_encoder",),
        shift=shift if isinstance(shift, int | float) and 0 < shift < math.inf else 1.0,
    )


@dataclass(frozen=True, kw_only=True)
class Sana(TransformerFamily):
    """Gemma-2 reads the prompt after an instruction; the tokens of the instruction are dropped, but for its first and last."""

    model_class: str = "SanaTransformer2DModel"
    vae_class: str = "AutoencoderDC"
    scheduler_class: str = "DPMSolverMultistepScheduler"
    prompt_tensors: tuple[str, ...] = (EMBEDS,)
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")  # the MLPs are convolutions
    # by default the pipeline generates another size and resizes the image, and refuses sizes of unknown models
    call_settings: Mapping[str, Any] = field(
        default_factory=lambda: {
            "use_resolution_binning": False,
            "clean_caption": False,
            "max_sequence_length": TOKENS,
        }
    )

    @property
    def vae_factor(self) -> int:
        return 2 ** (len(self._vae["encoder_block_out_channels"]) - 1)

    @property
    def image_multiple(self) -> int:
        return math.lcm(super().image_multiple, SIDES)

    def encode(self, pipeline: Any, prompts: list[str]) -> "dict[str, list[Tensor]]":
        """prompt_embeds, a list of N (tokens, width).

        The empty prompt, which stands for no prompt in guidance and in training, has no instruction, as the pipeline's negative
        prompt.
        """
        instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
        rows: dict[int, Tensor] = {}
        for empty in (False, True):
            chosen = [at for at, prompt in enumerate(prompts) if (prompt == "") == empty]
            if chosen:
                embeds, mask, _, _ = pipeline.encode_prompt(
                    [prompts[at] for at in chosen],
                    do_classifier_free_guidance=False,
                    device=pipeline.text_encoder.device,
                    clean_caption=self.call_settings["clean_caption"],
                    max_sequence_length=self.call_settings["max_sequence_length"],
                    complex_human_instruction=None if empty else instruction,
                )
                rows |= dict(zip(chosen, own_tokens(embeds, mask), strict=True))
        return {EMBEDS: [rows[at] for at in range(len(prompts))]}

    def latents(self, vae: Any, pixels: "Tensor") -> "tuple[Tensor, Tensor]":
        """The VAE is deterministic: the standard deviation is 0."""
        mean = vae.encode(pixels.to(vae.device, vae.dtype)).latent * vae.config.scaling_factor
        return mean, mean.new_zeros(mean.shape)

    def predict(self, model: Any, noisy: "Tensor", timesteps: "Tensor", conditions: "dict[str, Tensor]") -> "Tensor":
        return model(
            hidden_states=noisy,
            encoder_hidden_states=conditions[EMBEDS],
            encoder_attention_mask=conditions.get(MASK),
            timestep=timesteps * self._transformer["timestep_scale"],
        ).sample

    def call_arguments(self, prompt: "dict[str, Tensor]", negative: "dict[str, Tensor]") -> dict[str, Any]:
        return masked_arguments(prompt, negative)

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        return {EMBEDS: (self.call_settings["max_sequence_length"], self._transformer["caption_channels"])}

    def refuse_unusable(self) -> None:
        super().refuse_unusable()
        transformer = self._transformer
        if transformer["guidance_embeds"]:
            raise UsageError(
                f"{self.settings.model} cannot be trained: its transformer takes the guidance scale as an input, as that of "
                "SANA-Sprint, which a SanaPipeline does not give it"
            )
        channels = transformer["out_channels"] or transformer["in_channels"]
        refuse_others(
            self.settings.model, {"out_channels of the transformer": (channels, (transformer["in_channels"],))}
        )
