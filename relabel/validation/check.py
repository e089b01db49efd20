"""Check that a scorer loads and ranks a right image above a wrong one."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from ...store import load_image
from ..scorers.own_code import as_scores, own_code
from ..scorers.registry import identity, load_scorers, scorer_class

EXAMPLES = Path(str(files("prefloop.relabel.validation") / "examples"))
PROMPT = "a red circle left of a blue square"


@dataclass(frozen=True)
class CheckResult:
    scorer: str
    """name@revision."""
    right: float
    """Score of the image that the scorer should prefer."""
    wrong: float

    @property
    def passed(self) -> bool:
        return bool(np.isfinite([self.right, self.wrong]).all()) and self.right > self.wrong


def check_checkpoint(name: str, checkpoints: Mapping[str, str] | None = None) -> str | None:
    """What a scorer says about its files before its model is loaded; None if it says nothing."""
    check = getattr(scorer_class(name), "check_weights", None)
    return check((checkpoints or {}).get(name, (checkpoints or {}).get(""))) if check else None


def check_scorer(name: str, checkpoints: Mapping[str, str] | None = None) -> CheckResult:
    """Score the shipped examples: an image of the prompt and one of another prompt, or, for a scorer that does not read
    prompts, a well-filled image and a nearly empty one."""
    (scorer,) = load_scorers([name], checkpoints or {})
    pair = ("right.png", "wrong.png") if scorer.needs_prompt else ("full.png", "empty.png")
    images = [load_image(EXAMPLES / file) for file in pair]
    with own_code(scorer):
        right, wrong = as_scores(scorer, scorer.score([PROMPT, PROMPT], images), 2).tolist()
    return CheckResult(identity(scorer), right, wrong)
