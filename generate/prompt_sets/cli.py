"""`prefloop prompts`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ...core.cli import JsonOption, completing, say
from ...core.commands import App
from ...core.document import answer
from ...core.errors import PrefloopError
from ...core.text import percent, plural
from .check import SIMILARITY, Overlap, PromptCheck, check_prompts
from .files import cached_files, find_files
from .names import known_prompts
from .registry import prompt_set, set_names

app = App(no_args_is_help=True, help="List, fetch and check sets of prompts.")
_N_VALUES = 20  # of a tag, and of the scripts, that are printed
_WIDTH = 80  # characters of a prompt that are printed


@app.command()
def ls(as_json: JsonOption = False) -> None:
    """List the prompt sets that --prompts takes by name.

    Example: prefloop prompts ls
    """
    rows = [_row(name) for name in set_names()]
    if as_json:
        answer(rows)
        return
    for row in rows:
        if row["error"] is not None:
            say(f"{row['name']:<21}cannot be loaded: {row['error']}")
            continue
        tags, cached = ", ".join(row["tags"]) or "no tags", "cached" if row["cached"] else "not cached"
        say(
            f"{row['name']:<21}{row['n_prompts']:>5} prompts  {tags:<21}{row['license'] or 'license unknown':<19}"
            f"{cached:<12}{row['source']}"
        )


def _row(name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "error": None}
    try:
        chosen = prompt_set(name)
    except PrefloopError as error:  # another package's
        return row | {"error": str(error)}
    return row | {
        "n_prompts": chosen.n_prompts,
        "tags": chosen.tag_names,
        "license": chosen.license,
        "cached": cached_files(chosen) is not None,
        "source": chosen.where,
        "files": chosen.files,
        "revision": chosen.revision,
        "sha256": chosen.sha256,
        "citation": chosen.citation,
    }


@app.command()
def fetch(
    names: Annotated[
        list[str],
        typer.Argument(help="Prompt sets of `prefloop prompts ls`.", autocompletion=completing(lambda _: set_names())),
    ],
    as_json: JsonOption = False,
) -> None:
    """Fetch prompt sets into the cache of the hub, and print where they are.

    Example: prefloop prompts fetch parti geneval
    """
    rows = []
    for chosen in [prompt_set(name) for name in names]:
        files = find_files(chosen)
        rows.append({"name": chosen.name, "n_prompts": chosen.n_prompts, "files": files})
        if not as_json:
            place = files[0] if len(files) == 1 else files[0].parent
            say(f"{chosen.name}: {plural(chosen.n_prompts, 'prompt')} in {place}")
    if as_json:
        answer(rows)


@app.command()
def check(
    prompts: Annotated[
        str,
        typer.Argument(
            help="Prompt file, set, or SET=PATH, as for --prompts of generate.",
            autocompletion=completing(known_prompts),
        ),
    ],
    ctx: typer.Context,
    store: Annotated[
        Optional[Path],
        typer.Option(envvar="PREFLOOP_STORE", help="Store with whose training prompts they are compared."),
    ] = None,
    model: Annotated[
        Optional[str],
        typer.Option(help="Model in whose tokens lengths are counted: a built-in one, a folder or a hub id."),
    ] = None,
    similarity: Annotated[
        float, typer.Option(help="Jaccard similarity of words and word pairs from which two prompts are similar.")
    ] = SIMILARITY,
    as_json: JsonOption = False,
) -> None:
    """Count prompts by tag, find repeated ones and those that were trained on, and measure lengths and scripts.

    Example: prefloop prompts check shapes-heldout --model shapes
    """
    from ...store.pairstore import PairStore

    source = ctx.get_parameter_source("store")
    if store is not None and source is not None and source.name == "ENVIRONMENT" and not PairStore(store).exists():
        say(f"no store at {store} yet, so the prompts are not compared with training prompts", err=True)
        store = None
    opened = None if store is None else PairStore.open(store)
    checked = check_prompts(prompts, opened, model, similarity)
    if as_json:
        answer(asdict(checked))
    else:
        say("\n".join(_lines(checked)))


def _lines(checked: PromptCheck) -> list[str]:
    n, repeated = checked.n_prompts, checked.n_rows - checked.n_prompts
    lines = [
        f"{checked.name}: {plural(n, 'prompt')}, {plural(repeated, 'repeated row')}; revision "
        f"{checked.revision or 'unknown'}; sha256 {checked.sha256}"
    ]
    lines += [f"{tag}: {_counts(values)}" for tag, values in checked.tags.items()]
    lines += _overlap("within itself", checked.inside, checked.threshold)
    if (leakage := checked.leakage) is not None:
        training = f"among {plural(leakage.n_training, 'training prompt')} of {leakage.store}"
        lines += _overlap(training, leakage, checked.threshold, f": {percent(leakage.share)} of the prompts")
    lines.append(f"words: {checked.mean_words:.1f} on average, at most {checked.most_words}")
    lines += [
        f"tokens of {of.tokenizer}: {of.mean:.1f} on average, at most {of.longest}; {plural(of.n_truncated, 'prompt')} cut at "
        f"{of.limit}"
        for of in checked.tokens
    ]
    return [*lines, f"scripts: {_counts(checked.scripts)}"]


def _overlap(where: str, overlap: Overlap, threshold: float, share: str = "") -> list[str]:
    counts = (
        f"{overlap.n_equal} equal but for case and punctuation, {overlap.n_similar} similar ({threshold:g} or more)"
    )
    return [
        f"{where}: {counts}{share}",
        *(
            f"    {pair.similarity:.2f}  {'  ~  '.join(_excerpts(pair.prompt, pair.other))}"
            for pair in overlap.examples
        ),
    ]


def _excerpts(first: str, second: str) -> list[str]:
    """A line of each text, from shortly before they differ."""
    lines = [" ".join(text.split()) for text in (first, second)]
    same = next((n for n, (one, other) in enumerate(zip(*lines, strict=False)) if one != other), 0)
    if same > _WIDTH // 2:
        lines = [f"…{line[same - 18 :].lstrip()}" for line in lines]
    return [line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…" for line in lines]


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{value} {n}" for value, n in list(counts.items())[:_N_VALUES]]
    more = [f"{len(counts) - _N_VALUES} more values"] * (len(counts) > _N_VALUES)
    return ", ".join([*shown, *more]) or "none"
