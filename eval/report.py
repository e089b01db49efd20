"""A report that is one folder and opens from disk: table, plot, images side by side."""

import json
import math
import random
import shutil
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from ..core.errors import cannot_write
from ..core.stats import MIN_PROMPTS, no_interval
from ..store import PairStore
from ..store.query import visible

if TYPE_CHECKING:
    from .config import EvalConfig
    from .result import Evaluation, ImagePair

N_SHOWN = 12
BLUE = "#1f5fa8"
PAGE, FILES = "report.html", ("results.json", "win_rates.png", "samples.png")


def write_report(evaluation: "Evaluation", result: dict, store: PairStore, folder: Path) -> None:
    """Write report.html, results.json, win_rates.png, samples.png and the images they show into the folder, the page first."""
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    scorer = ranking_scorer(evaluation)
    changed = [pair for pair in evaluation.pairs if pair.base != pair.tuned and math.isfinite(_gain(pair, scorer))]
    changed.sort(key=lambda pair: _gain(pair, scorer))
    rng = random.Random(evaluation.config.seed)
    sample = rng.sample(evaluation.pairs, min(N_SHOWN, len(evaluation.pairs)))
    sections = {
        f"Largest wins by {scorer}": [pair for pair in changed[::-1][:N_SHOWN] if _gain(pair, scorer) > 0],
        f"Largest losses by {scorer}": [pair for pair in changed[:N_SHOWN] if _gain(pair, scorer) < 0],
        "Random sample": sample,
    }
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (files("prefloop.eval") / "report.html").read_text()
    )
    cards = {title: [_card(pair) for pair in pairs] for title, pairs in sections.items()}
    tuned, base = model_titles(evaluation.config)
    page = template.render(
        result=result,
        sections=cards,
        config=evaluation.config,
        tuned=visible(tuned),
        base=visible(base),
        no_interval=no_interval,
        min_prompts=MIN_PROMPTS,
    )
    (folder / PAGE).write_text(page)
    for image in {image for pairs in sections.values() for pair in pairs for image in (pair.base, pair.tuned)}:
        shutil.copyfile(store.image_path(image), folder / "images" / f"{image.hex}.png")
    plot_win_rates(result, folder / "win_rates.png")
    draw_samples(evaluation, sample, store, folder / "samples.png")
    (folder / "results.json").write_text(json.dumps(result, indent=1, allow_nan=False))


def ranking_scorer(evaluation: "Evaluation") -> str:
    """The first scorer that made no training label; the first of all if every one did."""
    names = list(evaluation.overall)
    return next((name for name in names if name not in evaluation.in_sample), names[0])


def model_titles(config: "EvalConfig") -> tuple[str, str]:
    """Names of the tuned model and of the baseline without their folders, unless that makes them the same."""
    names = (config.model, config.baseline or "")
    tuned, base = (Path(name).name or name for name in names)
    return names if tuned == base else (tuned, base)


def _gain(pair: "ImagePair", scorer: str) -> float:
    base, tuned = pair.scores[scorer]
    return tuned - base


def _card(pair: "ImagePair") -> dict[str, Any]:
    return {
        "prompt": visible(pair.prompt),
        "base": f"images/{pair.base.hex}.png",
        "tuned": f"images/{pair.tuned.hex}.png",
        "scores": pair.scores,
    }


def plot_win_rates(result: dict, path: Path) -> None:
    """Win rates with their intervals; scorers whose labels trained the model are hollow."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = dict(reversed(result["scorers"].items()))
    figure = Figure(figsize=(7, 1.1 + 0.45 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ends = []
    for height, row in enumerate(rows.values()):
        rate = row["win_rate"]
        interval = [rate if end is None else end for end in (row["win_rate_low"], row["win_rate_high"])]
        ends += interval
        axes.plot(interval, [height, height], color=BLUE, linewidth=2)
        fill = "white" if row["in_sample"] else BLUE
        axes.plot(rate, height, "o", markersize=8, markeredgecolor=BLUE, markerfacecolor=fill)
        label = axes.annotate(
            f"{rate:.1%}", (rate, height), (0, 8), textcoords="offset points", ha="center", fontsize=9
        )
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})  # over the dashed line
    axes.axvline(0.5, color="#888888", linestyle="--", linewidth=1, zorder=0)
    labels = [f"{name} (in-sample)" if row["in_sample"] else name for name, row in rows.items()]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(-0.6, len(rows) - 0.3)
    axes.set_xlim(max(0.0, min(0.4, min(ends) - 0.03)), min(1.0, max(0.6, max(ends) + 0.03)))
    interval = "95 % interval over" if any(row["win_rate_low"] is not None for row in rows.values()) else "no interval:"
    axes.set_xlabel(f"win rate of the tuned model, {interval} {result['n_prompts']} prompts; ties count ½")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


def draw_samples(evaluation: "Evaluation", pairs: "list[ImagePair]", store: PairStore, path: Path) -> None:
    """A sheet of pairs: base on the left, tuned on the right, the prompt below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ..store import load_image

    columns = min(4, len(pairs))
    n_rows = -(-len(pairs) // columns)
    width, height = 3.0 * columns, 1.95 * n_rows + 0.4  # inches
    figure = Figure(figsize=(width, height), dpi=150)
    canvas = FigureCanvasAgg(figure)
    tuned, base = (_plain_text(name) for name in model_titles(evaluation.config))
    figure.suptitle(f"left: {base}   right: {tuned}", fontsize=10, y=1 - 0.05 / height)
    # every cell has the same size, so that nothing needs to be measured
    edges = {"left": 0.06 / width, "right": 1 - 0.06 / width, "bottom": 0.27 / height, "top": 1 - 0.33 / height}
    grid = figure.add_gridspec(n_rows, columns, **edges, wspace=0.04, hspace=0.24)
    for number, pair in enumerate(pairs):
        cell = grid[number // columns, number % columns].subgridspec(1, 2, wspace=0.02)
        for half, image in enumerate((pair.base, pair.tuned)):
            axes = figure.add_subplot(cell[0, half])
            axes.imshow(load_image(store.image_path(image)))
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color("#cccccc")
            if half == 0:
                prompt = visible(pair.prompt)
                short = prompt if len(prompt) <= 44 else prompt[:43] + "…"
                axes.set_xlabel(_plain_text(short), fontsize=7, loc="left")
    canvas.print_png(path)


def _plain_text(text: str) -> str:
    """The text without mathematics, as which matplotlib would read $…$."""
    return text.replace("$", r"\$")
