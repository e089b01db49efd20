"""The checkpoints of a training run: which to evaluate, which was the best, and a folder that keeps it."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.errors import UsageError, cannot_write
from ..core.json import plain
from ..models.checkpoints import BEST
from ..models.lineage import read_result
from ..models.resolve import find_model
from ..store import PairStore
from .best import choose, judged_prompts
from .result import Evaluation


def checkpoints_of(folder: Path) -> dict[str, int]:
    """The checkpoints of a finished run as models, with their steps, in order; the result itself is the last one.

    Raises:
        UsageError: if the folder has no finished run, or only the result.
    """
    record = read_result(folder) if folder.is_dir() else None
    if record is None or "steps" not in record:
        raise UsageError(f"{folder} holds no finished training run; --sweep takes the --output-dir of one")
    steps: dict[str, int] = {}
    for path in folder.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdigit() and int(number) < record["steps"]:
            steps[str(path)] = int(number)
    if not steps:
        raise UsageError(
            f"{folder} has no checkpoint before its last step; train with a smaller --checkpointing-steps and a larger "
            "--checkpoints-total-limit"
        )
    return dict(sorted(steps.items(), key=lambda item: item[1])) | {str(folder): record["steps"]}


def sweep_of(evaluation: Evaluation, steps: Mapping[str, int]) -> dict[str, Any]:
    """Which checkpoint was the best, as JSON.

    Args:
        steps: of each model, from `checkpoints_of`.
    """
    names = evaluation.lineup.names
    compared = evaluation.comparisons
    scorers = {name: {"in_sample": name in compared[-1].background.in_sample} for name in compared[-1].overall}
    choice = choose([judged_prompts(one.pairs) for one in compared], scorers)
    best = names[compared[choice.index].tuned]
    return plain(
        {
            "steps": {names[one.tuned]: steps[names[one.tuned]] for one in compared},
            "best": best,
            "best_step": steps[best],
            "chosen_by": choice.chosen_by,
            "chosen_with": choice.chosen_with,
            "reported": {name: asdict(result) for name, result in choice.reported.items()},
        }
    )


def keep_best(folder: Path, best: str, store: PairStore) -> Path:
    """Copy the best checkpoint into the run's checkpoint-best as a result like any other, with a card.

    Returns:
        That folder.

    Raises:
        UsageError: if somebody else's file has the name of one of its files.
    """
    from ..train.export.result import write_checkpoint_as_result

    target = folder / BEST
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(target, error) from error
    write_checkpoint_as_result(target, find_model(best), store)
    return target
