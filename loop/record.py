"""What a finished round found, as the loop needs it again: a file for each round."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.errors import IntegrityError
from ..core.files import write_atomic
from ..core.json import plain
from ..eval.best import JudgedPrompt

Numbers = dict[str, float]
SUMMARY = (
    "steps",
    "n_pairs",
    "loss",
    "implicit_accuracy",
    "validation",
    "beta_mean",
    "beta_sum",
    "beta_for_dpo_weight_0_2",
    "diagnoses",
    "output_dir",
)
"""What a round keeps of the result of its training."""


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    number: int
    """From 1."""
    n_prompts: int
    n_images: int
    """Generated in this round; held-out images of the evaluation not included."""
    n_pairs: int
    """Trained on, replayed ones included."""
    n_undecided_prompts: int
    """Prompts of the round none of whose pairs is trained on: their candidates could not be told apart."""
    labeler: str
    train: dict[str, Any]
    """What is in SUMMARY, of the result of the training."""
    against_base: dict[str, Any]
    """As `prefloop eval --json` prints it."""
    against_previous: dict[str, Any]
    """Likewise; in the first round the same as `against_base`."""
    prompts: list[JudgedPrompt]
    guards: Numbers
    base_guards: Numbers
    """Of the base's images of the same prompts and noise."""
    samples: list[tuple[str, str, str]]
    """Prompts with the ids of an image of the base and of this round's model from the same noise."""
    seconds: Numbers
    """By stage. Of a round that was interrupted, only what the last attempt took."""


def read_round(path: Path) -> RoundResult | None:
    """
    Returns:
        None if it does not exist.

    Raises:
        IntegrityError: if it is not what `write_round` writes.
    """
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        prompts = [
            JudgedPrompt(prompt=row["prompt"], scorers={name: _three(of) for name, of in row["scorers"].items()})
            for row in values.pop("prompts")
        ]
        samples = [_three(row) for row in values.pop("samples")]
        result = RoundResult(**values, prompts=prompts, samples=samples)
        if path.name != f"round-{result.number}.json":
            raise ValueError(f"it holds round {result.number}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IntegrityError(
            f"{path} is not what the loop wrote; move it away, and the same command evaluates the round again"
        ) from error
    return result


def _three(values: Any) -> tuple[Any, Any, Any]:
    first, second, third = values
    return first, second, third


def write_round(path: Path, result: RoundResult) -> None:
    write_atomic(path, json.dumps(plain(asdict(result)), indent=1).encode())
