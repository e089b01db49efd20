"""Two folders, of preferred and of other images: paired by file name, or all with all that have the same prompt."""

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from ...core.errors import UsageError
from .batches import Batch
from .config import ImportConfig
from .pairs import image_source
from .record import Excluded, Preference, Record, SourceImage, prompt_problem

FOLDER_NAMES = (("chosen", "rejected"), ("winner", "loser"), ("good", "bad"))
_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")
_ROWS = 1024
Prompts = Mapping[str, str | None]
"""Image as a path below the dataset's folder → its prompt."""


class FolderPair(NamedTuple):
    """What two folders hold under one name; images as paths below the dataset's folder."""

    name: str
    prompt: str | None
    chosen: str | None
    rejected: str | None


class Sides(NamedTuple):
    """The names of the two folders, of the preferred and of the other images."""

    chosen: str
    rejected: str


def image_folders(folder: Path, names: Mapping[str, str]) -> Sides | None:
    """The two folders, whatever the case of their names; None if there are no such folders.

    Args:
        names: `--map`: the folders' own names, as chosen and rejected.
    """
    if not folder.is_dir():
        return None
    inside = {path.name.lower(): path.name for path in sorted(folder.iterdir()) if path.is_dir()}
    given = names.get("chosen"), names.get("rejected")
    candidates = FOLDER_NAMES if given == (None, None) else [given]
    for chosen, rejected in candidates:
        if chosen is None or rejected is None:
            return None
        if chosen != rejected and chosen.lower() in inside and rejected.lower() in inside:
            return Sides(inside[chosen.lower()], inside[rejected.lower()])
    return None


def one_of_two(folder: Path) -> tuple[str, str] | None:
    """A folder's name and that of the other one, which is missing; None unless one of a pair of names is there alone."""
    inside = {path.name.lower() for path in folder.iterdir() if path.is_dir()}
    for names in FOLDER_NAMES:
        for name, other in (names, names[::-1]):
            if name in inside and other not in inside:
                return name, other
    return None


def layout(folder: Path) -> str:
    """What the folder should contain."""
    names = "; ".join(" and ".join(pair) for pair in FOLDER_NAMES[:2])
    return (
        f"put the images into {folder}/good and {folder}/bad (or {names}; or name yours with --map chosen=NAME "
        "--map rejected=NAME), with a .txt beside each that holds its prompt, or give --prompt"
    )


def read_folders(folder: Path, sides: Sides, captions: Mapping[str, Any], config: ImportConfig) -> list[FolderPair]:
    """A row for each pair, and for each image without a partner, which lacks the other image.

    Args:
        captions: image as a path below the folder → its prompt in a metadata file; the others have a .txt beside them.

    Raises:
        UsageError: if a folder has no images, no image has a prompt, or no pair can be made.
    """
    root = folder.resolve()
    first, second = ([_below(folder, path) for path in images(folder / side, True)] for side in sides)
    for side, found in zip(sides, (first, second), strict=True):
        if not found:
            raise UsageError(f"{folder / side} holds no images (.png, .jpg, .jpeg or .webp)")

    def prompt_of(file: str) -> str | None:
        if config.prompt is not None:
            return config.prompt
        text = captions[file] if file in captions else caption(root, [(root / file).with_suffix(".txt")])
        return text if isinstance(text, str) and text.strip() else None

    prompts = {file: prompt_of(file) for file in (*first, *second)}
    if not any(prompts.values()):
        raise UsageError(
            f"no image in {folder} has a prompt; put it into a .txt file with the image's name beside the image, or give "
            "--prompt if all images have the same"
        )
    pairing = config.pairing if config.pairing != "auto" else _pairing(first, second, prompts)
    pairs = _by_name(first, second, prompts) if pairing == "name" else _all(first, second, prompts, config)
    if not any(pair.chosen and pair.rejected for pair in pairs):
        problem, cure = "no file name is in both", "give --pairing all to pair all images of a prompt"
        if pairing == "all":
            problem, cure = (
                "no prompt is in both",
                "give --prompt, one for all images, or write the same into their .txt files",
            )
        raise UsageError(f"{folder}: {problem} {sides.chosen} and {sides.rejected}; {cure}")
    return pairs


