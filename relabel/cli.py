"""`prefloop relabel` and `prefloop scorers`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ..core.cli import DEFAULT, JsonOption, StoreOption, completing, options_of, say, say_next
from ..core.commands import App, renamed
from ..core.document import answer
from ..core.errors import PrefloopError, UsageError
from ..store import completion
from ..store.pairstore import PairStore
from .config import RelabelConfig, installed_scorers, parse_checkpoints, parse_scorer_weights
from .judges.request_limits import LIMITS, describe_usage
from .remote.server_config import ScorerServerConfig
from .scorers.precision import AUTO

scorers_app = App(no_args_is_help=True, help="List, fetch, check, compare and serve scorers.")
_CHECKPOINT = (
    "Scorer's checkpoint: PATH, SCORER=PATH, a hub id, or shapes for the built-in world's; by default the official one."
)


@options_of(
    RelabelConfig,
    panels={
        "Rule": "rule scorer_weights tie_band tie_quantile select temperature fit_temperature",
        "Machine": "batch_size device dtype workers",
        "Endpoint": " ".join(LIMITS),
    },
    parsers={"checkpoints": parse_checkpoints, "scorer_weights": parse_scorer_weights},
    values={
        "scorers": lambda _: installed_scorers(),
        "labeler": completion.labelers,
        "fit_temperature": completion.labelers,
    },
)
def relabel(
    given: dict[str, Any],
    store: StoreOption = DEFAULT,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print how many images are unscored and what scoring them will take, and exit."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Score images and label pairs. Each image is scored once; another rule uses the same scores.

    --scorer human opens the page of `prefloop label`; see its help for options.

    Example: prefloop relabel --scorer pickscore --checkpoint shapes
    """
    if "human" in given.get("scorers", ()):
        _open_page(given["scorers"], given.get("labeler"), store, as_json)
        return
    config = RelabelConfig(**given)
    opened = PairStore.open(store)
    if dry_run:
        _print_plan(config, opened, as_json)
        return
    from .stage import relabel as score_and_label

    summary = score_and_label(config, opened)
    if as_json:
        answer(summary)
        return
    _print_summary(summary)
    if summary["labels"]["a"] + summary["labels"]["b"]:
        names = [name for (name,) in opened.rows("select distinct name from models")]
        model = ("--model", names[0]) if len(names) == 1 and names[0] != "shapes" else ()
        say_next("train", *model, "--labeler", summary["labeler"], "--output-dir", "tuned", store=store)


def _print_summary(summary: dict) -> None:
    labels, scored = summary["labels"], summary["scored"]
    nothing = "nothing to do: " if not summary["new_labels"] and not any(scored.values()) else ""
    counts = ", ".join(f"{count} by {name}" for name, count in scored.items())
    not_selected = f", {labels['not_selected']} not selected" if labels["not_selected"] else ""
    say(
        f"{nothing}images scored: {counts}; labels of {summary['labeler']}: {labels['a'] + labels['b']} decided, "
        f"{labels['tie']} ties, {labels['undecided']} undecided{not_selected}; {summary['new_labels']} new"
    )
    if summary["no_longer_selected"]:
        say(
            f"{summary['no_longer_selected']} pairs that are no longer selected keep their label of an earlier run; "
            "give --labeler another name to label only what is selected now",
            err=True,
        )
    for reason, count in summary["excluded"].items():
        say(f"{count} {reason}", err=True)
    for name, usage in summary.get("usage", {}).items():
        say(f"{name}: {describe_usage(usage)}", err=True)
    for name, count in summary["truncated_prompts"].items():
        say(f"{count} prompts are longer than {name} reads, and were truncated", err=True)


def _open_page(scorers: tuple[str, ...], labeler: str | None, store: Path, as_json: bool) -> None:
    from .annotate.cli import run_label
    from .annotate.config import LabelConfig

    if len(scorers) > 1:
        raise UsageError("human labels alone; name no other scorer, and compare with `prefloop store agreement`")
    run_label(LabelConfig(labelers=(labeler,) if labeler else ()), PairStore.open(store), as_json=as_json)


def _print_plan(config: RelabelConfig, store: PairStore, as_json: bool) -> None:
    from .plan import plan

    plans = plan(config, store)
    if as_json:
        answer([asdict(scoring) for scoring in plans])
        return
    for scoring in plans:
        if scoring.requests is not None:
            say(
                f"{scoring.scorer:<14}{scoring.unscored} to judge, in {scoring.requests} requests, and more if some fail"
            )
            continue
        seconds = scoring.seconds
        time = "time unknown: it has not scored here yet" if seconds is None else f"about {seconds:.0f} s"
        say(
            f"{scoring.scorer:<14}{scoring.unscored} unscored, {scoring.embedded} of them embedded already; "
            f"{scoring.batches} batches; {time}; at least {scoring.memory / 2**30:.1f} GiB"
        )


@scorers_app.command()
def ls(
    checkpoint: Annotated[Optional[list[str]], typer.Option(help=_CHECKPOINT)] = None,
    as_json: JsonOption = False,
) -> None:
    """List the installed scorers and which of them can run on this machine.

    Example: prefloop scorers ls
    """
    from .scorers.availability import installed
    from .scorers.listing import as_table

    scorers = installed(parse_checkpoints(checkpoint or []))
    if as_json:
        answer([asdict(scorer) for scorer in scorers])
    else:
        say(as_table(scorers))


