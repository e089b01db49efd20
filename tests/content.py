"""Small true content for stores, put in through the public calls; and the command line as a process."""

import multiprocessing
import multiprocessing.process
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest
from PIL import Image
from prefloop.store import PairStore, compaction, prompt_id
from prefloop.store.images import png_bytes
from prefloop.store.pairstore import new_pair

Colour = tuple[int, int, int]
TESTS = Path(__file__).parent


def image_bytes(colour: Colour, side: int = 8) -> bytes:
    """A PNG of one colour."""
    return png_bytes(Image.new("RGB", (side, side), colour))


def add_image(store: PairStore, colour: Colour, side: int = 8) -> UUID:
    row = store.write_image(image_bytes(colour, side), side, side)
    store.append("images", [row])
    return row["image_id"]


def add_prompt(store: PairStore, text: str, **tags: str) -> UUID:
    store.add_prompts([(text, tags)])
    return prompt_id(text)


def add_pair(
    store: PairStore, prompt: UUID, first: UUID, second: UUID, source: str = "generate", run_id: UUID | None = None
) -> UUID:
    pair = new_pair(prompt, first, second, source, run_id)
    assert pair is not None
    store.append("pairs", [pair])
    return pair["pair_id"]


def add_generation(
    store: PairStore, prompt: UUID, model: UUID, image: UUID, index: int = 0, run_id: UUID | None = None
) -> UUID:
    row = {"prompt_id": prompt, "model_id": model, "image_id": image, "sampling": "{}", "seed": 0, "image_index": index}
    identity = UUID(int=model.int ^ image.int)
    store.append("generations", [{"generation_id": identity, "run_id": run_id, **row}])
    return identity


def add_labeler(store: PairStore, name: str, kind: str = "human") -> None:
    store.append("labelers", [{"labeler": name, "kind": kind, "config": "{}"}])


def add_label(
    store: PairStore,
    pair: UUID,
    labeler: str,
    choice: str,
    revision: int = 0,
    p_a: float | None = None,
    margin: float | None = None,
) -> None:
    row = {"pair_id": pair, "labeler": labeler, "revision": revision, "choice": choice, "p_a": p_a, "margin": margin}
    store.append("labels", [row])


def add_scores(store: PairStore, scorer: str, scores: Mapping[tuple[UUID, UUID], float]) -> None:
    """(prompt, image) → score, by name@revision."""
    store.append("scorers", [{"scorer": scorer, "name": scorer.split("@")[0], "config": "{}"}])
    rows = [{"scorer": scorer, "prompt_id": p, "image_id": i, "score": score} for (p, i), score in scores.items()]
    store.append("scores", rows)


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder of small files without their times and modes: a quarter of the time that shutil.copytree takes."""
    for folder, _, names in os.walk(source):
        there = target / os.path.relpath(folder, source)
        there.mkdir(parents=True)
        for name in names:
            (there / name).write_bytes(Path(folder, name).read_bytes())
    return target


def two_folders(folder: Path, names: tuple[str, str] = ("good", "bad"), *, captions: bool = True) -> None:
    """Two prompts, with two good and two bad images each."""
    for side, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            path = folder / name / f"{name}-{number}.png"
            path.write_bytes(image_bytes((200 * side, 60 * number, 0), 32))
            if captions:
                path.with_suffix(".txt").write_text(f"prompt {number % 2}\n")


def fill(store: PairStore, n_prompts: int = 3, images_per_prompt: int = 2) -> list[UUID]:
    """Prompts 'prompt 0', 'prompt 1', … with images that are ever redder, neighbors paired; the pairs."""
    texts = [f"prompt {number}" for number in range(n_prompts)]
    store.add_prompts((text, {}) for text in texts)
    images, pairs = [], []
    for number, text in enumerate(texts):
        colours = ((10 + 200 * index // images_per_prompt, 0, number) for index in range(images_per_prompt))
        rows = [store.write_image(image_bytes(colour), 8, 8) for colour in colours]
        images += rows
        for first, second in pairwise(row["image_id"] for row in rows):
            pair = new_pair(prompt_id(text), first, second, "generate")
            assert pair is not None
            pairs.append(pair)
    store.append("images", images)
    store.append("pairs", pairs)
    store.ingest()
    return [pair["pair_id"] for pair in pairs]


@contextmanager
def no_file_beyond(n_bytes: int) -> Iterator[None]:
    """No file of this process can grow beyond some size, as on a full disk."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def environment(**more: str) -> dict[str, str]:
    """Of a process that finds the tests' own modules, such as `little_scorers`, and the package that is tested."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "NO_COLOR": "1"} | more


def prefloop(*arguments: object, cwd: Path, timeout: float = 120, **more: str) -> subprocess.CompletedProcess[str]:
    """The command line as a process."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=timeout
    )


def command(*arguments: object) -> Sequence[str]:
    return [sys.executable, "-m", "prefloop", *map(str, arguments)]


# A process that has the slow libraries loaded and forks one that runs a command: seconds less for each.
_LOADED = multiprocessing.get_context("forkserver")
_LOADED.set_forkserver_preload(["preloaded"])


def forked(call: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    """A function of a module in a process of its own that need not load the libraries first; its hash seed is 0."""
    process = _LOADED.Process(target=call, args=arguments)
    before = dict(os.environ)
    os.environ.update(environment(PYTHONHASHSEED="0"))  # the first call starts the process that forks
    try:
        process.start()
    finally:
        for name in ("PYTHONPATH", "PYTHONHASHSEED", "NO_COLOR"):
            os.environ.pop(name)
        os.environ.update(before)
    return process


def die_after(left: int, path: Path, work: Callable[[PairStore], object]) -> None:
    """Do something with a store; after this many file operations and changes of the list of parts the process is gone."""

    def counted(call: Callable) -> Callable:
        def counting(*arguments: object, **named: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return call(*arguments, **named)

        return counting

    store = PairStore(path)
    os.replace, os.fsync = counted(os.replace), counted(os.fsync)
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]  # in a process of its own
    compaction.replace_parts = counted(compaction.replace_parts)
    work(store)


def started(
    *arguments: object, cwd: Path, out: Path | None = None, first: Callable[[], None] | None = None, **more: str
) -> multiprocessing.process.BaseProcess:
    """The command line in such a process; what it prints goes to `out`; `first` is called before it."""
    return forked(_run, [str(a) for a in arguments], cwd, out or Path(os.devnull), first, more)


def finished(
    *arguments: object, cwd: Path, timeout: float = 120, first: Callable[[], None] | None = None, **more: str
) -> tuple[int, str]:
    """Exit code and output, both streams, of the command line in such a process."""
    with tempfile.NamedTemporaryFile() as out:
        process = started(*arguments, cwd=cwd, out=Path(out.name), first=first, **more)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
        code = process.exitcode
        assert code is not None
        return code, out.read().decode()


def finished_on_read_only_media(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What became of the command line in a process that can only read the folder."""
    # in a mount namespace of its own: nothing else keeps a test that runs as root from writing
    shell = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", shell, folder, *command(*arguments)],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
    )
    if "unshare" in ended.stderr or "mount:" in ended.stderr:
        pytest.skip("mount namespaces are not allowed here")
    return ended


def _run(arguments: list[str], cwd: Path, out: Path, first: Callable[[], None] | None, more: dict[str, str]) -> None:
    with open(out, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(cwd)
    os.environ.update(environment(**more))
    sys.path.insert(0, str(cwd))
    sys.argv = ["prefloop", *arguments]
    if first is not None:
        first()
    from prefloop.cli import main

    main()