def _below(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _stems(files: Sequence[str]) -> dict[str, str]:
    """The path below a side without its extension → the file."""
    stems: dict[str, str] = {}
    for file in files:
        stem = Path(file).with_suffix("").as_posix().partition("/")[2]
        if stem in stems:
            raise UsageError(f"{stems[stem]} and {file} have the same name; rename one, or give --pairing all")
        stems[stem] = file
    return stems


def _pairing(first: Sequence[str], second: Sequence[str], prompts: Prompts) -> str:
    try:
        chosen, rejected = _stems(first), _stems(second)
    except UsageError:
        return "all"
    common = chosen.keys() & rejected.keys()
    for stem in common:
        both = {prompts[chosen[stem]], prompts[rejected[stem]]} - {None}
        if len(both) == 2:  # the name is a coincidence, such as a number
            return "all"
    return "name" if 4 * len(common) > len(first) + len(second) else "all"


def _by_name(first: Sequence[str], second: Sequence[str], prompts: Prompts) -> list[FolderPair]:
    chosen, rejected = _stems(first), _stems(second)
    pairs = []
    for stem in sorted(chosen | rejected):
        files = chosen.get(stem), rejected.get(stem)
        prompt = next((prompts[file] for file in files if file and prompts[file] is not None), None)
        pairs.append(FolderPair(stem, prompt, *files))
    return pairs


def _all(first: Sequence[str], second: Sequence[str], prompts: Prompts, config: ImportConfig) -> list[FolderPair]:
    """The pairs of each prompt, at most `--pairs-per-prompt`, in which all images of a folder occur about equally often."""
    by_prompt: dict[str | None, tuple[list[str], list[str]]] = {}
    for side, files in enumerate((first, second)):
        for file in files:
            by_prompt.setdefault(prompts[file], ([], []))[side].append(file)
    pairs = []
    for prompt, (chosen, rejected) in by_prompt.items():
        if prompt is None or not chosen or not rejected:
            pairs += [FolderPair(file, prompt, file, None) for file in chosen]
            pairs += [FolderPair(file, prompt, None, file) for file in rejected]
            continue
        places = balanced(len(chosen), len(rejected), random.Random(f"{config.seed} {prompt}"))
        for one, other in islice(places, config.pairs_per_prompt):
            pairs.append(FolderPair(f"{chosen[one]} and {rejected[other]}", prompt, chosen[one], rejected[other]))
    return pairs


def balanced(n: int, m: int, generator: random.Random) -> Iterator[tuple[int, int]]:
    """All pairs of n and m things, in an order in which, wherever it ends, no thing has occurred more than once more often than
    another of its side."""
    first, second = (generator.sample(range(size), size) for size in (n, m))
    for number in range(n * m):
        # each block of lcm(n, m) pairs has no pair twice; the next begins one further on the second side
        yield first[number % n], second[(number + number // math.lcm(n, m)) % m]


def folder_records(batch: Batch, rows: Sequence[int]) -> Iterator[Record | Excluded]:
    table = batch.table.take(pa.array(rows, pa.int64()))
    for row in table.to_pylist():
        pair = FolderPair(**row)
        if pair.chosen is None or pair.rejected is None:
            yield Excluded(pair.name, "no partner" if pair.prompt is not None else "no prompt")
        elif problem := prompt_problem(pair.prompt):
            yield Excluded(pair.name, problem)
        else:
            sources = [image_source(file, batch.root) for file in (pair.chosen, pair.rejected)]
            paths = [source for source in sources if isinstance(source, Path)]
            if len(paths) < 2:
                yield Excluded(pair.name, next(source for source in sources if isinstance(source, str)))
                continue
            yield Record(
                pair.name, pair.prompt or "", [SourceImage(path) for path in paths], (Preference(0, 1, "first"),), {}
            )


def as_batches(name: str, root: Path, pairs: Iterable[FolderPair]) -> Iterator[Batch]:
    first, remaining = 1, iter(pairs)
    while rows := list(islice(remaining, _ROWS)):
        columns = zip(FolderPair._fields, zip(*rows, strict=True), strict=True)
        yield Batch(name, first, pa.table({field: pa.array(column, pa.string()) for field, column in columns}), root)
        first += len(rows)


def images(folder: Path, recursive: bool = False) -> list[Path]:
    """The image files of a folder in order, without hidden ones."""
    found = sorted(folder.rglob("*") if recursive else folder.iterdir())
    return [path for path in found if path.suffix.lower() in _EXTENSIONS and path.name[0] != "."]


def caption(root: Path, files: Sequence[Path]) -> str | None:
    """The text of the first file that exists below the root; None if there is none or it is not UTF-8."""
    for file in files:
        path = file.resolve()
        if path.is_file() and path.is_relative_to(root):
            try:
                return path.read_bytes().decode("utf-8-sig").rstrip("\r\n")  # read_text would change line breaks
            except UnicodeDecodeError:
                return None
    return None