@scorers_app.command()
def fetch(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Scorers of `prefloop scorers ls`.", autocompletion=completing(lambda _: installed_scorers())
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be downloaded and how much, and exit.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Download the official weights of scorers. An interrupted download is continued.

    Example: prefloop scorers fetch pickscore hps --dry-run
    """
    from .scorers.fetch import as_lines, download_all, needed

    wanted = needed(names)
    if not dry_run:
        download_all(wanted)
        wanted = needed(names)
    if as_json:
        answer([asdict(item) for item in wanted])
    else:
        say(as_lines(wanted))


@scorers_app.command(cls=renamed({"--weights": "--checkpoint"}))
def check(
    names: Annotated[
        Optional[list[str]],
        typer.Argument(
            help="Scorers; all installed ones if none is named.",
            autocompletion=completing(lambda _: installed_scorers()),
        ),
    ] = None,
    checkpoint: Annotated[Optional[list[str]], typer.Option(help=_CHECKPOINT)] = None,
    device: Annotated[Optional[str], typer.Option(help="cuda, mps or cpu; the best available if not given.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16: what the models run in.")] = AUTO,
    tags: Annotated[
        Optional[str],
        typer.Option(help="The prompt's tags as JSON, for a scorer that needs others than the usual ones."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Load scorers and check that they rank a right image above a wrong one. Exit code 5 if one does not.

    If no scorer is named, those that cannot run here are left out; `prefloop scorers ls` lists them.

    Example: prefloop scorers check pickscore --checkpoint shapes
    """
    from ..core.errors import IntegrityError
    from .scorers.availability import installed
    from .validation.check import check_checkpoint, check_scorer

    checkpoints, rows = parse_checkpoints(checkpoint or []), []
    here = [] if names else installed(checkpoints)
    left_out = {scorer.name: f"{scorer.lacks}; {scorer.cure}" for scorer in here if not scorer.runs}
    for name, reason in left_out.items():
        if not as_json:
            say(f"{name:<13} left out: {reason}")
    for name in names or [scorer.name for scorer in here if scorer.runs]:
        own = {key: path for key, path in checkpoints.items() if key in ("", name)}
        try:
            line = check_checkpoint(name, own)
            if line and not as_json:
                say(f"{name:<13} {line}")
            result = check_scorer(name, own, device, dtype, _parse_tags(tags))
        except PrefloopError as error:
            if names:
                raise
            rows.append({"name": name, "passed": False, "reason": str(error)})
            if not as_json:
                say(f"{name:<13} cannot be loaded: {error}")
            continue
        rows.append({"name": name, "checkpoint": line, "passed": result.passed} | asdict(result))
        if not as_json:
            word = "pass" if result.passed else "FAIL"
            say(f"{name:<13} {word}  right {result.right:.4f}  wrong {result.wrong:.4f}  {result.scorer}")
    if as_json:
        answer({"scorers": rows, "left_out": left_out})
    if failed := [row["name"] for row in rows if not row["passed"]]:
        raise IntegrityError(f"not passed: {', '.join(failed)}")


@scorers_app.command()
@options_of(
    ScorerServerConfig,
    skip=("scorer", "allow_hosts"),
    panels={"Server": "host port", "Machine": "batch_size device dtype"},
    parsers={"checkpoints": parse_checkpoints},
)
def serve(
    given: dict[str, Any],
    name: Annotated[str, typer.Argument(help="Scorer's name, or module:Class.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the URL and the summary as JSON lines.")] = False,
) -> None:
    """Serve a scorer over HTTP to another trainer, or to relabel --scorer URL. Ctrl-C ends it.

    Clients must send the bearer token that the environment variable PREFLOOP_SCORER_TOKEN contains, if it is set.

    Example: prefloop scorers serve pickscore --checkpoint shapes
    """
    from .remote.server import serve_scorer

    def announce(url: str, scorer: Any) -> None:
        key = f"{scorer.name}@{scorer.revision}"
        say(json.dumps({"url": url, "scorer": key}) if as_json else f"serving {key} at {url}")

    summary = serve_scorer(ScorerServerConfig(scorer=name, **given), announce)
    say(json.dumps(summary) if as_json else f"scored {summary['images']} images in {summary['requests']} requests")


def _parse_tags(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        tags = json.loads(text)
    except ValueError:
        tags = None
    if not isinstance(tags, dict):
        raise UsageError(f'--tags must be JSON such as {{"question": "Is it red?"}}, got {text!r}')
    return tags


@scorers_app.command(cls=renamed({"--against": "--labeler"}))
def quality(
    labeler: Annotated[
        str,
        typer.Option(
            help="Labeler whose choices the scorers should predict, such as human:me.",
            autocompletion=completing(completion.labelers),
        ),
    ],
    store: StoreOption = DEFAULT,
    output_dir: Annotated[
        Optional[Path], typer.Option(help="Folder for a page with curves and the pairs that labelers disagree on.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure scorers against somebody's choices: accuracy and kappa on decided pairs with their intervals, calibration.

    Example: prefloop scorers quality --labeler human:me --output-dir quality
    """
    from .validation.validate import quality_lines, validate_scorers

    opened = PairStore.open(store)
    measured = validate_scorers(opened, labeler)
    if as_json:
        answer([asdict(one) for one in measured])
    else:
        say("\n".join(line for one in measured for line in quality_lines(one)))
    if output_dir is not None:
        from .validation.report import write_quality

        say(f"wrote {write_quality(opened, labeler, measured, output_dir)}", err=True)
