"""The layout that convolutions have on a GPU changes no image by more than rounding."""

import numpy as np
import pytest
import tiny
import torch
from prefloop.models.pipelines import channels_last


def image(pipeline: object) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    made = pipeline(["a red circle"], num_inference_steps=2, generator=generator, output_type="np")  # type: ignore[operator]  # a pipeline of diffusers
    return made.images


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_u_net_and_its_vae_give_the_same_image_in_channels_last(kind: str):
    pipeline = tiny.pipeline(kind)
    pipeline.set_progress_bar_config(disable=True)
    before = image(pipeline)
    channels_last(pipeline)
    for part in (pipeline.unet, pipeline.vae):
        (kernels,) = {
            weight.is_contiguous(memory_format=torch.channels_last) for weight in part.parameters() if weight.dim() == 4
        }
        assert kernels
    assert np.abs(image(pipeline) - before).max() < 1e-4


@pytest.mark.parametrize("kind", ["sd3", "qwen-image"])
def test_a_model_without_a_u_net_keeps_its_layout(kind: str):
    pipeline = tiny.pipeline(kind)
    strides = [weight.stride() for weight in pipeline.vae.parameters()]
    channels_last(pipeline)
    assert [weight.stride() for weight in pipeline.vae.parameters()] == strides
