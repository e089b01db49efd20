"""Seconds of each step against the number of pairs, with the line that a linear cost would follow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plot(found: list[dict[str, Any]], targets: Mapping[str, float | None], path: Path) -> None:
    """PNG of panels, one for each step: process seconds over pairs, both logarithmic; a dotted line is the target."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 5, figsize=(14, 5.6), sharex=True, layout="constrained")
    pairs = [one["pairs"] for one in found]
    for axis, (name, target) in zip(axes.flat, targets.items(), strict=True):
        seconds = [one["steps"][name]["process"] for one in found]
        axis.loglog(pairs, seconds, "o-", color="#2060a0")
        # as many times the largest's seconds as of its pairs
        axis.loglog(pairs, [seconds[-1] * n / pairs[-1] for n in pairs], "--", color="#a0a0a0", linewidth=1)
        if target is not None:
            axis.loglog(pairs[-1], target, "_", color="#c03020", markersize=16, markeredgewidth=2)
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
    figure.supxlabel("pairs", fontsize=10)
    figure.supylabel("seconds of process time", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
