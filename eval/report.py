"""A report that is one folder and opens from disk: the answer, tables, a plot, images side by side."""

import json
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import jinja2

from ..core.errors import cannot_write
from ..core.stats import MIN_PROMPTS, no_interval
from ..store import PairStore
from ..store.query import visible
from .config import HUMAN
from .verdict import headline, short_names, trained_prompts, verdict

if TYPE_CHECKING:
    from .result import Evaluation

N_SHOWN = 12
BLUE = "#1f5fa8"
PAGE, FILES = "report.html", ("results.json", "win_rates.png", "samples.png")


@dataclass(frozen=True)
class Shown:
    """The images of one prompt and index by all models, in the order of the evaluation's models."""

    prompt: str
    images: tuple[UUID, ...]
    scores: dict[str, tuple[float, ...]]
    """Scorer → score of each image; nan without a score."""
    votes: float
    """As in ImagePair; nan if there are more than two models."""

    def gain(self, judge: str) -> float:
        """How much better the first model's image is than the last one's, in the judge's unit."""
        return self.votes - 0.5 if judge == HUMAN else self.scores[judge][0] - self.scores[judge][-1]

    def spread(self, judge: str) -> float:
        return abs(self.votes - 0.5) if judge == HUMAN else max(self.scores[judge]) - min(self.scores[judge])


def write_report(evaluation: "Evaluation", result: dict, store: PairStore, folder: Path) -> None:
    """Write report.html, results.json, win_rates.png, samples.png and the images they show into the folder, the page first."""
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    everything = shown(evaluation)
    rng = random.Random(evaluation.config.seed)
    sample = rng.sample(everything, min(N_SHOWN, len(everything)))
    sections = _sections(evaluation, everything) | {"Random sample": sample}
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (files("prefloop.eval") / "report.html").read_text()
    )
    titles = {name: visible(title) for name, title in short_names(evaluation.lineup.names).items()}
    names = [titles[name] for name in evaluation.lineup.names]
    comparisons, first = [result, *result["other_comparisons"]], headline(result)
    page = template.render(
        result=result,
        others=[c for c in comparisons if c not in first],
        answer=lambda compared: verdict(compared, titles),
        headline=first,
        sections={title: [_card(item) for item in items] for title, items in sections.items()},
        config=evaluation.config,
        titles=titles,
        names=names,
        trained="; ".join(
            trained_prompts(c, titles[c["model"]] if len(names) > 2 else "the tuned model") for c in first
        ),
        heading=f"{', '.join(names[:-1])} and {names[-1]} compared"
        if len(names) > 2
        else " compared with ".join(names),
        matrices=_matrices(result),
        in_sample={name for c in comparisons for name, row in c["scorers"].items() if row["in_sample"]},
        no_interval=no_interval,
        min_prompts=MIN_PROMPTS,
        human=HUMAN,
    )
    (folder / PAGE).write_text(page)
    for image in {image for items in sections.values() for item in items for image in item.images}:
        shutil.copyfile(store.image_path(image), folder / "images" / f"{image.hex}.png")
    plot_win_rates(first, titles, folder / "win_rates.png")
    draw_samples(names, sample, store, folder / "samples.png")
    (folder / "results.json").write_text(json.dumps(result, indent=1, allow_nan=False))


def shown(evaluation: "Evaluation") -> list[Shown]:
    """Everything that was generated, side by side."""
    columns: dict[int, list[tuple[UUID, dict[str, float]]]] = {}
    for compared in evaluation.comparisons:
        for model, place in ((compared.tuned, 1), (compared.base, 0)):
            columns[model] = [
                ((pair.base, pair.tuned)[place], {name: both[place] for name, both in pair.scores.items()})
                for pair in compared.pairs
            ]
    of_models = [columns[model] for model in range(len(evaluation.lineup.names))]
    first = evaluation.comparisons[0].pairs
    two = len(evaluation.lineup.names) == 2
    items = []
    for pair, *cells in zip(first, *of_models, strict=True):
        scores = {name: tuple(scores[name] for _, scores in cells) for name in pair.scores}
        items.append(Shown(pair.prompt, tuple(image for image, _ in cells), scores, pair.votes if two else math.nan))
    return items


def _sections(evaluation: "Evaluation", everything: list[Shown]) -> dict[str, list[Shown]]:
    """Where a judge sees the largest differences."""
    judge = ranking_judge(evaluation)
    if judge is None or (judge == HUMAN and len(evaluation.lineup.names) > 2):
        return {}
    if len(evaluation.lineup.names) > 2:
        differing = [item for item in everything if math.isfinite(item.spread(judge)) and len(set(item.images)) > 1]
        return {f"Largest differences by {judge}": sorted(differing, key=lambda item: -item.spread(judge))[:N_SHOWN]}
    changed = [item for item in everything if len(set(item.images)) > 1 and math.isfinite(item.gain(judge))]
    changed.sort(key=lambda item: item.gain(judge))
    return {
        f"Largest wins by {judge}": [item for item in changed[::-1][:N_SHOWN] if item.gain(judge) > 0],
        f"Largest losses by {judge}": [item for item in changed[:N_SHOWN] if item.gain(judge) < 0],
    }


