"""FLUX.2 [klein], base and distilled."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .checks import refuse_others
from .settings import PipelineSettings
from .transformer import TransformerFamily

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "FLUX.2 klein"
PIPELINES = ("Flux2KleinPipeline",)
TOKENS = 512
SIDE = 128  # of the VAE's latents by default, a constant of the pipeline


def family(settings: PipelineSettings) -> "Flux2Klein":
    distilled = bool(settings.index.get("is_distilled"))
    positions = settings.parts.get("text_encoder", {}).get("max_position_embeddings")
    return Flux2Klein(
        name="flux2-klein-distilled" if distilled else "flux2-klein",
        settings=settings,
        usual=(4, 1.0) if distilled else (50, 4.0),  # the model cards'
        text_encoders=settings.text_encoders,
        recipe=None if distilled else "flux2-klein-lora",
        distilled=distilled,
        call_settings={"max_sequence_length": min(TOKENS, positions) if isinstance(positions, int) else TOKENS},
    )


@dataclass(frozen=True, kw_only=True)
class Flux2Klein(TransformerFamily):
    """Three layers of Qwen3, side by side, for every token of the chat template and its padding, without a mask.

    Latents are the VAE's in patches of 2 x 2, (B, 128, H / 16, W / 16), normalized by the statistics in its batch norm.
    """

    model_class: str = "Flux2Transformer2DModel"
    vae_class: str = "AutoencoderKLFlux2"
    lora_targets: tuple[str, ...] = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"),
        *("attn.to_qkv_mlp_proj", "attn.to_out"),
    )

    @property
    def resolution(self) -> int:
        return SIDE * self.vae_factor // 2

    @property
    def latent_channels(self) -> int:
        return 4 * self._vae["latent_channels"]

    @property
    def vae_factor(self) -> int:
        return 2 ** len(self._vae["block_out_channels"])  # the patches halve it once more

    @property
    def image_multiple(self) -> int:
        return self.vae_factor

    def refuse_unusable(self) -> None:
        """
        Raises:
            IntegrityError: if a part can be made but not used.
        """
        transformer, vae = self._transformer, self._vae
        channels = self.latent_channels
        refuse_others(
            self.settings.model,
            {
                "in_channels of the transformer": (transformer["in_channels"], (channels,)),
                "out_channels of the transformer": (transformer["out_channels"] or channels, (channels,)),
                "patch_size of the transformer": (transformer["patch_size"], (1,)),
                "patch_size of the VAE": ("x".join(map(str, vae["patch_size"])), ("2x2",)),
            },
        )

    def encode(self, pipeline: Any, prompts: list[str]) -> "dict[str, Tensor]":
        """prompt_embeds, (N, max_sequence_length, 3 x Qwen3's width)."""
        embeds, _ = pipeline.encode_prompt(
            prompt=list(prompts), device=pipeline.text_encoder.device, **self.call_settings
        )
        return {"prompt_embeds": embeds}

    def latents(self, vae: Any, pixels: "Tensor") -> "tuple[Tensor, Tensor]":
        """The posterior's mode, as the pipeline and diffusers' training script use it: the standard deviation is 0."""
        import torch

        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        patches = torch.nn.functional.pixel_unshuffle(posterior.mode(), 2)
        mean, var = (value[:, None, None].to(patches) for value in (vae.bn.running_mean, vae.bn.running_var))
        normalized = (patches - mean) / (var + vae.config.batch_norm_eps).sqrt()
        return normalized, torch.zeros_like(normalized)

    def predict(self, model: Any, noisy: "Tensor", timesteps: "Tensor", conditions: "dict[str, Tensor]") -> "Tensor":
        import torch

        height, width = noisy.shape[2:]
        prompt_embeds, device = conditions["prompt_embeds"], noisy.device
        # positions in time, height, width and text, of which an image uses the middle two and a text the last
        text_ids = torch.zeros(prompt_embeds.shape[1], 4, device=device)
        text_ids[:, 3] = torch.arange(len(text_ids), device=device)
        image_ids = torch.zeros(height, width, 4, device=device)
        image_ids[..., 1] = torch.arange(height, device=device)[:, None]
        image_ids[..., 2] = torch.arange(width, device=device)
        velocity = model(
            hidden_states=noisy.flatten(2).transpose(1, 2),
            timestep=timesteps / 1000,
            encoder_hidden_states=prompt_embeds,
            txt_ids=text_ids,
            img_ids=image_ids.flatten(0, 1),
            guidance=None,
        ).sample
        return velocity.transpose(1, 2).unflatten(2, (height, width))

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        n_tokens = self.call_settings["max_sequence_length"]
        return {"prompt_embeds": (n_tokens, self._transformer["joint_attention_dim"])}
