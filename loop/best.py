"""Which round to keep: chosen on half of the evaluation prompts, and reported on the other half."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import BadDataError
from ..eval.best import Choice, choose
from .record import RoundResult


@dataclass(frozen=True, kw_only=True)
class Best(Choice):
    number: int
    """Of the round."""

    @property
    def beats_base(self) -> bool:
        return self.chosen_with > 0.5


def best_round(rounds: Sequence[RoundResult]) -> Best:
    """
    Args:
        rounds: finished rounds, at least one; all were evaluated on the same prompts.

    Raises:
        BadDataError: if nothing compares the rounds.
    """
    try:
        choice = choose([result.prompts for result in rounds], rounds[-1].against_base["scorers"])
    except BadDataError:
        raise BadDataError(
            "no scorer has a finite score in every round, so that the rounds cannot be compared; name other scorers in [eval], "
            "and begin another loop with another --output-dir"
        ) from None
    return Best(**vars(choice), number=rounds[choice.index].number)