def ranking_judge(evaluation: "Evaluation") -> str | None:
    """The first judge that made no training label; the first of all if every one did; None without any."""
    compared = evaluation.comparisons[0]
    names = list(compared.overall)
    return next((name for name in names if name not in compared.background.in_sample), names[0] if names else None)


def _matrices(result: dict) -> dict[str, list[list[dict | None]]]:
    """Judge → the row's comparison with each column's model, from the row's side; models as ranked by that judge."""
    cells = {}
    for compared in [result, *result["other_comparisons"]]:
        for judge, row in compared["scorers"].items():
            cells[judge, compared["model"], compared["baseline"]] = row
            ends = {
                name: None if row[other] is None else 1 - row[other]
                for name, other in (("win_rate_low", "win_rate_high"), ("win_rate_high", "win_rate_low"))
            }
            cells[judge, compared["baseline"], compared["model"]] = row | ends | {"win_rate": 1 - row["win_rate"]}
    ordered = {judge: [place["model"] for place in ranks] for judge, ranks in result["ranks"].items()}
    return {judge: [[cells.get((judge, a, b)) for b in models] for a in models] for judge, models in ordered.items()}


def _card(item: Shown) -> dict[str, Any]:
    return {
        "prompt": visible(item.prompt),
        "images": [f"images/{image.hex}.png" for image in item.images],
        "scores": item.scores,
        "votes": item.votes,
    }


def plot_win_rates(comparisons: Sequence[Mapping[str, Any]], titles: Mapping[str, str], path: Path) -> None:
    """Win rates with their intervals; scorers whose labels trained the model are hollow."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    many = len(comparisons) > 1
    rows = [
        (f"{name}{' (in-sample)' if row['in_sample'] else ''}" + (f": {titles[c['model']]}" if many else ""), row)
        for c in comparisons
        for name, row in c["scorers"].items()
    ][::-1]
    figure = Figure(figsize=(7, 1.1 + 0.45 * max(1, len(rows))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ends = []
    for height, (_, row) in enumerate(rows):
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
    axes.set_yticks(range(len(rows)), [_plain_text(label) for label, _ in rows])
    axes.set_ylim(-0.6, max(1, len(rows)) - 0.3)
    axes.set_xlim(
        max(0.0, min([0.4, *(end - 0.03 for end in ends)])), min(1.0, max([0.6, *(end + 0.03 for end in ends)]))
    )
    interval = "95 % interval over" if any(row["win_rate_low"] is not None for _, row in rows) else "no interval:"
    # centered below the figure: below the axes it would be cut off beside long names
    figure.supxlabel(
        f"win rate of the tuned model, {interval} {comparisons[0]['n_prompts']} prompts; ties count ½", fontsize=10
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")  # ticks can be at 52.5 %
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


def draw_samples(titles: Sequence[str], items: Sequence[Shown], store: PairStore, path: Path) -> None:
    """A sheet of images: of each prompt the baseline's on the left, then the others; the prompt below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ..store import load_image

    n_models = len(titles)
    columns = min(max(1, 8 // n_models), len(items))
    n_rows = -(-len(items) // columns)
    width, height = 1.5 * n_models * columns, 1.95 * n_rows + 0.4  # inches
    figure = Figure(figsize=(width, height), dpi=150)
    canvas = FigureCanvasAgg(figure)
    plain = [_plain_text(title) for title in reversed(titles)]
    names = f"left: {plain[0]}   right: {plain[1]}" if n_models == 2 else f"left to right: {', '.join(plain)}"
    figure.suptitle(names, fontsize=10, y=1 - 0.05 / height)
    # every cell has the same size, so that nothing needs to be measured
    edges = {"left": 0.06 / width, "right": 1 - 0.06 / width, "bottom": 0.27 / height, "top": 1 - 0.33 / height}
    grid = figure.add_gridspec(n_rows, columns, **edges, wspace=0.04, hspace=0.24)
    for number, item in enumerate(items):
        cell = grid[number // columns, number % columns].subgridspec(1, n_models, wspace=0.02)
        for place, image in enumerate(reversed(item.images)):
            axes = figure.add_subplot(cell[0, place])
            axes.imshow(load_image(store.image_path(image)))
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color("#cccccc")
            if place == 0:
                prompt = visible(item.prompt)
                short = prompt if len(prompt) <= 44 else prompt[:43] + "…"
                axes.set_xlabel(_plain_text(short), fontsize=7, loc="left")
    canvas.print_png(path)


def _plain_text(text: str) -> str:
    """The text without mathematics, as which matplotlib would read $…$."""
    return text.replace("$", r"\$")
