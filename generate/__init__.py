"""Prompts in, images and pairs out."""

from .config import GenerateConfig
from .prompts import Prompt, read_prompts

__all__ = ["GenerateConfig", "Prompt", "read_prompts"]
