"""Train the built-in world's flow-matching model, a StableDiffusion3Pipeline, on latents, and save the whole pipeline.

    python -m prefloop.shapes.flow --folder shapes-build

Two small CLIP text encoders and the transformer are trained together by rectified flow, arXiv 2209.03003, on the VAE of the
diffusion model: x = (1 - sigma) latents + sigma noise, the target is noise - latents.
"""

import argparse
import copy
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from .fit import fit
from .training_set import TrainingSet
from .words import MAX_LENGTH, tokenizer

TEXT_WIDTH, PROJECTION = 96, 64  # of each of the two encoders
WIDTH = 128


class TextAndTransformer(nn.Module):
    """The three models trained together."""

    def __init__(self) -> None:
        super().__init__()
        words: Any = tokenizer()
        torch.manual_seed(3)
        self.texts = nn.ModuleList(_text_encoder(words) for _ in range(2))
        self.transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=8,
            num_layers=6,
            attention_head_dim=32,
            num_attention_heads=WIDTH // 32,
            joint_attention_dim=2 * TEXT_WIDTH,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=2 * PROJECTION,
            out_channels=8,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
        )

    def forward(self, noisy: Tensor, sigmas: Tensor, ids: Tensor) -> Tensor:
        """The predicted velocity, as the pipeline asks for it.

        Args:
            noisy: (B, 8, 8, 8).
            sigmas: (B,) in 0..1.
            ids: (B, MAX_LENGTH).
        """
        encoded = [text(ids, output_hidden_states=True) for text in self.texts]
        return self.transformer(
            noisy,
            encoder_hidden_states=torch.cat([text.hidden_states[-2] for text in encoded], dim=-1),
            pooled_projections=torch.cat([text.text_embeds for text in encoded], dim=-1),
            timestep=1000 * sigmas,
        ).sample


def _text_encoder(words: Any) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=TEXT_WIDTH,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=PROJECTION,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


def train(folder: Path, vae_folder: Path, steps: int = 3200, batch: int = 64) -> StableDiffusion3Pipeline:
    vae: Any = AutoencoderKL.from_pretrained(vae_folder).eval().float()
    data = TrainingSet(folder, vae)
    latents = data.latents * vae.config.scaling_factor
    models = TextAndTransformer()
    average = copy.deepcopy(models).requires_grad_(False)

    def loss_at(step: int) -> Tensor:
        at = torch.randint(len(latents), (batch,))
        ids = data.token_ids(at.tolist(), random.Random(step))
        clean = latents[at]
        noise = torch.randn_like(clean)
        sigmas = torch.randn(batch).sigmoid()
        along = sigmas[:, None, None, None]
        predicted = models((1 - along) * clean + along * noise, sigmas, ids)
        return (predicted - (noise - clean)).square().mean()

    loss = fit("flow", models, loss_at, steps=steps, learning_rate=1.5e-3, folder=folder, ema=average, ema_decay=0.998)
    print(f"flow: final loss {loss:.4f}")
    vae.register_to_config(shift_factor=0.0)  # this pipeline adds it
    pipeline_class: Any = StableDiffusion3Pipeline  # its type hints are narrower than its code
    return pipeline_class(
        vae=vae,
        text_encoder=average.texts[0].eval(),
        tokenizer=tokenizer(),
        text_encoder_2=average.texts[1].eval(),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
        transformer=average.transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("shapes-build"))
    parser.add_argument("--vae", type=Path, help="Folder of the VAE; the one in --folder if not given.")
    parser.add_argument("--steps", type=int, default=3200)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    pipeline = train(arguments.folder, arguments.vae or arguments.folder / "vae", arguments.steps)
    pipeline.to(dtype=torch.float16).save_pretrained(arguments.folder / "pipeline-flow")
