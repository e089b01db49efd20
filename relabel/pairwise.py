"""Labels by a judge that compares the two images of a pair; a pair with an answer is not asked about again."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from uuid import UUID

from ..core.progress import progress
from ..core.signals import StopSignal
from ..store import ImageError, PairStore, PrefloopError, load_image
from .config import RelabelConfig
from .labelers import add_labeler
from .scorers.own_code import own_code, prints_to_stderr
from .scorers.registry import Scorer

if TYPE_CHECKING:
    from PIL.Image import Image

_UNJUDGED = """
    select p.pair_id, q.prompt, p.image_a, fa.path, p.image_b, fb.path
    from pairs p
    join prompts q using (prompt_id)
    join image_files fa on fa.image_id = p.image_a
    join image_files fb on fb.image_id = p.image_b
    anti join (select pair_id from current_labels where labeler = $labeler) l on l.pair_id = p.pair_id
    where p.source in (select unnest($sources))
    order by p.pair_id
"""
_CHOICE = {1.0: "a", 0.5: "tie", 0.0: "b"}


@runtime_checkable
class PairwiseJudge(Scorer, Protocol):
    """Compares two images instead of scoring each."""

    def choose(
        self, prompts: Sequence[str], first: "Sequence[Image]", second: "Sequence[Image]"
    ) -> Sequence[float | None]:
        """1, ½ or 0 for each pair: the first is better, a tie, the second is better; None without an answer."""
        ...


def unjudged(store: PairStore, labeler: str, sources: Sequence[str]) -> list[tuple[Any, ...]]:
    """Pairs of these sources that have no label of the labeler, with their prompts and the paths of their images."""
    return store.rows(_UNJUDGED, {"labeler": labeler, "sources": list(sources)})


@prints_to_stderr()
def judge_pairs(
    store: PairStore,
    judge: PairwiseJudge,
    labeler: str,
    sources: Sequence[str],
    *,
    config: RelabelConfig,
    run_id: UUID,
    stop: StopSignal,
) -> Counter[str]:
    """Judge the pairs that have no label yet; each batch's labels go into the journal before the next batch.

    Returns:
        Counts: labels by choice, pairs without an answer, and unreadable images by reason.
    """
    counts: Counter[str] = Counter()
    rows, known = unjudged(store, labeler, sources), False
    with progress(len(rows), f"judging by {judge.name}") as bar:
        for start in range(0, len(rows), config.batch_size):
            batch = rows[start : start + config.batch_size]
            pairs, prompts, first, second = [], [], [], []
            for pair, prompt, image_a, path_a, image_b, path_b in batch:
                try:
                    images = load_image(store.path / path_a, image_a), load_image(store.path / path_b, image_b)
                except ImageError as error:
                    counts[f"image {error.reason}"] += 1
                    continue
                pairs.append(pair)
                prompts.append(prompt)
                first.append(images[0])
                second.append(images[1])
            answers = _answers(judge, prompts, first, second) if pairs else []
            labels = [
                {"pair_id": pair, "labeler": labeler, "revision": 0, "choice": _CHOICE[p], "p_a": p, "run_id": run_id}
                for pair, p in zip(pairs, answers, strict=True)
                if p is not None
            ]
            if labels and not known:
                add_labeler(store, labeler, config, [judge])
                known = True
            store.append("labels", labels)
            counts.update(label["choice"] for label in labels)
            counts["without an answer"] += len(pairs) - len(labels)
            bar.update(len(batch))
            stop.check(f"{start + len(batch)} pairs judged by {judge.name} are in {store.path}")
    store.ingest()
    return +counts


def _answers(
    judge: PairwiseJudge, prompts: list[str], first: "list[Image]", second: "list[Image]"
) -> list[float | None]:
    with own_code(judge):
        answers = list(judge.choose(prompts, first, second))
    if len(answers) != len(prompts):
        raise PrefloopError(
            f"{judge.name} gave {len(answers)} answers for {len(prompts)} pairs; choose() must give one for each"
        )
    for answer in answers:
        if answer is not None and answer not in _CHOICE:
            raise PrefloopError(f"{judge.name} answered {str(answer)[:40]!r}; choose() must give 1, 0.5, 0 or None")
    return answers
