"""The report of a loop: its rounds side by side, in one page beside a folder of images."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import jinja2

from ..core.errors import cannot_write, reading
from ..core.files import write_atomic
from ..core.stats import MIN_PROMPTS
from ..core.text import visible
from ..eval.lost import lost_images
from ..eval.plots import dark, plot_curves
from ..eval.report import marks_text
from ..eval.sheet import draw_sheet
from ..eval.verdict import ORACLE
from ..store import PairStore
from .best import Best
from .config import LoopSettings
from .guards import GUARDS
from .record import RoundResult

PAGE, ASSETS, PLOT, SHEET = "report.html", "report-images", "win_rates.png", "rounds.png"


def write_report(
    settings: LoopSettings, rounds: Sequence[RoundResult], best: Best, stopped: str, store: PairStore
) -> Path:
    """Write report.html into the loop's folder, and its images beside it; returns the page's path."""
    folder = Path(settings.loop.output_dir)
    assets = folder / ASSETS
    rounds = _without_lost_samples(rounds, store)
    # a scorer may have no result in some rounds; of the rest, the base's images are the same
    scorers = {name: row for result in reversed(rounds) for name, row in result.against_base["scorers"].items()}
    try:
        assets.mkdir(exist_ok=True)
        for image in {image for result in rounds for sample in result.samples for image in sample[1:]}:
            with reading(source := store.image_path(UUID(image))):
                data = source.read_bytes()
            (assets / f"{UUID(image).hex}.png").write_bytes(data)
        plot_win_rates(rounds, visible(settings.loop.model), assets / PLOT)
        draw_rounds(rounds, store, assets / SHEET)
        template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
            (files("prefloop.loop") / "report.html").read_text()
        )
        page = template.render(
            model=visible(settings.loop.model),
            prompts=visible(rounds[0].against_base["prompts"]),
            settings=rounds[0].against_base["settings"],
            n_evaluated=len(rounds[0].prompts),
            rounds=rounds,
            best=best,
            stopped=visible(stopped),
            scorers={name: row["in_sample"] for name, row in scorers.items()},
            base_means={name: row["base_mean"] for name, row in scorers.items()},
            guards=_guards(rounds),
            links={result.number: _links(result, folder) for result in rounds},
            bounds={name: guard.bounds for name, guard in GUARDS.items()},
            meanings={name: guard.meaning for name, guard in GUARDS.items()},
            samples=_samples(rounds),
            min_prompts=MIN_PROMPTS,
            assets=ASSETS,
            plot=PLOT,
            dark_plot=dark(Path(PLOT)).name,
        )
    except OSError as error:
        raise cannot_write(folder / PAGE, error) from error
    write_atomic(folder / PAGE, page.encode())
    return folder / PAGE


def _without_lost_samples(rounds: Sequence[RoundResult], store: PairStore) -> list[RoundResult]:
    """The rounds with the sampled prompts that can be shown."""
    samples = [sample for result in rounds for sample in result.samples]
    lost = lost_images(store, (UUID(image) for sample in samples for image in sample[1:]), "the loop's report")
    unseen = {prompt for prompt, *images in samples if not lost.isdisjoint(map(UUID, images))}
    return [replace(one, samples=[sample for sample in one.samples if sample[0] not in unseen]) for one in rounds]


def _links(result: RoundResult, folder: Path) -> dict[str, str]:
    """The reports of a round's evaluations, relative to the loop's folder."""
    reports = {"base": result.against_base["report"]}
    if result.against_previous["report"] != result.against_base["report"]:
        reports[f"round {result.number - 1}"] = result.against_previous["report"]
    return {
        title: quote((Path(report) / "report.html").relative_to(folder).as_posix())
        for title, report in reports.items()
        if Path(report).is_relative_to(folder)
    }


def _guards(rounds: Sequence[RoundResult]) -> dict[str, list[float | None]]:
    """Ratio of each measurement to the base's images, by round."""
    names = [name for name in GUARDS if any(name in result.guards for result in rounds)]
    return {
        name: [
            result.guards[name] / base if (base := result.base_guards.get(name)) and name in result.guards else None
            for result in rounds
        ]
        for name in names
    }


def _samples(rounds: Sequence[RoundResult]) -> list[dict[str, Any]]:
    """Each sampled prompt with its image of the base and of every round."""
    by_prompt: dict[str, list[str]] = {}
    for result in rounds:
        for prompt, base, tuned in result.samples:
            by_prompt.setdefault(prompt, [base]).append(tuned)
    return [
        {"prompt": visible(prompt), "images": [f"{ASSETS}/{UUID(image).hex}.png" for image in images]}
        for prompt, images in by_prompt.items()
    ]


def plot_win_rates(rounds: Sequence[RoundResult], model: str, path: Path) -> None:
    """Each scorer's win rate against the base, by round, with intervals."""
    names = dict.fromkeys(name for result in rounds for name in result.against_base["scorers"])
    curves = {
        name: [
            (result.number, result.against_base["scorers"][name])
            for result in rounds
            if name in result.against_base["scorers"]
        ]
        for name in names
    }
    ticks = {0: "base"} | {result.number: str(result.number) for result in rounds}
    plot_curves(curves, path, f"Win rate against {Path(model).name or model}, by round", ticks, "round")


def draw_rounds(rounds: Sequence[RoundResult], store: PairStore, path: Path) -> None:
    """A sheet of the sampled prompts: the base's image and that of each round, marked if the oracle judged them."""
    by_prompt: dict[str, list[str]] = {}
    for result in rounds:
        for prompt, base, tuned in result.samples:
            by_prompt.setdefault(prompt, [base]).append(tuned)
    scores = {
        (prompt, image): score
        for prompt, image, score in store.rows(
            """select q.prompt, x.image_id, x.score from scores x join scorers s using (scorer) join prompts q using (prompt_id)
            where s.name = $name and q.prompt in (select unnest($prompts))""",
            {"name": ORACLE, "prompts": list(by_prompt)},
        )
    }
    items = []
    for prompt, names in by_prompt.items():
        images = [UUID(name) for name in names]
        found = [scores.get((prompt, image)) for image in images]
        items.append((prompt, images, [None if score is None else score == 1 for score in found]))
    judged = f"; {marks_text(ORACLE)}" if scores else ""
    titles = ["base", *(f"round {result.number}" for result in rounds)]
    heading = f"Held-out prompts chosen at random, from the same noise in every round{judged}"
    draw_sheet(titles, items, heading, store, path, columns=max(1, 10 // len(titles)))
