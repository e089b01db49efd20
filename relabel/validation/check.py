"""Does a scorer load, and does it rank a right picture above a wrong one?"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from ...store import load_image
from ..scorers.own_code import as_scores, own_code
from ..scorers.registry import identity, is_eval_only, load_scorers, scorer_class, scorer_names

EXAMPLES = Path(str(files("prefloop.relabel.validation") / "examples"))
PROMPT = "a red circle left of a blue square"


@dataclass(frozen=True)
class Checked:
    scorer: str
    right: float
    wrong: float

    @property
    def passed(self) -> bool:
        return bool(np.isfinite([self.right, self.wrong]).all()) and self.right > self.wrong


def described() -> list[dict]:
    """Each installed scorer by what its class says; nothing is loaded."""
    rows = []
    for name in scorer_names():
        kind = scorer_class(name)
        rows.append(
            {
                "name": name,
                "needs_prompt": bool(getattr(kind, "needs_prompt", True)),
                "eval_only": is_eval_only(kind),
                "source": f"{kind.__module__}:{kind.__qualname__}",
            }
        )
    return rows


def check_weights(name: str, weights: Mapping[str, str] | None = None) -> str | None:
    """What a scorer says of its files before its model is loaded; None where it says nothing."""
    look = getattr(scorer_class(name), "check_weights", None)
    return look((weights or {}).get(name, (weights or {}).get(""))) if look else None


def check_scorer(name: str, weights: Mapping[str, str] | None = None) -> Checked:
    """Score the shipped examples: a picture of the prompt against one of another, or, for a scorer that is blind to
    prompts, a well-filled picture against a nearly empty one."""
    (scorer,) = load_scorers([name], weights or {})
    pair = ("right.png", "wrong.png") if scorer.needs_prompt else ("full.png", "empty.png")
    images = [load_image(EXAMPLES / file) for file in pair]
    with own_code(scorer):
        right, wrong = as_scores(scorer, scorer.score([PROMPT, PROMPT], images), 2).tolist()
    return Checked(identity(scorer), right, wrong)
