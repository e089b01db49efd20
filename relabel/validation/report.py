"""A page about choice models that opens from disk: accuracy, calibration, agreement, and the pairs they fight over."""

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from ...core.errors import cannot_write
from ...core.files import refuse_report_over_others
from ...core.text import visible
from ...store import PairStore
from ...store.agreement import agreement
from .validate import BAND_PART, FEWEST_FOR_BAND, Fight, Measured, fights, positions

N_FIGHTS = 60


def write_quality(store: PairStore, labeler: str, measured: list[Measured], folder: Path) -> Path:
    """Write quality.html, calibration.png and the pictures they show into the folder; the page's path.

    Raises:
        UsageError: where files of somebody else would be overwritten.
    """
    refuse_report_over_others(folder, "quality.html", "calibration.png")
    shown = fights(store, N_FIGHTS)
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        environment.filters["visible"] = visible
        template = environment.from_string((files("prefloop.relabel.validation") / "quality.html").read_text())
        page = folder / "quality.html"
        page.write_text(
            template.render(
                labeler=visible(labeler),
                measured=measured,
                band_part=BAND_PART,
                fewest=FEWEST_FOR_BAND,
                positions=positions(store),
                agreement=agreement(store).to_pylist(),
                fights=[_row(fight) for fight in shown],
            )
        )
        for path in sorted({path for fight in shown for path in (fight.image_a, fight.image_b)}):
            if (store.path / path).exists():  # a picture that is gone is missing on the page; the rest is there
                shutil.copyfile(store.path / path, folder / "images" / Path(path).name)
        plot_calibration(measured, labeler, folder / "calibration.png")
    except OSError as error:
        raise cannot_write(folder, error) from error
    return page


def _row(fight: Fight) -> dict[str, Any]:
    return {
        "prompt": visible(fight.prompt),
        "pair_id": fight.pair_id,
        "a": f"images/{Path(fight.image_a).name}",
        "b": f"images/{Path(fight.image_b).name}",
        "for_a": ", ".join(map(visible, fight.for_a)),
        "for_b": ", ".join(map(visible, fight.for_b)),
    }


def plot_calibration(measured: list[Measured], labeler: str, path: Path) -> None:
    """Share right over confidence, a line for each scorer; the diagonal is perfect."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0.5, 1], [0.5, 1], color="#888888", linestyle="--", linewidth=1)
    for one in measured:
        name = visible(one.scorer.split("@")[0]).replace("$", "\\$")
        axes.plot([b.confidence for b in one.bins], [b.right for b in one.bins], "o-", markersize=4, label=name)
    axes.set_xlabel("confidence of the scorer")
    axes.set_ylabel(f"share in which {visible(labeler).replace('$', chr(92) + '$')} chose the same")
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)
