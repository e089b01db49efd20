"""From scores in the store to labels in the store."""

import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from ..core.ids import content_id
from ..core.signals import StopSignal
from ..store import BadDataError, PairStore, UsageError
from ..store.runs import run
from .config import RelabelConfig
from .judges.request_limits import limit_requests, recording_usage
from .labelers import default_labeler, labeler_exists
from .labels import write_labels
from .pairwise import PairwiseJudge, judge_pairs, unjudged
from .scorers.registry import Scorer, identity, is_eval_only, load_scorers
from .scores import IN_PAIRS, score_images, unscored
from .scoring_pool import scorer_workers
from .temperature import labeler_temperature

_WITHOUT_RULE: dict = {"rule": "single", "tie_band": 0.0, "tie_quantile": 0.0, "select": "all"}
_WITHOUT_RULE |= {"temperature": None, "fit_temperature": None}
TRAINING_SOURCES = ("generate", "pair", "import")


def relabel(config: RelabelConfig, store: PairStore) -> dict:
    """Score the images that have no score, then label the pairs by the rule.

    Returns:
        labeler; pairs; scored (images by scorer); labels (pairs by what the rule says now: a, b, tie, undecided,
        not_selected); new_labels; no_longer_selected (pairs not selected that keep the label of an earlier run);
        excluded (images, scores and answers that decide nothing, by reason); truncated_prompts, seconds and temperatures
        (by scorer); usage (of judges behind an endpoint: requests, prompt_tokens, completion_tokens, cost).

    Raises:
        UsageError: if a scorer is reserved for evaluation, or the labeler exists with another rule.
        BadDataError: if more images than `max_unreadable` are unreadable, more scores not finite, or more pairs without
            a judge's answer; what could be scored is kept and labelled.
    """
    scorers = load_scorers(config.scorers, config.checkpoints, config.device, config.dtype)
    for scorer in scorers:
        if is_eval_only(scorer):
            raise UsageError(
                f"{scorer.name} is reserved for evaluation, so that one judge stays independent of the training labels; "
                f"give `--scorer {scorer.name}` to `prefloop eval` instead"
            )
    limit_requests(scorers, config)
    judges = [scorer for scorer in scorers if isinstance(scorer, PairwiseJudge)]
    if judges and (len(scorers) > 1 or config != replace(config, **_WITHOUT_RULE)):
        raise UsageError(
            f"{judges[0].name} compares pairs by itself: name it alone, without a rule, ties, temperatures or --select"
        )
    if judges and config.workers > 1:
        print(f"{judges[0].name} compares pairs in this process; --workers is not used", file=sys.stderr)
    labeler = config.labeler or default_labeler(config.rule, scorers)
    with (
        store.stage_lock("relabel", _lock_key(scorers)),
        StopSignal().listening() as stop,
    ):
        ((n_pairs,),) = store.rows("select count(*) from pairs where source <> 'eval'")
        if not n_pairs:
            raise UsageError(
                f"there are no pairs in {store.path}; `prefloop generate --store {store.path}` creates some, and `prefloop "
                f"pair --store {store.path}` pairs images that are there"
            )
        labeler_exists(store, labeler, config, scorers)  # with another meaning: refused before anything is scored
        with run(store, "relabel", config) as current_run:
            summary, run_id = current_run.summary, current_run.run_id
            summary |= {"labeler": labeler, "pairs": n_pairs}
            with recording_usage(scorers, summary):
                if judges:
                    _judge(config, store, judges[0], labeler, run_id, stop, summary)
                else:
                    _score_and_label(config, store, scorers, labeler, run_id, stop, summary)
    return summary


def _lock_key(scorers: Sequence[Scorer]) -> str:
    """For a file's name, which a scorer's name may not suit."""
    key = "-".join(sorted(scorer.name for scorer in scorers))
    return key if re.fullmatch(r"[\w.+-]{1,80}", key) else content_id(key.encode()).hex


def _score_and_label(
    config: RelabelConfig,
    store: PairStore,
    scorers: Sequence[Scorer],
    labeler: str,
    run_id: UUID,
    stop: StopSignal,
    summary: dict,
) -> None:
    excluded: Counter[str] = Counter()
    scored, truncated, seconds, not_finite, unanswered, silent = {}, {}, {}, 0, 0, []
    for name, scorer in zip(config.scorers, scorers, strict=True):
        items = unscored(store, identity(scorer), TRAINING_SOURCES)
        start = time.monotonic()
        settings = {"batch_size": config.batch_size, "max_unreadable": config.max_unreadable}
        with scorer_workers(config.workers, name, scorer, config.checkpoints, config.device, config.dtype) as workers:
            counts = score_images(store, scorer, items, run_id=run_id, stop=stop, workers=workers, **settings)
        seconds[scorer.name] = time.monotonic() - start
        scored[scorer.name] = counts.pop("scored", 0)
        truncated[scorer.name] = counts.pop("truncated prompts", 0)
        not_finite += counts.pop("not finite", 0)
        if (n := counts.pop("without an answer", 0)) > config.max_unreadable * (n + scored[scorer.name]):
            silent.append(_silent(scorer, n, n + scored[scorer.name], "images", config.max_unreadable))
        unanswered += n
        excluded |= counts  # the larger count of the two: every scorer meets the same unreadable images
    excluded += Counter({"not finite": not_finite, "without an answer": unanswered})
    too_many = _too_many_not_finite(store, scorers, config.max_unreadable)
    temperatures = _temperatures(config, store, scorers)
    written = write_labels(store, labeler, config, scorers, TRAINING_SOURCES, run_id, list(temperatures.values()))
    summary |= {
        "scored": scored,
        "labels": written.choices,
        "new_labels": written.new,
        "no_longer_selected": written.no_longer_selected,
        "excluded": dict(excluded),
        "truncated_prompts": {name: n for name, n in truncated.items() if n},
        "seconds": seconds,
        "temperatures": temperatures,
    }
    _refuse_unreadable(excluded, store, config.max_unreadable)
    for message in filter(None, [*silent, too_many]):
        raise BadDataError(message)


