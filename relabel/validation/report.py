"""A page about scorers that opens from disk: accuracy, calibration, agreement, and the pairs labelers disagree on."""

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from ...core.errors import cannot_write
from ...core.files import refuse_report_over_others, write_atomic
from ...core.stats import MIN_PROMPTS
from ...core.text import visible
from ...store import PairStore
from ...store.agreement import agreement
from .quality_text import tie_verdict_text, verdict_text, why_no_tie_band
from .validate import Disagreement, ScorerQuality, disagreements, positions

N_DISAGREEMENTS = 60


def write_quality(store: PairStore, labeler: str, qualities: list[ScorerQuality], folder: Path) -> Path:
    """Write quality.html, calibration.png and the images they show into the folder; the page's path.

    Raises:
        UsageError: if somebody else's files would be overwritten.
    """
    refuse_report_over_others(folder, "quality.html", "calibration.png")
    shown = disagreements(store, N_DISAGREEMENTS)
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        environment.filters["visible"] = visible
        template = environment.from_string((files("prefloop.relabel.validation") / "quality.html").read_text())
        page = folder / "quality.html"
        text = template.render(
            labeler=visible(labeler),
            qualities=qualities,
            why_no_tie_band=why_no_tie_band,
            verdict=verdict_text,
            tie_verdict=tie_verdict_text,
            min_prompts=MIN_PROMPTS,
            positions=positions(store),
            agreement=agreement(store).to_pylist(),
            disagreements=[_card(pair) for pair in shown],
        )
        write_atomic(page, text.encode())  # half a page would be taken for somebody else's the next time
        for path in sorted({path for pair in shown for path in (pair.image_a, pair.image_b)}):
            if (store.path / path).exists():  # an image that is gone is missing on the page; everything else is shown
                shutil.copyfile(store.path / path, folder / "images" / Path(path).name)
        plot_calibration(qualities, labeler, folder / "calibration.png")
    except OSError as error:
        raise cannot_write(folder, error) from error
    return page


def _card(pair: Disagreement) -> dict[str, Any]:
    return {
        "prompt": visible(pair.prompt),
        "pair_id": pair.pair_id,
        "a": f"images/{Path(pair.image_a).name}",
        "b": f"images/{Path(pair.image_b).name}",
        "for_a": ", ".join(map(visible, pair.for_a)),
        "for_b": ", ".join(map(visible, pair.for_b)),
    }


def plot_calibration(qualities: list[ScorerQuality], labeler: str, path: Path) -> None:
    """Observed share over confidence, a line for each scorer; the diagonal is perfect."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0.5, 1], [0.5, 1], color="#888888", linestyle="--", linewidth=1)
    for quality in qualities:
        confidence, observed = [b.confidence for b in quality.bins], [b.observed for b in quality.bins]
        axes.plot(confidence, observed, "o-", markersize=4, label=_label(quality))
    axes.set_xlabel("confidence of the scorer")
    axes.set_ylabel(f"share of pairs in which {_plain_text(labeler)} chose the same")
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


def _label(quality: ScorerQuality) -> str:
    return _plain_text(quality.scorer.split("@")[0]) + (" (in-sample)" if quality.in_sample else "")


def _plain_text(name: str) -> str:
    """The name without mathematics, as which matplotlib would read $…$."""
    return visible(name).replace("$", r"\$")
