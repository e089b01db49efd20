"""README.md of an export: where its rows came from."""

import json
from collections import Counter

import pyarrow as pa

from ...core.text import plural
from ..pairstore import PairStore
from ..query import visible
from ..runs import versions
from .config import ExportConfig

_TIES = {"pickapic": "; ties have label 0.5"}
_SHARDS = {"pickapic": "data/{}-*.parquet", "datasets": "data/{}-*.parquet", "webdataset": "{}-*.tar"}


def card(store: PairStore, rows: pa.Table, config: ExportConfig) -> str:
    """Markdown with front matter for the hub."""
    labelers = sorted(set(rows["labeler"].to_pylist()))
    kinds = {
        name: (kind, settings) for name, kind, settings in store.rows("select labeler, kind, config from labelers")
    }
    choices = Counter(zip(rows["labeler"].to_pylist(), rows["choice"].to_pylist(), strict=True))
    models = Counter(rows["model_a"].to_pylist() + rows["model_b"].to_pylist())
    splits = Counter(rows["split"].to_pylist())
    n_pairs, n_prompts = (len(rows[column].unique()) for column in ("pair_id", "prompt_id"))
    lines = [
        *_front_matter(config.format, sorted(splits)),
        "# Preferences between images",
        "",
        f"{plural(rows.num_rows, 'label')} of {plural(n_pairs, 'pair')} of images for {plural(n_prompts, 'prompt')}; "
        f"exported in the format {config.format} by prefloop {versions().get('prefloop', '')}"
        f"{_TIES.get(config.format, '')}.",
        "",
        "| split | labels |",
        "|---|---|",
        *(f"| {split} | {n} |" for split, n in sorted(splits.items())),
        "",
        "| labeler | kind | decided | ties | skipped | settings |",
        "|---|---|---|---|---|---|",
        *(
            f"| {_cell(name)} | {kinds[name][0]} | {choices[name, 'a'] + choices[name, 'b']} | {choices[name, 'tie']} "
            f"| {choices[name, 'skip']} | {_cell(kinds[name][1])} |"
            for name in labelers
        ),
        "",
        "| model | images, counted once per label |",
        "|---|---|",
        *(f"| {_cell(model or 'not recorded')} | {n} |" for model, n in sorted(models.items(), key=str)),
        "",
        "Selected with:",
        "",
        f"    {_command(config)}",
        "",
    ]
    return "\n".join(lines)


def _front_matter(form: str, splits: list[str]) -> list[str]:
    """As JSON, which is also YAML, so that texts need no quoting by hand."""
    settings: dict = {"tags": ["preference", "text-to-image", "prefloop"]}
    if form in _SHARDS:
        files = [{"split": split, "path": _SHARDS[form].format(split)} for split in splits]
        settings["configs"] = [{"config_name": "default", "data_files": files}]
    return ["---", *(f"{key}: {json.dumps(value)}" for key, value in settings.items()), "---", ""]


def _command(config: ExportConfig) -> str:
    words = ["prefloop store export OUT", f"--format {config.format}"]
    words += [f"--labeler {json.dumps(visible(labeler), ensure_ascii=False)}" for labeler in config.labelers]
    if config.where:
        words.append(f"--where {json.dumps(visible(config.where), ensure_ascii=False)}")
    return " ".join(words)


def _cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    escaped = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("`", "&#96;")
    return escaped.replace("[", "&#91;").replace("*", "&#42;").replace("_", "&#95;")
