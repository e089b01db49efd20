"""FLUX.1 [dev] and [schnell]."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .checks import refuse_bad_scales, refuse_others
from .settings import PipelineSettings
from .transformer import TransformerFamily

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "FLUX.1"
PIPELINES = ("FluxPipeline",)
SIDE = 128  # of the latents by default, a constant of the pipeline
TRAINED_GUIDANCE = 1.0
"""Guidance scale that [dev] is told in training. As in diffusers' LoRA script: what it makes of higher ones was distilled from
two predictions, and a loss on one prediction would unlearn it."""


def family(settings: PipelineSettings) -> "Flux1":
    guided = bool(settings.parts.get("transformer", {}).get("guidance_embeds"))
    return Flux1(
        name="flux1-dev" if guided else "flux1-schnell",
        settings=settings,
        usual=(50, 3.5) if guided else (4, 0.0),  # the model cards', as the number of tokens
        text_encoders=settings.text_encoders,
        recipe="flux1-lora" if guided else None,
        distilled=True,
        call_settings={"max_sequence_length": 512 if guided else 256},
    )


@dataclass(frozen=True, kw_only=True)
class Flux1(TransformerFamily):
    """T5's tokens and their padding, without a mask, and CLIP's pooled embedding. Latents are (B, 16, H / 8, W / 8).

    [dev] was distilled to take the guidance scale as an input, [schnell] to few steps.
    """

    model_class: str = "FluxTransformer2DModel"
    prompt_tensors: tuple[str, ...] = ("prompt_embeds", "pooled_prompt_embeds")
    lora_targets: tuple[str, ...] = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )

    @property
    def resolution(self) -> int:
        return SIDE * self.vae_factor

    @property
    def image_multiple(self) -> int:
        return 2 * self.vae_factor  # the transformer's patches are not in its settings

    def refuse_unusable(self) -> None:
        """
        Raises:
            IntegrityError: if a part can be made but not used.
        """
        transformer = self._transformer
        channels = 4 * self._vae["latent_channels"]
        refuse_others(
            self.settings.model,
            {
                "in_channels of the transformer": (transformer["in_channels"], (channels,)),
                "out_channels of the transformer": (transformer["out_channels"] or channels, (channels,)),
                "patch_size of the transformer": (transformer["patch_size"], (1,)),
            },
        )
        refuse_bad_scales(self.settings.model, self._vae)

    def encode(self, pipeline: Any, prompts: list[str]) -> "dict[str, Tensor]":
        """prompt_embeds, (N, max_sequence_length, T5's width), and pooled_prompt_embeds, (N, CLIP's width)."""
        embeds, pooled, _ = pipeline.encode_prompt(
            prompt=list(prompts), prompt_2=list(prompts), device=pipeline.text_encoder.device, **self.call_settings
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def predict(self, model: Any, noisy: "Tensor", timesteps: "Tensor", conditions: "dict[str, Tensor]") -> "Tensor":
        import torch

        height, width = (side // 2 for side in noisy.shape[2:])
        prompt_embeds, device = conditions["prompt_embeds"], noisy.device
        # the first position is 0 everywhere; of a text all three are
        image_ids = torch.zeros(height, width, 3, device=device)
        image_ids[..., 1] = torch.arange(height, device=device)[:, None]
        image_ids[..., 2] = torch.arange(width, device=device)
        guided = self._transformer["guidance_embeds"]
        velocity = model(
            hidden_states=torch.nn.functional.pixel_unshuffle(noisy, 2).flatten(2).transpose(1, 2),
            timestep=timesteps / 1000,
            guidance=torch.full((len(noisy),), TRAINED_GUIDANCE, device=device) if guided else None,
            pooled_projections=conditions["pooled_prompt_embeds"],
            encoder_hidden_states=prompt_embeds,
            txt_ids=torch.zeros(prompt_embeds.shape[1], 3, device=device),
            img_ids=image_ids.flatten(0, 1),
        ).sample
        return torch.nn.functional.pixel_shuffle(velocity.transpose(1, 2).unflatten(2, (height, width)), 2)

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        transformer = self._transformer
        return {
            "prompt_embeds": (self.call_settings["max_sequence_length"], transformer["joint_attention_dim"]),
            "pooled_prompt_embeds": (transformer["pooled_projection_dim"],),
        }

    def call_arguments(self, prompt: "dict[str, Tensor]", negative: "dict[str, Tensor]") -> "dict[str, Tensor]":  # noqa: ARG002
        """Without the negative prompt, which only `true_cfg_scale` uses."""
        return prompt
