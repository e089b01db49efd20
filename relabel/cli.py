"""`prefloop relabel` and `prefloop scorers`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..core.cli import DEFAULT, StoreOption, options_of, renamed, say
from ..core.errors import PrefloopError, UsageError
from ..core.json import plain
from ..store.pairstore import PairStore
from .config import RelabelConfig, parse_checkpoints, parse_scorer_weights

scorers_app = typer.Typer(no_args_is_help=True, help="List and check the scorers that are installed.")
_CHECKPOINT = "Weights: PATH, SCORER=PATH, a hub id, or shapes for the built-in world's; by default the official ones."


@options_of(
    RelabelConfig,
    panels={
        "Rule": "rule scorer_weights tie_band tie_quantile select temperature fit_temperature",
        "Machine": "batch_size device dtype",
    },
    parsers={"checkpoints": parse_checkpoints, "scorer_weights": parse_scorer_weights},
)
def relabel(
    given: dict[str, Any],
    store: StoreOption = DEFAULT,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what is unscored and what scoring will take, and exit.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Score images and label pairs. Each image is scored once; another rule scores nothing again.

    --scorer human opens the page of `prefloop label`, whose help tells its options.

    Example: prefloop relabel --scorer pickscore --checkpoint shapes
    """
    if "human" in given.get("scorers", ()):
        _open_page(given["scorers"], given.get("labeler"), store, as_json)
        return
    config = RelabelConfig(**given)
    opened = PairStore.open(store)
    if dry_run:
        _say_plan(config, opened, as_json)
        return
    from .stage import relabel as score_and_label

    summary = score_and_label(config, opened)
    if as_json:
        say(json.dumps(summary))
        return
    labels, scored = summary["labels"], summary["scored"]
    nothing = "nothing to do: " if not summary["new_labels"] and not any(scored.values()) else ""
    counts = ", ".join(f"{count} by {name}" for name, count in scored.items())
    say(
        f"{nothing}images scored: {counts}; labels of {summary['labeler']}: {labels['a'] + labels['b']} decided, "
        f"{labels['tie']} ties, {labels['undecided']} undecided; {summary['new_labels']} new"
    )
    for reason, count in summary["bad"].items():
        say(f"{count} {reason}", err=True)


def _open_page(scorers: tuple[str, ...], labeler: str | None, store: Path, as_json: bool) -> None:
    from .annotate.cli import run_label
    from .annotate.config import LabelConfig

    if len(scorers) > 1:
        raise UsageError("human chooses by itself; name it alone, and compare with `prefloop store agreement`")
    run_label(LabelConfig(labelers=(labeler,) if labeler else ()), PairStore.open(store), as_json=as_json)


def _say_plan(config: RelabelConfig, store: PairStore, as_json: bool) -> None:
    from .plan import plan

    planned = plan(config, store)
    if as_json:
        say(json.dumps([asdict(one) for one in planned]))
        return
    for one in planned:
        time = "time unknown: none was scored here yet" if one.seconds is None else f"about {one.seconds:.0f} s"
        say(
            f"{one.scorer:<14}{one.unscored} unscored, {one.embedded} of them embedded already; {one.batches} batches; "
            f"{time}; at least {one.memory / 2**30:.1f} GiB"
        )


@scorers_app.command()
def ls(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """List the scorers that are installed.

    Example: prefloop scorers ls
    """
    from .validation.check import installed_scorers

    rows = installed_scorers()
    if as_json:
        say(json.dumps(rows))
        return
    for row in rows:
        kind = "only judges" if row["judge_only"] else "labels and judges"
        say(
            f"{row['name']:<14}{'reads the prompt' if row['needs_prompt'] else 'blind to prompts':<18}{kind:<19}{row['source']}"
        )


@scorers_app.command(cls=renamed({"--weights": "--checkpoint"}))
def check(
    names: Annotated[
        Optional[list[str]], typer.Argument(help="Scorers; all that are installed if none is named.")
    ] = None,
    checkpoint: Annotated[Optional[list[str]], typer.Option(help=_CHECKPOINT)] = None,
) -> None:
    """Load scorers and have them rank a right picture above a wrong one. Exit code 5 where one does not.

    Example: prefloop scorers check pickscore --checkpoint shapes
    """
    from ..core.errors import IntegrityError
    from .scorers.registry import scorer_names
    from .validation.check import check_checkpoint, check_scorer

    given, failed = parse_checkpoints(checkpoint or []), []
    for name in names or scorer_names():
        own = {key: path for key, path in given.items() if key in ("", name)}
        try:
            said = check_checkpoint(name, own)
            if said:
                say(f"{name:<14}{said}")
            result = check_scorer(name, own)
        except PrefloopError as error:
            if names:
                raise
            say(f"{name:<14}cannot be loaded: {error}")
            failed.append(name)
            continue
        word = "pass" if result.passed else "FAIL"
        say(f"{name:<14}{word}  right {result.right:.4f}  wrong {result.wrong:.4f}  {result.scorer}")
        if not result.passed:
            failed.append(name)
    if failed:
        raise IntegrityError(f"not passed: {', '.join(failed)}")


@scorers_app.command(cls=renamed({"--against": "--labeler"}))
def quality(
    labeler: Annotated[str, typer.Option(help="Labeler whose choices the scorers should predict, such as human:me.")],
    store: StoreOption = DEFAULT,
    output_dir: Annotated[
        Optional[Path], typer.Option(help="Folder for a page with curves and the pairs that labelers fight over.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Measure scorers against somebody's choices: accuracy and kappa on decided pairs with their intervals, calibration.

    Example: prefloop scorers quality --labeler human:me --output-dir quality
    """
    from .validation.validate import quality_lines, validate_scorers

    opened = PairStore.open(store)
    measured = validate_scorers(opened, labeler)
    if as_json:
        say(json.dumps(plain([asdict(one) for one in measured]), allow_nan=False))
    else:
        say("\n".join(line for one in measured for line in quality_lines(one)))
    if output_dir is not None:
        from .validation.report import write_quality

        say(f"wrote {write_quality(opened, labeler, measured, output_dir)}", err=True)
