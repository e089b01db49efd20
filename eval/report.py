"""A report that is one folder and opens from disk: the answer, tables, a plot, and images to compare."""

import json
import math
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import jinja2

from ..core.errors import writing
from ..core.files import write_atomic
from ..core.report_script import SCRIPT, SCRIPT_SOURCE
from ..core.stats import MIN_PROMPTS, no_interval
from ..core.text import short_names, visible
from ..store import PairStore
from .config import HUMAN
from .lost import lost_images
from .plots import plot_curves, plot_win_rates
from .sheet import draw_sheet
from .verdict import ORACLE, headline, sweep_verdict, trained_prompts, verdict

if TYPE_CHECKING:
    from .result import Evaluation

N_SHOWN, N_SHEET = 12, 24
PAGE, FILES = "report.html", ("results.json", "win_rates.png", "win_rates-dark.png", "samples.png")
MIN_SIDE, MAX_SIDE = 256, 512
"""Pixels of a wide page that an image takes: four times its own width, within these bounds."""


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

    def marks(self, judge: str | None) -> list[bool | None]:
        """Of each image: whether it satisfies its prompt, by a judge that says so; else the best of them, if it is one."""
        if judge is None or (judge == HUMAN and (math.isnan(self.votes) or self.votes == 0.5)):
            return [None] * len(self.images)
        if judge == HUMAN:
            return [True, None] if self.votes > 0.5 else [None, True]
        scores = self.scores[judge]
        if judge == ORACLE:
            return [None if math.isnan(score) else score == 1 for score in scores]
        best = max((score for score in scores if math.isfinite(score)), default=math.nan)
        return [(score == best and scores.count(best) == 1) or None for score in scores]

    def is_tie(self, judge: str | None) -> bool:
        """Whether the judge finds no difference between the images."""
        if judge is None:
            return False
        return self.votes == 0.5 if judge == HUMAN else self.spread(judge) == 0

    def spread(self, scorer: str) -> float:
        """The best score minus the worst; nan if one is missing."""
        scores = self.scores[scorer]
        return max(scores) - min(scores) if all(map(math.isfinite, scores)) else math.nan


def marks_text(judge: str) -> str:
    if judge == ORACLE:
        return "✓ shows everything its prompt asks for, ✗ does not"
    return f"✓ better by {judge}"


def write_report(evaluation: "Evaluation", result: dict, store: PairStore, folder: Path) -> None:
    """Write report.html, results.json, the plot, samples.png and the images they show into the folder, the page first. A prompt
    one of whose images is lost is not shown."""
    with writing(folder):
        _write_report(evaluation, result, store, folder)


def _write_report(evaluation: "Evaluation", result: dict, store: PairStore, folder: Path) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    everything, judge = shown(evaluation), ranking_judge(evaluation)
    rng = random.Random(evaluation.config.seed)
    sheet = rng.sample(everything, min(N_SHEET, len(everything)))
    sections = _sections(evaluation, everything) | {"Random sample": sheet[:N_SHOWN]}
    images = {image for items in (sheet, *sections.values()) for item in items for image in item.images}
    lost = lost_images(store, images, "the report")
    sections = {title: [item for item in items if lost.isdisjoint(item.images)] for title, items in sections.items()}
    sheet = [item for item in sheet if lost.isdisjoint(item.images)]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (files("prefloop.eval") / "report.html").read_text()
    )
    titles = {name: visible(title) for name, title in short_names(evaluation.lineup.names).items()}
    names = [titles[name] for name in evaluation.lineup.names]
    comparisons, first = [result, *result["other_comparisons"]], headline(result)
    sizes = _sizes(store, {image for items in sections.values() for item in items for image in item.images})
    widest = max((width for width, _ in sizes.values()), default=MAX_SIDE)
    page = template.render(
        script=SCRIPT,
        script_source=SCRIPT_SOURCE,
        judge=judge,
        oracle=judge == ORACLE,
        side=min(MAX_SIDE, max(MIN_SIDE, 4 * widest)),
        result=result,
        others=[c for c in comparisons if c not in first],
        answer=lambda compared: verdict(compared, titles),
        headline=first,
        sections={title: [_card(item, judge, names, sizes) for item in items] for title, items in sections.items()},
        config=evaluation.config,
        titles=titles,
        names=names,
        trained=trained_prompts(first, titles if len(names) > 2 else {first[0]["model"]: "the tuned model"}),
        heading=f"{', '.join(names[:-1])} and {names[-1]} compared"
        if len(names) > 2
        else " compared with ".join(names),
        matrices=_matrices(result),
        sweep=None if result["sweep"] is None else sweep_verdict(result),
        in_sample={name for c in comparisons for name, row in c["scorers"].items() if row["in_sample"]},
        no_interval=no_interval,
        min_prompts=MIN_PROMPTS,
        marks=None if judge is None else marks_text(judge),
        human=HUMAN,
    )
    # by its mark the folder is known as a report's: half a page would keep the same command from writing it again
    write_atomic(folder / PAGE, page.encode())
    for image in {image for items in sections.values() for item in items for image in item.images}:
        shutil.copyfile(store.image_path(image), folder / "images" / f"{image.hex}.png")
    if result["sweep"] is not None:
        steps = result["sweep"]["steps"]
        curves: dict[str, list] = {name: [] for c in comparisons for name in c["scorers"]}
        for compared in comparisons:
            for name, row in compared["scorers"].items():
                curves[name].append((steps[compared["model"]], row))
        baselines = {titles[c["baseline"]] for c in comparisons}
        title = f"Win rate against {' and '.join(sorted(baselines))}, by training step"
        plot_curves(curves, folder / "win_rates.png", title, x_label="training step")
    else:
        plot_win_rates(first, titles, folder / "win_rates.png")
    draw_sheet(
        names[::-1],
        [(item.prompt, item.images[::-1], item.marks(judge)[::-1]) for item in sheet],
        "Chosen at random" if judge is None else f"Chosen at random; {marks_text(judge)}",
        store,
        folder / "samples.png",
        columns=max(1, 8 // len(names)),
    )
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


def _sizes(store: PairStore, images: Iterable[UUID]) -> dict[UUID, tuple[int, int]]:
    """Width and height in pixels."""
    query = "select image_id, width, height from images where image_id in (select unnest($images))"
    return {image: (width, height) for image, width, height in store.rows(query, {"images": list(images)})}


def _card(
    item: Shown, judge: str | None, names: Sequence[str], sizes: Mapping[UUID, tuple[int, int]]
) -> dict[str, Any]:
    """What the page shows of one prompt; baselines come first, since they are named last."""
    images = [
        {
            "source": f"images/{image.hex}.png",
            "name": name,
            "mark": mark,
            "width": sizes[image][0],
            "height": sizes[image][1],
        }
        for image, name, mark in zip(item.images, names, item.marks(judge), strict=True)
    ]
    scores = {name: [(score, score == max(of)) for score in of[::-1]] for name, of in item.scores.items()}
    return {
        "prompt": visible(item.prompt),
        "images": images[::-1],
        "same": len(set(item.images)) == 1,
        "tie": item.is_tie(judge),
        "scores": {name: (of, len({score for score, _ in of}) == 1) for name, of in scores.items()},
        "votes": item.votes,
    }
