"""What the noise level of flow matching is drawn from in training; imports no torch."""

from typing import Literal, get_args

Density = Literal["logit-normal", "uniform"]
DENSITIES: tuple[Density, ...] = get_args(Density)
