"""Labels by a judge that compares the two images of a pair; a pair with an answer is not asked about again."""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from uuid import UUID

from ..core.progress import progress
from ..core.signals import StopSignal
from ..store import ImageError, PairStore, PrefloopError, load_image
from .config import RelabelConfig
from .judges.pool import answer_rows, hopeless, judged
from .judges.vlm import ChatJudge
from .labelers import add_labeler
from .scorers.own_code import own_code, prints_to_stderr
from .scorers.registry import Scorer, identity, refuse_changed

if TYPE_CHECKING:
    from PIL.Image import Image

_UNJUDGED = """
    select p.pair_id, q.prompt, p.image_a, fa.path, p.image_b, fb.path, p.prompt_id
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
    rows, known, before = unjudged(store, labeler, sources), False, identity(judge)
    if isinstance(judge, ChatJudge):
        _ask_pairs(store, judge, labeler, rows, config=config, run_id=run_id, stop=stop, counts=counts)
        return +counts
    with progress(len(rows), f"judging by {judge.name}") as bar:
        for start in range(0, len(rows), config.batch_size):
            batch = rows[start : start + config.batch_size]
            pairs, prompts, first, second = [], [], [], []
            for pair, prompt, image_a, path_a, image_b, path_b, _ in batch:
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
            if not known:
                refuse_changed(judge, before)
            labels = [_label(pair, labeler, p, run_id) for pair, p in zip(pairs, answers, strict=True) if p is not None]
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


def _label(pair: UUID, labeler: str, p_a: float, run_id: UUID) -> dict[str, Any]:
    return {
        "pair_id": pair,
        "labeler": labeler,
        "revision": 0,
        "choice": _CHOICE[p_a],
        "p_a": p_a,
        "run_id": run_id,
    }


def _ask_pairs(
    store: PairStore,
    judge: ChatJudge,
    labeler: str,
    rows: Sequence[tuple[Any, ...]],
    *,
    config: RelabelConfig,
    run_id: UUID,
    stop: StopSignal,
    counts: Counter[str],
) -> None:
    """Like `judge_pairs`, for a judge behind an endpoint: many pairs at once, its answers beside the labels."""

    def load(row: tuple[Any, ...]) -> "tuple[str, list[Image], None]":
        _, prompt, image_a, path_a, image_b, path_b, _ = row
        return prompt, [load_image(store.path / path_a, image_a), load_image(store.path / path_b, image_b)], None

    known = False
    finished = judged(judge, rows, load, batch_size=config.batch_size, stop=stop)
    try:
        with progress(len(rows), f"judging by {judge.name}") as bar, closing(finished) as groups:
            for group in groups:
                labels, answers = [], []
                for (pair, _, image_a, _, image_b, _, prompt), judgement in group:
                    if isinstance(judgement, ImageError):
                        counts[f"image {judgement.reason}"] += 1
                        continue
                    images = (image_a, image_b)
                    answers += answer_rows(judge, judgement, prompt=prompt, images=images, pair=pair, run_id=run_id)
                    if judgement.value is None:
                        counts["without an answer"] += 1
                    else:
                        labels.append(_label(pair, labeler, judgement.value, run_id))
                if labels and not known:
                    add_labeler(store, labeler, config, [judge])
                    known = True
                store.append("answers", answers)  # first: no label is without its answers
                store.append("labels", labels)
                counts.update(label["choice"] for label in labels)
                bar.update(len(group))
                if hopeless(counts, len(rows), config.max_unreadable):
                    break
    finally:
        store.try_ingest()
    stop.check(f"{sum(counts[choice] for choice in _CHOICE.values())} pairs judged by {judge.name} are in {store.path}")


def _plain(value: Any) -> Any:
    """What an array or a tensor holds, or the value itself."""
    return value.tolist() if hasattr(value, "tolist") else value


def _answers(
    judge: PairwiseJudge, prompts: list[str], first: "list[Image]", second: "list[Image]"
) -> list[float | None]:
    with own_code(judge):
        answers = [_plain(answer) for answer in _plain(judge.choose(prompts, first, second))]
    if len(answers) != len(prompts):
        raise PrefloopError(
            f"{judge.name} gave {len(answers)} answers for {len(prompts)} pairs; choose() must give one for each"
        )
    for answer in answers:
        if answer is not None and not (isinstance(answer, float | int) and answer in _CHOICE):
            raise PrefloopError(f"{judge.name} answered {str(answer)[:40]!r}; choose() must give 1, 0.5, 0 or None")
    return answers
