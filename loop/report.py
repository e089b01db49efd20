"""The report of a loop: its rounds side by side, in one page beside a folder of images."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import jinja2

from ..core.errors import cannot_write, reading
from ..core.files import write_atomic
from ..core.stats import MIN_PROMPTS
from ..store import PairStore
from ..store.query import visible
from .best import Best
from .config import LoopSettings
from .guards import GUARDS
from .record import RoundResult

PAGE, ASSETS, PLOT = "report.html", "report-images", "win_rates.png"
# apart in lightness as well as in hue, so that they can be told apart in gray
COLORS = ("#1f5fa8", "#c8641f", "#2e8b57", "#8a3ea8", "#8c8c2a", "#555555")
_MARKS = "osD^v*"


def write_report(
    settings: LoopSettings, rounds: Sequence[RoundResult], best: Best, stopped: str, store: PairStore
) -> Path:
    """Write report.html into the loop's folder, and its images beside it; returns the page's path."""
    folder = Path(settings.loop.dir)
    assets = folder / ASSETS
    # a scorer may have no result in some rounds; of the rest, the base's images are the same
    scorers = {name: row for result in reversed(rounds) for name, row in result.against_base["scorers"].items()}
    try:
        assets.mkdir(exist_ok=True)
        for image in {image for result in rounds for sample in result.samples for image in sample[1:]}:
            with reading(source := store.image_path(UUID(image))):
                data = source.read_bytes()
            (assets / f"{UUID(image).hex}.png").write_bytes(data)
        plot_win_rates(rounds, assets / PLOT)
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
        )
    except OSError as error:
        raise cannot_write(folder / PAGE, error) from error
    write_atomic(folder / PAGE, page.encode())
    return folder / PAGE


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


def plot_win_rates(rounds: Sequence[RoundResult], path: Path) -> None:
    """Each scorer's win rate against the base, by round, with intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = list(dict.fromkeys(name for result in rounds for name in result.against_base["scorers"]))
    for place, name in enumerate(names):
        rows = [result.against_base["scorers"].get(name) for result in rounds]
        shift = (
            0.12 * (place - (len(names) - 1) / 2) / max(1, len(names) - 1) * 2
        )  # so that intervals do not hide one another
        points = [(result.number + shift, row) for result, row in zip(rounds, rows, strict=True) if row is not None]
        color, in_sample = COLORS[place % len(COLORS)], any(row["in_sample"] for _, row in points)
        for x, row in points:
            if row["win_rate_low"] is not None:
                axes.plot([x, x], [row["win_rate_low"], row["win_rate_high"]], color=color, linewidth=1.5, alpha=0.6)
        axes.plot(
            [0, *(x for x, _ in points)],
            [0.5, *(row["win_rate"] for _, row in points)],
            marker=_MARKS[place % len(_MARKS)],
            color=color,
            linestyle="--" if in_sample else "-",
            markerfacecolor="white" if in_sample else color,
            label=f"{name} (in-sample)" if in_sample else name,
        )
    axes.axhline(0.5, color="#888888", linestyle=":", linewidth=1, zorder=0)
    axes.set_xticks(range(len(rounds) + 1), ["base", *(f"round {result.number}" for result in rounds)])
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")  # ticks can be at 52.5 %
    axes.set_ylabel("win rate against the base")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)
