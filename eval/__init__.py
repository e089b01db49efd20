"""How often does a tuned model win? Same prompts, same noise, any number of scorers."""

from .config import EvalConfig

__all__ = ["EvalConfig"]
