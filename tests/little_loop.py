"""The smallest loop that has everything: the built-in model, two rounds, six prompts; and what must be the same in two of them."""

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

from prefloop.store import PairStore

FILE = """
[loop]
model = "shapes"
rounds = 2
prompts_per_round = 6
min_margin = 1.6
patience = 0
[generate]
limit = 40
images_per_prompt = 2
num_inference_steps = 2
batch_size = 6
[relabel]
scorers = ["little_scorers:Redness"]
[train]
learning_rate = 1e-2
lr_warmup_steps = 0
max_train_steps = 2
train_batch_size = 2
validation_steps = 2
checkpointing_steps = 1
cpu = true
where = "round < 4"
[eval]
limit = 12
num_inference_steps = 2
scorers = ["little_scorers:Darkness", "little_scorers:Redness"]
"""
WORDS = ("loop", "loop.toml", "--output-dir", "loop")
CONTENT = {
    "prompts": "select *",
    "models": "select model_id, name",
    "images": "select *",
    "generations": "select * exclude (run_id)",
    "pairs": "select * exclude (run_id), (select round from run_rounds r where r.run_id = pairs.run_id) as round",
    "scorers": "select *",
    "scores": "select * exclude (run_id)",
    "labelers": "select *",
    "labels": "select * exclude (run_id)",
}
"""What must be equal in two stores; run_id, the run that wrote a row, differs, but its round does not. A model's
config has the folder."""


def store_of(folder: Path) -> PairStore:
    return PairStore.open(folder / "loop" / "store")


def store_content(folder: Path) -> dict[str, list[tuple]]:
    store = store_of(folder)
    return {table: store.rows(f"{columns} from {table} order by all") for table, columns in CONTENT.items()}


def record(folder: Path, number: int) -> dict[str, Any]:
    """What is kept of a round, without the seconds it took."""
    values = json.loads((folder / "loop" / f"round-{number}.json").read_text())
    del values["seconds"]
    return values


def weights(folder: Path) -> dict[str, str]:
    """Hashes of the weights of the rounds and of the result."""
    files = sorted((folder / "loop").glob("r*/*.safetensors"))
    return {path.relative_to(folder).as_posix(): digest(path) for path in files}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def die_at() -> None:
    """Kill this process before or after a file gets its name.

    $DIE is a word, before or after, how many such files have theirs by then, from 0, and an end of the name.
    """
    when, n, ending = os.environ["DIE"].split(" ", 2)
    left = int(n)

    def dying(call: Any) -> Any:
        def rename(source: Any, target: Any, **more: Any) -> None:
            nonlocal left
            dies = ending in f"{os.path.abspath(target)}$"
            left -= dies
            if dies and left < 0 and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            call(source, target, **more)
            if dies and left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        return rename

    os.replace, os.rename = dying(os.replace), dying(os.rename)
