"""Train the built-in world's text encoder and U-Net on latents, and save the whole pipeline.

python -m prefloop.shapes.denoiser --folder build
"""

import argparse
import copy
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from .fit import fit
from .training_set import TrainingSet
from .words import MAX_LENGTH, tokenizer

NOISE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
}


class TextAndUNet(nn.Module):
    """The two models trained together."""

    def __init__(self) -> None:
        super().__init__()
        words: Any = tokenizer()
        torch.manual_seed(2)
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=MAX_LENGTH,
                projection_dim=128,
                bos_token_id=words.bos_token_id,
                eos_token_id=words.eos_token_id,
                pad_token_id=words.pad_token_id,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=8,
            out_channels=8,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(64, 112),
            layers_per_block=1,
            attention_head_dim=4,  # diffusers reads this as the number of heads
            cross_attention_dim=128,
            norm_num_groups=16,
        )


def train(folder: Path, steps: int = 2500, batch: int = 64) -> StableDiffusionPipeline:
    vae: Any = AutoencoderKL.from_pretrained(folder / "vae").eval()
    data = TrainingSet(folder, vae)
    words = tokenizer()
    models = TextAndUNet()
    average = copy.deepcopy(models).requires_grad_(False)
    noise: Any = DDPMScheduler(num_train_timesteps=1000, clip_sample=False, **NOISE)

    def loss_at(step: int) -> torch.Tensor:
        at = torch.randint(len(data.latents), (batch,))
        ids = data.token_ids(at.tolist(), random.Random(step))
        clean = data.latents[at]
        epsilon = torch.randn_like(clean)
        timesteps = torch.randint(1000, (batch,))
        noisy = noise.add_noise(clean, epsilon, timesteps)
        hidden = models.text(ids).last_hidden_state
        predicted = models.unet(noisy, timesteps, hidden).sample
        return (predicted - noise.get_velocity(clean, epsilon, timesteps)).square().mean()

    loss = fit("denoiser", models, loss_at, steps=steps, learning_rate=1.5e-3, folder=folder, ema=average)
    print(f"denoiser: final loss {loss:.4f}")
    pipeline_class: Any = StableDiffusionPipeline  # its type hints are narrower than its code
    return pipeline_class(
        vae=vae,
        text_encoder=average.text.eval(),
        tokenizer=words,
        unet=average.unet.eval(),
        scheduler=DPMSolverMultistepScheduler(timestep_spacing="trailing", steps_offset=1, **NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("shapes-build"))
    parser.add_argument("--steps", type=int, default=2500)
    arguments = parser.parse_args()
    pipeline = train(arguments.folder, arguments.steps)
    pipeline.to(dtype=torch.float16).save_pretrained(arguments.folder / "pipeline")
