"""The stages chained, round after round: draw with the tuned model, label, train again, and know when to stop."""

from .config import LoopConfig

__all__ = ["LoopConfig"]
