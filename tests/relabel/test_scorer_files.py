"""Every entry of every file in a scorer's folder either is part of its revision or cannot change a score."""

import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prefloop.core.errors import PrefloopError
from prefloop.relabel.scorers.checkpoints import built_in
from prefloop.relabel.scorers.registry import identity, load_scorer
from prefloop.store import IntegrityError
from safetensors.torch import load_file, save_file
from test_scorer_identity import copied

PROMPTS = ["a red circle left of a blue square", "two green triangles, RED"]
IMAGES = [
    Image.fromarray(np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8))
    for size in ((80, 64, 3), (70, 90, 3))
]
SCORERS = ("pickscore", "clip", "hps", "aesthetics", "imagereward")

OTHER_FILES = {
    "README.md": "---\nlicense: mit\n---\nA card.",
    "preprocessor_config.json": {"size": 8, "do_normalize": False, "image_mean": [9, 9, 9], "resample": 0},
    "processor_config.json": {"processor_class": "Other", "auto_map": {"AutoProcessor": "code.Processor"}},
    "tokenizer_config.json": {"model_max_length": 3, "do_lower_case": False, "tokenizer_class": "Other"},
    "special_tokens_map.json": {"bos_token": "red", "eos_token": "blue", "unk_token": "a", "pad_token": "b"},
    "added_tokens.json": {"red circle": 5, "<|endoftext|>": 3},
    "generation_config.json": {"max_length": 1},
    "chat_template.jinja": "{{ 1 }}",
    "adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": "else/where"},
    "code.py": "raise SystemExit('this ran')",
}
"""What the loaders of transformers, peft and open_clip would read, and prefloop does not."""


def scores(name: str, folder: Path) -> np.ndarray:
    scorer: Any = load_scorer(name, str(folder), "cpu")
    return scorer.score(PROMPTS, IMAGES)


def identity_of(name: str, folder: Path) -> str:
    """name@revision; "refused" if the folder cannot be used."""
    try:
        return identity(load_scorer(name, str(folder), "cpu"))
    except PrefloopError:
        return "refused"


def folder_of(name: str, to: Path) -> Path:
    """A copy of a scorer's folder whose files are old enough for their hashes to be remembered."""
    folder = copied(name, to)
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    return folder


def entries(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The places of the values in JSON that are not objects or lists; of long ones the first three and the last."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        yield path
        return
    for key, item in items if len(items) <= 40 else [*items[:3], items[-1]]:
        yield from entries(item, (*path, key))


def changed(value: Any) -> Any:
    """Another value of the same type; of an activation the other one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return {"gelu": "quick_gelu", "quick_gelu": "gelu"}.get(value, value + "x")
    return 7


def with_entry(content: Any, path: tuple, value: Any) -> Any:
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return content


@pytest.mark.parametrize("name", SCORERS)
def test_an_entry_of_a_file_is_part_of_the_revision_or_changes_no_score(tmp_path: Path, name: str):
    folder = folder_of(name, tmp_path / "weights")
    before, expected = identity_of(name, folder), scores(name, folder)
    without_effect = 0
    for path in sorted(folder.glob("*.json")):
        kept = json.loads(path.read_text())
        for entry in [*entries(kept), ("new entry",)]:
            old: Any = kept
            for key in entry:
                old = old.get(key) if isinstance(old, dict) else old[key]
            path.write_text(json.dumps(with_entry(kept, entry, changed(old))))
            if identity_of(name, folder) == before:  # then it stays, and all that stay are scored with at once
                kept = json.loads(path.read_text())
                without_effect += 1
        path.write_text(json.dumps(kept))
    assert without_effect >= 2
    assert identity_of(name, folder) == before
    assert np.array_equal(scores(name, folder), expected)


@pytest.mark.parametrize("name", SCORERS)
def test_files_that_a_scorer_does_not_read_change_neither_revision_nor_score(tmp_path: Path, name: str):
    folder = folder_of(name, tmp_path / "weights")
    before, expected = identity_of(name, folder), scores(name, folder)
    for file, content in OTHER_FILES.items():
        (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    assert identity_of(name, folder) == before
    assert np.array_equal(scores(name, folder), expected)
    for file in OTHER_FILES:
        (folder / file).unlink()
    assert identity_of(name, folder) == before
    assert np.array_equal(scores(name, folder), expected)


@pytest.mark.parametrize("name", ["pickscore", "clip", "aesthetics"])
def test_one_changed_weight_changes_the_revision_and_the_score(tmp_path: Path, name: str):
    folder = folder_of(name, tmp_path / "weights")
    before, expected = identity_of(name, folder), scores(name, folder)
    for path in folder.glob("*.safetensors"):
        kept, tensors = path.read_bytes(), load_file(path)
        key = "logit_scale" if name == "pickscore" else sorted(tensors)[-1]
        save_file(tensors | {key: tensors[key] + 1}, path)
        assert identity_of(name, folder) != before, path
        assert not np.array_equal(scores(name, folder), expected), (path, key)
        path.write_bytes(kept)
    assert identity_of(name, folder) == before


@pytest.mark.parametrize("name", ["pickscore", "clip", "aesthetics"])
def test_weights_that_change_before_they_are_loaded_score_nothing(tmp_path: Path, name: str):
    folder = shutil.copytree(built_in(name), tmp_path / "weights")
    scorer: Any = load_scorer(name, str(folder), "cpu")
    (path,) = scorer.files[:1]
    save_file({key: tensor * 1.5 for key, tensor in load_file(path).items()}, path)  # as usable as the earlier one
    with pytest.raises(IntegrityError, match="has changed since this run began"):
        scorer.score(PROMPTS, IMAGES)


@pytest.mark.parametrize("name", ["pickscore", "clip", "hps", "aesthetics"])
def test_the_precision_is_part_of_the_revision(name: str):
    revisions = {load_scorer(name, "shapes", dtype=dtype).revision for dtype in ("float32", "bfloat16", "float16")}
    assert len(revisions) == 3
