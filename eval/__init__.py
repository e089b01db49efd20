"""How often does a tuned model win? Same prompts, same noise, every scorer asked for."""

from .config import EvalConfig

__all__ = ["EvalConfig"]
