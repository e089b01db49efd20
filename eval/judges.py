"""Which scorers judge an evaluation that names none: those of the defaults that can run here."""

from dataclasses import replace

from ..core.errors import IntegrityError, PrefloopError
from ..generate.defaults import built_in_base
from ..models.model import Model
from ..relabel.scorers.availability import availability
from ..relabel.scorers.sources import MissingWeights, offline, sources_of
from .config import HUMAN, EvalConfig

SCORERS = ("pickscore", "hps", "clip", "aesthetics")


def choose_scorers(config: EvalConfig, model: Model, *, fetch: bool) -> tuple[EvalConfig, dict[str, str]]:
    """The config with the scorers that suit a model, if it names none.

    A scorer that is named, or has a checkpoint of its own, is never left out.

    Args:
        fetch: download the weights that are missing; otherwise a scorer whose weights can be downloaded stays in.

    Returns:
        Besides it the scorers that are left out, each with the reason.

    Raises:
        MissingWeights: if none of the defaults can run, and no people are asked.
    """
    if config.scorers:
        return config, {}
    if built_in_base(model) is not None:
        return replace(config, scorers=("oracle", *SCORERS), checkpoints={"": "shapes"} | config.checkpoints), {}
    reasons = {name: _why_not(name, fetch) for name in SCORERS if not {"", name} & config.checkpoints.keys()}
    left_out = {name: why for name, why in reasons.items() if why is not None}
    kept = tuple(name for name in SCORERS if name not in left_out)
    if not kept and not config.human:
        raise MissingWeights(
            f"none of the usual judges can run here: {_list(left_out)}; with a network, `{fetch_command(left_out)}` "
            "downloads their weights; or name a judge with --scorer, or ask people with --human"
        )
    return replace(config, scorers=kept or (HUMAN,)), left_out


def _why_not(name: str, fetch: bool) -> str | None:
    """Why a default scorer cannot judge; None if it can."""
    scorer = availability(name)
    if scorer.runs:
        return None
    if not fetch:
        why = offline()
        return None if why is None else f"{scorer.lacks}; {why}"
    try:
        for source in sources_of(name):
            if source.local() is None:
                source.fetch()
    except IntegrityError:
        raise
    except PrefloopError as error:
        return f"{scorer.lacks}; {error}"
    return None


def left_out_lines(left_out: dict[str, str]) -> list[str]:
    """What to tell people of the scorers that are left out."""
    if not left_out:
        return []
    return [
        *(f"{name} does not judge: it {why}" for name, why in left_out.items()),
        f"to let them judge too, with a network: {fetch_command(left_out)}",
    ]


def fetch_command(names: dict[str, str]) -> str:
    return f"prefloop scorers fetch {' '.join(names)}"


def _list(left_out: dict[str, str]) -> str:
    return ", ".join(f"{name} {why}" for name, why in left_out.items())
