"""Check that a scorer loads and ranks a right image above a wrong one."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from ...store import load_image
from ..scorers.calls import Tags, scores_of
from ..scorers.own_code import own_code, prints_to_stderr
from ..scorers.precision import AUTO
from ..scorers.registry import Scorer, identity, load_scorers, scorer_class

EXAMPLES = Path(str(files("prefloop.relabel.validation") / "examples"))
PROMPT = "a red circle left of a blue square"
TAGS = {"relation": "left of", "question": "Is a red circle left of a blue square?"}
"""Tags of the prompt, for a scorer that needs some."""


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


def check_scorer(
    name: str,
    checkpoints: Mapping[str, str] | None = None,
    device: str | None = None,
    dtype: str = AUTO,
    tags: Tags | None = None,
) -> CheckResult:
    """Score the shipped examples: an image of the prompt and one of another prompt, or, for a scorer that does not read
    prompts, a well-filled image and a nearly empty one.

    Args:
        tags: of the prompt; TAGS if not given.
    """
    (scorer,) = load_scorers([name], checkpoints or {}, device, dtype)
    return CheckResult(identity(scorer), *example_scores(scorer, tags))


@prints_to_stderr()
def example_scores(scorer: Scorer, tags: Tags | None = None) -> tuple[float, float]:
    """The scores of the right image and of the wrong one."""
    pair = ("right.png", "wrong.png") if scorer.needs_prompt else ("full.png", "empty.png")
    images = [load_image(EXAMPLES / file) for file in pair]
    with own_code(scorer):
        right, wrong = scores_of(scorer, [PROMPT, PROMPT], images, [tags or TAGS] * 2).tolist()
    return right, wrong
