"""Preference training on labelled pairs."""

from .config import TrainConfig

__all__ = ["TrainConfig"]