def _judge(
    config: RelabelConfig,
    store: PairStore,
    judge: PairwiseJudge,
    labeler: str,
    run_id: UUID,
    stop: StopSignal,
    summary: dict,
) -> None:
    counts = judge_pairs(store, judge, labeler, TRAINING_SOURCES, config=config, run_id=run_id, stop=stop)
    query = "select choice, count(*) from current_labels where labeler = ? group by all"
    choices = dict(store.rows(query, [labeler]))
    new = sum(counts.pop(choice, 0) for choice in ("a", "b", "tie"))
    labels = {choice: choices.get(choice, 0) for choice in ("a", "b", "tie")}
    labels |= {"undecided": len(unjudged(store, labeler, TRAINING_SOURCES)), "not_selected": 0}
    summary |= {"scored": {judge.name: 0}, "labels": labels, "new_labels": new, "excluded": dict(counts)}
    summary |= {"no_longer_selected": 0, "truncated_prompts": {}}
    _refuse_unreadable(counts, store, config.max_unreadable)
    silent = counts["without an answer"]
    n_asked = new + silent
    if silent > config.max_unreadable * n_asked:
        raise BadDataError(_silent(judge, silent, n_asked, "pairs", config.max_unreadable))


def _silent(judge: Scorer, n: int, n_asked: int, what: str, max_unreadable: float) -> str:
    """The error message for a judge whose answers cannot be read."""
    return (
        f"{judge.name} gave no readable answer for {n} of {n_asked} {what}, more than --max-unreadable {max_unreadable:g}; "
        f"its other answers are kept, and the same command asks again for these {what}"
    )


def _temperatures(config: RelabelConfig, store: PairStore, scorers: Sequence[Scorer]) -> dict[str, float]:
    """Difference of scores that makes one logit, by the scorer's name."""
    if config.fit_temperature is None:
        own = {scorer.name: float(getattr(scorer, "temperature", 1.0)) for scorer in scorers}
        return own if config.temperature is None else dict.fromkeys(own, config.temperature)
    return {scorer.name: labeler_temperature(store, config.fit_temperature, identity(scorer))[0] for scorer in scorers}


def _refuse_unreadable(excluded: Counter[str], store: PairStore, max_unreadable: float) -> None:
    unreadable = sum(count for reason, count in excluded.items() if reason.startswith("image "))
    if not unreadable:
        return
    ((n_images,),) = store.rows("select count(*) from images")
    if unreadable > max_unreadable * n_images:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(excluded.items()))
        raise BadDataError(
            f"{unreadable} of {n_images} images cannot be used ({reasons}), more than --max-unreadable "
            f"{max_unreadable:g}; `prefloop store check --store {store.path}` names them"
        )


_NOT_FINITE = f"""
    select s.scorer, count(*)
    from scores s
    semi join ({IN_PAIRS}) i on i.prompt_id = s.prompt_id and i.image_id = s.image_id
    where s.scorer in (select unnest($scorers)) and not isfinite(s.score)
    group by s.scorer
"""


def _too_many_not_finite(store: PairStore, scorers: Sequence[Scorer], max_unreadable: float) -> str | None:
    """The error message, or None. It counts what is in the store, so that the same command fails again: a stored score
    is not computed again."""
    keys = [identity(scorer) for scorer in scorers]
    not_finite = dict(store.rows(_NOT_FINITE, {"scorers": keys, "sources": list(TRAINING_SOURCES)}))
    all_scores = dict(
        store.rows("select scorer, count(*) from scores where scorer in (select unnest(?)) group by all", [keys])
    )
    too_many = [
        f"{n} of {all_scores[key]} scores of {key}"
        for key, n in sorted(not_finite.items())
        if n > max_unreadable * all_scores[key]
    ]
    if not too_many:
        return None
    return (
        f"{' and '.join(too_many)} are not finite, more than --max-unreadable {max_unreadable:g}: they decide no pair, "
        "and are kept; give the fixed scorer another revision to score these images again"
    )
