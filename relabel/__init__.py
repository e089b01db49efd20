"""Scores for images, and the rules that turn scores into labels."""

from .config import RelabelConfig
from .scorers.registry import Scorer, load_scorer, scorer_names

__all__ = ["RelabelConfig", "Scorer", "load_scorer", "scorer_names"]
