"""Training in two processes, started as torchrun starts them."""

import json
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
    outs = [cwd / f"printed-{rank}" for rank in (0, 1)]
    processes = [
        content.started(*words, cwd=cwd, out=out, first=first, **variables | more)
        for out, variables in zip(outs, _variables(), strict=True)
    ]
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes], [out.read_text() for out in outs]


def _variables() -> list[dict[str, str]]:
    """What torchrun puts into the environment of each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    every = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{"RANK": rank, "LOCAL_RANK": rank} | every for rank in ("0", "1")]


def split_gradients(kinds: list[str], folder: Path) -> dict[str, list[float]]:
    """Split the denoiser of each kind of tiny pipeline over two processes and run it forward and backward.

    Returns:
        By kind, the norms of the differences of its output and of its gradient from those of the whole denoiser, relative to
        those.
    """
    found = folder / "gradients.json"
    processes = [content.forked(_compare, kinds, found, variables) for variables in _variables()]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    return json.loads(found.read_text())


def _compare(kinds: list[str], found: Path, variables: dict[str, str]) -> None:
    import tiny
    import torch
    from prefloop.train.sharding import gathered, shard

    os.environ.update(variables)
    torch.distributed.init_process_group("gloo")
    differences = {}
    for kind in kinds:
        whole, split = denoiser(tiny.pipeline(kind)), denoiser(tiny.pipeline(kind))
        arguments = arguments_of(tiny.pipeline(kind), kind)
        shard(split, torch.device("cpu"))
        outputs, gradients = [], []
        for model in (whole, split):
            model.train().enable_gradient_checkpointing()
            output = model(**arguments, return_dict=False)[0]
            output = output if isinstance(output, torch.Tensor) else torch.cat(output)  # Z-Image's is a list
            output.square().mean().backward()
            outputs.append(output.detach().flatten())
            grads = gathered([weight.grad for weight in model.parameters()], keep=True)
            gradients.append(torch.cat([grad.flatten() for grad in grads if grad is not None]))
        differences[kind] = [float((one - two).norm() / one.norm()) for one, two in (outputs, gradients)]
    if variables["RANK"] == "0":
        found.write_text(json.dumps(differences))
    torch.distributed.destroy_process_group()


def denoiser(pipeline: Any) -> Any:
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


def arguments_of(pipeline: Any, kind: str) -> dict[str, Any]:
    """What a pipeline calls its denoiser with."""
    import inspect

    import torch

    seen: list[dict[str, Any]] = []
    model = denoiser(pipeline)
    signature = inspect.signature(model.forward)

    def record(_: object, given: tuple, named: dict[str, Any]) -> None:
        seen.append(signature.bind(*given, **named).arguments)

    model.register_forward_pre_hook(record, with_kwargs=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    more: dict[str, Any] = {"use_resolution_binning": False} if kind.startswith(("sana", "pixart")) else {}
    with torch.no_grad():
        noise = torch.Generator().manual_seed(0)
        pipeline(
            prompt="red", height=32, width=32, num_inference_steps=2, output_type="latent", generator=noise, **more
        )
    return {name: value for name, value in seen[0].items() if name != "return_dict"}


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
    from prefloop.train import feed
    from prefloop.train.trainer import Trainer

    feed.BLOCK = 1
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
