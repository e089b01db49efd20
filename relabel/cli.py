"""`prefloop relabel` and `prefloop scorers`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..core.errors import PrefloopError, UsageError
from ..store.cli import DEFAULT, StoreOption, say
from ..store.pairstore import PairStore
from .config import RelabelConfig, parse_shares, parse_weights

scorers_app = typer.Typer(no_args_is_help=True, help="List and check the scorers that are installed.")
_WEIGHTS = "PATH, SCORER=PATH, a hub id, or shapes for the built-in world's; the official ones if not given."


def relabel(
    scorer: Annotated[
        Optional[list[str]], typer.Option(help="A scorer's name, module:Class, or human; give it again for several.")
    ] = None,
    weights: Annotated[Optional[list[str]], typer.Option(help=_WEIGHTS)] = None,
    rule: Annotated[str, typer.Option(help="single, mean-rank, weighted, majority or unanimous.")] = RelabelConfig.rule,
    share: Annotated[
        Optional[list[str]], typer.Option(help="SCORER=NUMBER: how much it counts by the rule weighted; else 1.")
    ] = None,
    tie_band: Annotated[float, typer.Option(help="Margins up to this are ties.")] = RelabelConfig.tie_band,
    tie_quantile: Annotated[
        float, typer.Option(help="Share of the pairs, with the smallest margins, that are ties.")
    ] = RelabelConfig.tie_quantile,
    pairs: Annotated[
        str, typer.Option(help="all, or best-worst: of each prompt only the pair with the largest margin.")
    ] = RelabelConfig.pairs,
    temperature: Annotated[
        Optional[float], typer.Option(help="Difference of scores that makes one logit; the scorer's own if not given.")
    ] = RelabelConfig.temperature,
    fit_temperature: Annotated[
        Optional[str], typer.Option(help="Labeler, such as human:me, whose choices say how sure a margin is.")
    ] = RelabelConfig.fit_temperature,
    labeler: Annotated[
        Optional[str], typer.Option(help="Name of the labels; the scorer's, or rule:scorer+scorer, if not given.")
    ] = RelabelConfig.labeler,
    store: StoreOption = DEFAULT,
    batch_size: Annotated[int, typer.Option(help="Images scored at once.")] = RelabelConfig.batch_size,
    max_bad: Annotated[
        float, typer.Option(help="Maximum fraction of unreadable images, or of scores that are not finite.")
    ] = RelabelConfig.max_bad,
    device: Annotated[Optional[str], typer.Option(help="cuda, mps or cpu; the best there is if not given.")] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16: what the models run in.")
    ] = RelabelConfig.dtype,
    dry_run: Annotated[bool, typer.Option(help="Say what is unscored and what it will take; score nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Score images and label pairs. Each image is scored once; another rule scores nothing again.

    --scorer human opens the page of `prefloop label`, whose help tells its options.

    Example: prefloop relabel --scorer pickscore --weights shapes
    """
    if "human" in (scorer or ()):
        _open_page(scorer or [], labeler, store, as_json)
        return
    config = RelabelConfig(
        scorers=tuple(scorer or RelabelConfig.scorers),
        weights=parse_weights(weights or []),
        rule=rule,  # type: ignore[arg-type]  # checked by the config
        shares=parse_shares(share or []),
        tie_band=tie_band,
        tie_quantile=tie_quantile,
        pairs=pairs,  # type: ignore[arg-type]  # checked by the config
        temperature=temperature,
        fit_temperature=fit_temperature,
        labeler=labeler,
        batch_size=batch_size,
        max_bad=max_bad,
        device=device,
        dtype=dtype,
    )
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


def _open_page(scorers: list[str], labeler: str | None, store: Path, as_json: bool) -> None:
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
    from .validation.check import described

    rows = described()
    if as_json:
        say(json.dumps(rows))
        return
    for row in rows:
        kind = "only judges" if row["judge_only"] else "labels and judges"
        say(
            f"{row['name']:<14}{'reads the prompt' if row['needs_prompt'] else 'blind to prompts':<18}{kind:<19}{row['source']}"
        )


@scorers_app.command()
def check(
    names: Annotated[
        Optional[list[str]], typer.Argument(help="Scorers; all that are installed if none is named.")
    ] = None,
    weights: Annotated[Optional[list[str]], typer.Option(help=_WEIGHTS)] = None,
) -> None:
    """Load scorers and have them rank a right picture above a wrong one. Exit code 5 where one does not.

    Example: prefloop scorers check pickscore --weights shapes
    """
    from ..core.errors import IntegrityError
    from .scorers.registry import scorer_names
    from .validation.check import check_scorer, check_weights

    given, failed = parse_weights(weights or []), []
    for name in names or scorer_names():
        own = {key: path for key, path in given.items() if key in ("", name)}
        try:
            said = check_weights(name, own)
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


@scorers_app.command()
def quality(
    against: Annotated[str, typer.Option(help="Labeler whose choices are the measure, such as human:me.")],
    store: StoreOption = DEFAULT,
    output_dir: Annotated[
        Optional[Path], typer.Option(help="Folder for a page with curves and the pairs that labelers fight over.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Measure scorers against somebody's choices: accuracy and kappa on decided pairs with their intervals, calibration.

    Example: prefloop scorers quality --against human:me --output-dir quality
    """
    from .validation.validate import lines_of, measure

    opened = PairStore.open(store)
    measured = measure(opened, against)
    if as_json:
        say(json.dumps([asdict(one) for one in measured]))
    else:
        say("\n".join(line for one in measured for line in lines_of(one)))
    if output_dir is not None:
        from .validation.report import write_quality

        say(f"wrote {write_quality(opened, against, measured, output_dir)}", err=True)
