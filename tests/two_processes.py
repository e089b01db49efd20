"""Training in two processes, started as torchrun starts them."""

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import content


def two_processes(
    words: list[object], cwd: Path, first: Callable[[], None] | None = None, **more: str
) -> tuple[list[int | None], list[str]]:
    """Start two processes with their ranks in the environment; exit codes and what each printed.

    Args:
        first: called in each before the command; it must be a function of a module.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    outs = [cwd / f"printed-{rank}" for rank in (0, 1)]
    processes = []
    for rank in ("0", "1"):
        variables: Any = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | more
        processes.append(content.started(*words, cwd=cwd, out=outs[int(rank)], first=first, **variables))
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes], [out.read_text() for out in outs]


ENCODE_PIXELS = 4 * 32 * 32  # four images at once, so that both processes have a share


def encode_fours() -> None:
    from prefloop.train import cache

    cache.ENCODE_PIXELS = ENCODE_PIXELS


def die_while_encoding() -> None:
    """The second process is killed when it has encoded its images, before it writes them."""
    from prefloop.train import tensor_cache

    encode_fours()
    write = tensor_cache.write_tensors

    def killed(*arguments: Any) -> None:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments)

    tensor_cache.write_tensors = killed


def die_while_training() -> None:
    """The second process is killed in its second step; the latents of each step are encoded before it."""
    from prefloop.train import trainer
    from prefloop.train.trainer import Trainer

    trainer.BLOCK = 1
    step = Trainer.step

    def killed(self: Trainer, micro_batches: Any = None) -> Any:
        if os.environ["RANK"] == "1" and self.global_step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, micro_batches)

    Trainer.step = killed


def hang_while_training() -> None:
    """The second process stops for a while in its second step, and then dies."""
    from prefloop.train.trainer import Trainer

    step = Trainer.step

    def hung(self: Trainer, micro_batches: Any = None) -> Any:
        if os.environ["RANK"] == "1" and self.global_step == 1:
            time.sleep(9)
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, micro_batches)

    Trainer.step = hung
