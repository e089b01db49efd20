"""`prefloop scorers`."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ...core.cli import DEFAULT, JsonOption, StoreOption, completing, options_of, say
from ...core.commands import App, renamed
from ...core.document import answer
from ...core.errors import IntegrityError, PrefloopError, UsageError
from ...store import completion
from ..config import installed_scorers, parse_checkpoints
from ..remote.server_config import ScorerServerConfig
from .precision import AUTO

app = App(no_args_is_help=True, help="List, fetch, check, compare and serve scorers.")
_CHECKPOINT = (
    "Scorer's checkpoint: PATH, SCORER=PATH, a hub id, or shapes for the built-in world's; by default the official one."
)


@app.command()
def ls(
    checkpoint: Annotated[Optional[list[str]], typer.Option(help=_CHECKPOINT)] = None,
    as_json: JsonOption = False,
) -> None:
    """List the installed scorers and which of them can run on this machine.

    Example: prefloop scorers ls
    """
    from .availability import installed
    from .listing import as_table

    scorers = installed(parse_checkpoints(checkpoint or []))
    if as_json:
        answer([asdict(scorer) for scorer in scorers])
    else:
        say(as_table(scorers))


@app.command()
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
    from .fetch import as_lines, download_all, needed

    wanted = needed(names)
    if not dry_run:
        download_all(wanted)
        wanted = needed(names)
    if as_json:
        answer([asdict(item) for item in wanted])
    else:
        say(as_lines(wanted))


@app.command(cls=renamed({"--weights": "--checkpoint"}))
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
    from ..validation.check import check_checkpoint, check_scorer
    from .availability import installed

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
    if failed := [row for row in rows if not row["passed"]]:
        silent = any(math.isnan(row.get(side, 0.0)) for row in failed for side in ("right", "wrong"))
        cure = "; a scorer that reads the prompt's tags needs its own with --tags" if silent and tags is None else ""
        raise IntegrityError(f"not passed: {', '.join(row['name'] for row in failed)}{cure}")


@app.command()
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
    from ..remote.server import serve_scorer

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


@app.command(cls=renamed({"--against": "--labeler"}))
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
    from ...store.pairstore import PairStore
    from ..validation.quality_text import quality_lines
    from ..validation.validate import validate_scorers

    opened = PairStore.open(store)
    measured = validate_scorers(opened, labeler)
    if as_json:
        answer([asdict(one) for one in measured])
    else:
        say("\n".join(line for one in measured for line in quality_lines(one)))
    if output_dir is not None:
        from ..validation.report import write_quality

        say(f"wrote {write_quality(opened, labeler, measured, output_dir)}", err=True)
