"""A report that is one folder and opens from disk: table, plot, pictures side by side."""

import json
import random
import shutil
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from ..core.errors import cannot_write
from ..store import PairStore
from ..store.query import visible

if TYPE_CHECKING:
    from .stage import Evaluation, Side

N_SHOWN = 12
PAGE, FILES = "report.html", ("results.json", "win_rates.png", "samples.png")


def write_report(evaluation: "Evaluation", result: dict, store: PairStore, folder: Path) -> None:
    """Write report.html, results.json, win_rates.png, samples.png and the pictures they show into the folder, the page first."""
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    judge = ranking_scorer(evaluation)
    ranked = sorted(
        (
            side
            for side in evaluation.sides
            if side.base != side.tuned and side.scores[judge][0] == side.scores[judge][0]
        ),
        key=lambda side: side.scores[judge][1] - side.scores[judge][0],
    )
    rng = random.Random(evaluation.config.seed)
    sample = rng.sample(evaluation.sides, min(N_SHOWN, len(evaluation.sides)))
    sections = {
        f"Largest wins by {judge}": [s for s in ranked[::-1][:N_SHOWN] if s.scores[judge][1] > s.scores[judge][0]],
        f"Largest losses by {judge}": [s for s in ranked[:N_SHOWN] if s.scores[judge][1] < s.scores[judge][0]],
        "A random sample": sample,
    }
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (files("prefloop.eval") / "report.html").read_text()
    )
    shown = {title: [_row(side) for side in part] for title, part in sections.items()}
    (folder / PAGE).write_text(template.render(result=result, sections=shown, config=evaluation.config))
    for side in {id(s): s for part in sections.values() for s in part}.values():
        for image in (side.base, side.tuned):
            shutil.copyfile(store.image_path(image), folder / "images" / f"{image.hex}.png")
    plot_win_rates(result, folder / "win_rates.png")
    draw_samples(evaluation, sample, store, folder / "samples.png")
    (folder / "results.json").write_text(json.dumps(result, indent=1, allow_nan=False))


def ranking_scorer(evaluation: "Evaluation") -> str:
    """The first scorer that made no training label; where all did, the first."""
    names = list(evaluation.overall)
    return next((name for name in names if name not in evaluation.in_sample), names[0])


def _row(side: "Side") -> dict[str, Any]:
    return {
        "prompt": visible(side.prompt),
        "base": f"images/{side.base.hex}.png",
        "tuned": f"images/{side.tuned.hex}.png",
        "scores": side.scores,
    }


def plot_win_rates(result: dict, path: Path) -> None:
    """Win rates with their intervals; scorers whose labels trained the model are hollow."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(result["scorers"])[::-1]
    figure = Figure(figsize=(7, 1.1 + 0.45 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for at, name in enumerate(names):
        row = result["scorers"][name]
        hollow = row["in_sample"]
        axes.plot([row["low"], row["high"]], [at, at], color="#1f5fa8", linewidth=2)
        axes.plot(
            row["win_rate"],
            at,
            "o",
            markersize=8,
            markeredgecolor="#1f5fa8",
            markerfacecolor="white" if hollow else "#1f5fa8",
        )
        axes.annotate(
            f"{row['win_rate']:.1%}", (row["win_rate"], at), (0, 8), textcoords="offset points", ha="center", fontsize=9
        )
    axes.axvline(0.5, color="#888888", linestyle="--", linewidth=1)
    marked = [f"{name} (in-sample)" if result["scorers"][name]["in_sample"] else name for name in names]
    axes.set_yticks(range(len(names)), marked)
    axes.set_ylim(-0.6, len(names) - 0.3)
    lowest = min(row["low"] for row in result["scorers"].values())
    highest = max(row["high"] for row in result["scorers"].values())
    axes.set_xlim(max(0.0, min(0.4, lowest - 0.03)), min(1.0, max(0.6, highest + 0.03)))
    axes.set_xlabel(f"win rate of the tuned model, 95 % interval over {result['n_prompts']} prompts; ties count ½")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


def draw_samples(evaluation: "Evaluation", sides: "list[Side]", store: PairStore, path: Path) -> None:
    """A sheet of pairs: base to the left, tuned to the right, the prompt below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ..store import load_image

    columns = min(4, len(sides))
    rows = -(-len(sides) // columns)
    figure = Figure(figsize=(3.0 * columns, 1.95 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"left: {Path(evaluation.config.baseline or '').name}   right: {Path(evaluation.config.model).name}",
        fontsize=10,
    )
    grid = figure.add_gridspec(rows, columns)
    for at, side in enumerate(sides):
        pair = grid[at // columns, at % columns].subgridspec(1, 2, wspace=0.02)
        words = visible(side.prompt)
        for half, image in enumerate((side.base, side.tuned)):
            axes = figure.add_subplot(pair[0, half])
            axes.imshow(load_image(store.image_path(image)))
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color("#cccccc")
            if half == 0:
                short = words if len(words) <= 44 else words[:43] + "…"
                # matplotlib would read $…$ as mathematics
                axes.set_xlabel(short.replace("$", r"\$"), fontsize=7, loc="left")
    figure.savefig(path, dpi=150)
