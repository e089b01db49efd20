"""The plain twin: one training step as the reference script of Diffusion-DPO (arXiv 2311.12908) takes it, without its defects.

One pair at a time: encode both images and the prompt, run the model and a frozen copy of it, go backward; after the last pair
clip the gradient and step the optimizer. It shares no code with `train`, so that a test can compare what the two compute.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline
from peft import LoraConfig
from torch import Tensor
from transformers.optimization import Adafactor


@dataclass(frozen=True)
class Example:
    """One pair with its random draws; the chosen image first."""

    pixels: Tensor  # (2, 3, H, W), in [-1, 1]
    prompt: str
    timestep: int
    encoder_noise: Tensor  # (2, C, h, w), for sampling from the encoder's posterior
    noise: Tensor  # (C, h, w), shared by both images


@dataclass(frozen=True, kw_only=True)
class TwinConfig:
    lora_rank: int
    """0 tunes every weight."""
    beta: float
    learning_rate: float
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    half: torch.dtype | None = None
    """Dtype of autocast and of frozen weights; None is float32."""
    gradient_checkpointing: bool = False
    adafactor: bool = False
    """As in the reference script for SDXL; clipped by its own rule only."""


class PlainTwin:
    def __init__(self, folder: Path, config: TwinConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self._part: Callable[[str], AbstractContextManager] = lambda _: nullcontext()
        pipeline: Any = DiffusionPipeline.from_pretrained(folder)
        frozen = config.half or torch.float32
        self.vae = pipeline.vae.requires_grad_(False).to(device, frozen)
        self.texts = [(pipeline.tokenizer, pipeline.text_encoder.requires_grad_(False).to(device, frozen))]
        self.is_xl = hasattr(pipeline, "text_encoder_2")
        if self.is_xl:
            encoder = pipeline.text_encoder_2.requires_grad_(False).to(device, frozen)
            self.texts.append((pipeline.tokenizer_2, encoder))
        self.scheduler: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.unet = pipeline.unet.to(device)
        self.reference = copy.deepcopy(self.unet).requires_grad_(False).to(frozen)
        if config.lora_rank:
            self.unet.requires_grad_(False).to(frozen)
            rank, targets = config.lora_rank, ["to_k", "to_q", "to_v", "to_out.0"]
            self.unet.add_adapter(
                LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)
            )
            for parameter in self.parameters():
                parameter.data = parameter.data.float()
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.unet.train()
        if config.adafactor:
            fixed: dict[str, Any] = {"scale_parameter": False, "relative_step": False, "weight_decay": 1e-2}
            self.optimizer: Any = Adafactor(self.parameters(), lr=config.learning_rate, **fixed)
        else:
            self.optimizer = torch.optim.AdamW(
                self.parameters(), lr=config.learning_rate, eps=config.adam_epsilon, weight_decay=1e-2
            )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.half is torch.float16)

    def parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.unet.parameters() if parameter.requires_grad]

    def watch(self, parts: Callable[[str], AbstractContextManager]) -> None:
        """Time the parts of each step from now on."""
        self._part = parts

    @property
    def modules(self) -> list[torch.nn.Module]:
        return [self.unet, self.reference, self.vae, *(encoder for _, encoder in self.texts)]

    def step(self, examples: Sequence[Example]) -> list[float]:
        """One optimizer step; each pair's logit, beta / 2 * (the model's preference for the chosen image - the reference's)."""
        logits = []
        for example in examples:
            logit = self._logit(example)
            self.scaler.scale(-F.logsigmoid(logit) / len(examples)).backward()
            logits.append(logit.item())
        with self._part("optimizer"):
            self.scaler.unscale_(self.optimizer)
            if not self.config.adafactor:
                torch.nn.utils.clip_grad_norm_(self.parameters(), self.config.max_grad_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
        return logits

    def _logit(self, example: Example) -> Tensor:
        with self._part("data"), torch.no_grad():
            posterior = self.vae.encode(example.pixels.to(self.device, self.vae.dtype)).latent_dist
            latents = posterior.mean + posterior.std * example.encoder_noise.to(posterior.mean)
            latents = latents * self.vae.config.scaling_factor
            noise = example.noise.to(latents).repeat(2, 1, 1, 1)
            timesteps = torch.tensor([example.timestep] * 2, device=self.device)
            noisy = self.scheduler.add_noise(latents, noise, timesteps)
            hidden, added = self._text(example)
        conditions = {"encoder_hidden_states": hidden, "added_cond_kwargs": added}
        with torch.autocast(self.device.type, self.config.half, enabled=self.config.half is not None):
            predicted = self.unet(noisy, timesteps, **conditions).sample
            with self._part("reference"), torch.no_grad():
                ref_predicted = self.reference(noisy, timesteps, **conditions).sample
        # differences of float32 errors: in half precision beta = 5000 would multiply their rounding
        chosen, rejected = (predicted.float() - noise.float()).pow(2).mean(dim=(1, 2, 3))
        ref_chosen, ref_rejected = (ref_predicted.float() - noise.float()).pow(2).mean(dim=(1, 2, 3))
        return -0.5 * self.config.beta * ((chosen - rejected) - (ref_chosen - ref_rejected))

    def _text(self, example: Example) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Hidden states (2, tokens, width), and for SDXL the pooled embedding and size conditioning."""
        hidden, output = [], None
        for tokenizer, encoder in self.texts:
            tokens = tokenizer(
                example.prompt,
                padding="max_length",
                truncation=True,
                max_length=tokenizer.model_max_length,
                return_tensors="pt",
            )
            output = encoder(tokens.input_ids.to(self.device), output_hidden_states=self.is_xl)
            hidden.append(output.hidden_states[-2] if self.is_xl else output[0])
        states = torch.cat(hidden, dim=-1).repeat(2, 1, 1)
        if not self.is_xl:
            return states, None
        height, width = example.pixels.shape[-2:]
        time_ids = torch.tensor([[height, width, 0, 0, height, width]] * 2, device=self.device, dtype=states.dtype)
        assert output is not None
        return states, {"text_embeds": output[0].repeat(2, 1), "time_ids": time_ids}
