"""Qwen-Image and Qwen-Image-2512."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...core.errors import IntegrityError
from .checks import refuse_others
from .settings import PipelineSettings
from .transformer import TransformerFamily

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "Qwen-Image"
PIPELINES = ("QwenImagePipeline",)
MAX_TOKENS = 512  # of a prompt, which the pipeline's `__call__` keeps; its `encode_prompt` alone would keep 1024
LATENT_SIDE = 128  # the pipeline's, since the transformer has no sample_size
ENCODED_AT_ONCE = 8  # prompts: Qwen2.5-VL makes 152,064 logits of each token, which nobody needs
UNSUPPORTED = ("guidance_embeds", "use_additional_t_cond", "use_layer3d_rope")
"""Settings of the transformer with which the text-to-image pipeline cannot call it."""


def family(settings: PipelineSettings) -> "QwenImage":
    return QwenImage(
        name="qwen-image",
        settings=settings,
        usual=(50, 4.0),  # the model cards' settings
        recipe="qwen-image-lora",
        text_encoders=("text_encoder",),
        call_settings={"max_sequence_length": MAX_TOKENS},
    )


@dataclass(frozen=True, kw_only=True)
class QwenImage(TransformerFamily):
    """Qwen2.5-VL encodes prompts, each as long as it is, and an image is a video of one frame to the VAE.

    Its `guidance_scale` is for distilled models, of which there are none; guidance is `true_cfg_scale`, and off without a
    negative prompt.
    """

    model_class: str = "QwenImageTransformer2DModel"
    vae_class: str = "AutoencoderKLQwenImage"
    guidance_argument: str = "true_cfg_scale"
    negative_prompt: str = " "
    has_unused_weights: bool = True  # the last block's text, which nothing follows
    lora_targets: tuple[str, ...] = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
    )

    @property
    def resolution(self) -> int:
        return LATENT_SIDE * self.vae_factor

    @property
    def latent_channels(self) -> int:
        return self._vae["z_dim"]

    @property
    def vae_factor(self) -> int:
        return 2 ** len(self._vae["temperal_downsample"])

    def encode(self, pipeline: Any, prompts: list[str]) -> "dict[str, list[Tensor]]":
        """prompt_embeds, a list of N (tokens, width), without the template's first tokens."""
        rows = []
        for start in range(0, len(prompts), ENCODED_AT_ONCE):
            embeds, mask = pipeline.encode_prompt(
                prompt=prompts[start : start + ENCODED_AT_ONCE],
                device=pipeline.text_encoder.device,
                num_images_per_prompt=1,
                **self.call_settings,
            )
            lengths = [embeds.shape[1]] * len(embeds) if mask is None else mask.sum(dim=1).tolist()
            rows += [row[:length] for row, length in zip(embeds, lengths, strict=True)]
        return {"prompt_embeds": rows}

    def latents(self, vae: Any, pixels: "Tensor") -> "tuple[Tensor, Tensor]":
        """Each channel less its mean, in units of its standard deviation."""
        import torch

        frames = pixels.to(vae.device, vae.dtype)[:, :, None]
        posterior = vae.encode(frames).latent_dist
        mean, std = (
            torch.tensor(values, device=vae.device, dtype=vae.dtype)[:, None, None]
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return (posterior.mean[:, :, 0] - mean) / std, posterior.std[:, :, 0] / std

    def predict(self, model: Any, noisy: "Tensor", timesteps: "Tensor", conditions: "dict[str, Tensor]") -> "Tensor":
        n, _, height, width = noisy.shape
        predicted = model(
            hidden_states=packed(noisy),
            timestep=timesteps / 1000,
            encoder_hidden_states=conditions["prompt_embeds"],
            encoder_hidden_states_mask=conditions.get("prompt_embeds_mask"),
            img_shapes=[[(1, height // 2, width // 2)]] * n,
        ).sample
        return unpacked(predicted, height, width)

    def call_arguments(
        self, prompt: "dict[str, Tensor]", negative: "dict[str, Tensor]"
    ) -> "Mapping[str, Tensor | list[Tensor]]":
        """With masks even where no row is padded: the pipeline warns if they are missing, and drops them if they are all ones."""
        return super().call_arguments(_masked(prompt), _masked(negative))

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt_embeds": (MAX_TOKENS, self._transformer["joint_attention_dim"])}

    def refuse_unusable(self) -> None:
        name, transformer, vae = self.settings.model, self._transformer, self._vae
        refuse_others(
            name,
            {
                "patch_size": (transformer["patch_size"], (2,)),
                "in_channels of the transformer": (transformer["in_channels"], (4 * vae["z_dim"],)),
                "out_channels of the transformer": (transformer["out_channels"], (vae["z_dim"],)),
                "number of downsampling blocks of the VAE": (
                    len(vae["dim_mult"]) - 1,
                    (len(vae["temperal_downsample"]),),
                ),
                "input_channels of the VAE": (vae["input_channels"], (3,)),
            },
        )
        for setting in ("latents_mean", "latents_std"):
            values = vae[setting]
            good = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
            if not good or len(values) != vae["z_dim"] or (setting == "latents_std" and min(values) <= 0):
                raise IntegrityError(f"the model {name} cannot be used: the {setting} of its VAE are {values!r}"[:300])
        for setting in UNSUPPORTED:
            if transformer[setting]:
                raise IntegrityError(
                    f"the model {name} cannot be used: a QwenImagePipeline cannot call a transformer with {setting}"
                )


def packed(latents: "Tensor") -> "Tensor":
    """(B, C, h, w) → (B, h/2 w/2, 4 C): a token for each patch of 2 x 2, with channel, row and column of its values."""
    n, channels, height, width = latents.shape
    patches = latents.reshape(n, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, 4 * channels)


def unpacked(tokens: "Tensor", height: int, width: int) -> "Tensor":
    """The inverse of `packed`, for latents of that height and width."""
    n, _, values = tokens.shape
    patches = tokens.reshape(n, height // 2, width // 2, values // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(n, values // 4, height, width)


def _masked(embeds: "dict[str, Tensor]") -> "dict[str, Tensor]":
    rows = embeds["prompt_embeds"]
    return {"prompt_embeds_mask": rows.new_ones(rows.shape[:2]).long()} | embeds
