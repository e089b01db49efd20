"""One resumable training loop for every small model of the built-in world.

The batch of a step depends only on the seed and the step, so an interrupted run continues where it stopped.
"""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.files import atomic_file


def fit(
    name: str,
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    *,
    steps: int,
    learning_rate: float,
    folder: Path,
    ema: nn.Module | None = None,
    ema_decay: float = 0.999,
    weight_decay: float = 0.01,
    save_every: int = 200,
) -> float:
    """Minimize `loss_at(step)` over the model's parameters; AdamW, warm-up and cosine decay.

    Args:
        ema: a copy of the model that holds the moving average of its weights.
        folder: for the state, `NAME.pt`; that of a finished run is loaded and nothing is trained.

    Returns:
        Mean loss of the last 100 steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    path = folder / f"{name}.pt"
    start, recent = 0, []
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        lr_scheduler.load_state_dict(state["schedule"])
        if ema is not None:
            ema.load_state_dict(state["ema"])
        start, recent = state["step"], state["recent"]
    started = time.monotonic()
    for step in range(start, steps):
        torch.manual_seed(1_000_003 * step + 17)
        loss = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        lr_scheduler.step()
        if ema is not None:
            decay = min(ema_decay, (step + 1) / (step + 10))
            with torch.no_grad():
                for average, now in zip(ema.parameters(), model.parameters(), strict=True):
                    average.lerp_(now, 1 - decay)
        recent = [*recent, loss.item()][-100:]
        done = step + 1
        if done % save_every == 0 or done == steps:
            rate = (done - start) / (time.monotonic() - started)
            mean = sum(recent) / len(recent)
            print(f"{name}: step {done}/{steps} loss {mean:.5f} {rate:.2f} steps/s", file=sys.stderr, flush=True)
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": lr_scheduler.state_dict(),
                "ema": None if ema is None else ema.state_dict(),
                "step": done,
                "recent": recent,
            }
            with atomic_file(path) as file:
                torch.save(state, file)
    return sum(recent) / len(recent)
