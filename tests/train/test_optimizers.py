"""The optimizer that the settings and the device ask for."""

from dataclasses import replace

import pytest
import torch
from prefloop.models.families import family_of
from prefloop.models.resolve import find_model
from prefloop.train import TrainConfig
from prefloop.train.optimizers import optimizer_for
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="its fake tensors on a GPU need a driver")
def test_adamw_is_one_kernel_on_a_gpu(config: TrainConfig):
    family = family_of(find_model(config.model))
    with FakeTensorMode():
        weights = [nn.Parameter(torch.empty(2, device="cuda")), nn.Parameter(torch.empty(2))]
        found = [
            optimizer_for(replace(config, optimizer="adamw"), family, parameters, 0.1).defaults["fused"]
            for parameters in (weights[:1], weights[1:])
        ]
    assert found == [True, None]
