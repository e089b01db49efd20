"""Stable Diffusion 3 and 3.5, medium and large."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .settings import PipelineSettings
from .transformer import TransformerFamily

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "Stable Diffusion 3 and 3.5"
PIPELINES = ("StableDiffusion3Pipeline",)
T5_TOKENS = 256
LARGE_LAYERS = 38


def family(settings: PipelineSettings) -> "SD3":
    transformer, scheduler = settings.parts.get("transformer", {}), settings.parts.get("scheduler", {})
    usual = (28, 7.0)
    if transformer.get("qk_norm"):  # 3.5; the model cards' settings
        usual = (28, 3.5) if transformer.get("num_layers") == LARGE_LAYERS else (40, 4.5)
    shift = scheduler.get("shift", 1.0)
    return SD3(
        name="sd3",
        settings=settings,
        usual=usual,
        recipe="sd35-medium-lora",
        text_encoders=settings.text_encoders,
        needs=("text_encoder", "text_encoder_2"),
        shift=shift if isinstance(shift, int | float) and shift > 0 else 1.0,
        call_settings={"max_sequence_length": _t5_tokens(settings)},
    )


def _t5_tokens(settings: PipelineSettings) -> int:
    """Tokens of the third text encoder; the pipeline fills them with zeros if that is left out.

    A transformer as wide as its two CLIP encoders together, such as the built-in one, was made without it: it takes none.
    """
    if "text_encoder_3" in settings.text_encoders:
        return T5_TOKENS
    widths: list[Any] = [settings.parts.get(part, {}).get("hidden_size") for part in settings.text_encoders]
    fits = all(isinstance(width, int) for width in widths)
    return 0 if fits and settings.parts.get("transformer", {}).get("joint_attention_dim") == sum(widths) else T5_TOKENS


@dataclass(frozen=True, kw_only=True)
class SD3(TransformerFamily):
    """Two CLIP encoders, whose tokens are joined by channel, and T5, whose tokens follow them."""

    model_class: str = "SD3Transformer2DModel"
    prompt_tensors: tuple[str, ...] = ("prompt_embeds", "pooled_prompt_embeds")
    lora_targets: tuple[str, ...] = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )

    def encode(self, pipeline: Any, prompts: list[str]) -> "dict[str, Tensor]":
        """prompt_embeds, (N, CLIP's and T5's tokens, width), and pooled_prompt_embeds, (N, width)."""
        if pipeline.transformer is None:  # without T5 the pipeline asks the transformer how wide its zeros are
            config = SimpleNamespace(joint_attention_dim=self._transformer["joint_attention_dim"])
            pipeline.transformer = SimpleNamespace(config=config)
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompt=list(prompts),
            prompt_2=list(prompts),
            prompt_3=list(prompts),
            device=pipeline.text_encoder.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            **self.call_settings,
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def predict(self, model: Any, noisy: "Tensor", timesteps: "Tensor", conditions: "dict[str, Tensor]") -> "Tensor":
        return model(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=conditions["prompt_embeds"],
            pooled_projections=conditions["pooled_prompt_embeds"],
        ).sample

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        clip, transformer = self.settings.parts["text_encoder"], self._transformer
        n_tokens = clip["max_position_embeddings"] + self.call_settings["max_sequence_length"]
        return {
            "prompt_embeds": (n_tokens, transformer["joint_attention_dim"]),
            "pooled_prompt_embeds": (transformer["pooled_projection_dim"],),
        }
