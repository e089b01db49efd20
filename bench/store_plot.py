"""Plot the seconds of each step against the number of pairs, with the line of a linear cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plot(results: list[dict[str, Any]], targets: Mapping[str, float | None], path: Path) -> None:
    """Write a PNG with a panel per step: process seconds over pairs, both logarithmic; a red mark is the target."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n_rows = -(-len(targets) // 5)
    figure, axes = plt.subplots(n_rows, 5, figsize=(14, 2.8 * n_rows), sharex=True, layout="constrained")
    pairs = [result["pairs"] for result in results]
    for axis in axes.flat[len(targets) :]:
        axis.set_axis_off()
    for axis, (name, target) in zip(axes.flat, targets.items(), strict=False):
        seconds = [result["steps"][name]["process"] for result in results]
        axis.loglog(pairs, seconds, "o-", color="#2060a0")
        # seconds proportional to pairs, through the largest store
        axis.loglog(pairs, [seconds[-1] * n / pairs[-1] for n in pairs], "--", color="#a0a0a0", linewidth=1)
        if target is not None:
            axis.loglog(pairs[-1], target, "_", color="#c03020", markersize=16, markeredgewidth=2)
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
    figure.supxlabel("pairs", fontsize=10)
    figure.supylabel("seconds of process time", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
