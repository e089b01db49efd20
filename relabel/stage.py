"""From scores in the store to labels in the store."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from ..core.ids import canonical
from ..core.signals import StopSignal
from ..store import BadDataError, PairStore, UsageError
from ..store.runs import run
from .config import RelabelConfig, Rule
from .labels import write_labels
from .pairwise import Judge, judge_pairs, unjudged
from .scorers.registry import Scorer, identity, load_scorers
from .scores import IN_PAIRS, score_images, unscored
from .temperature import fitted_temperature

_PLAIN: dict = {"rule": "single", "tie_band": 0.0, "tie_quantile": 0.0, "pairs": "all"}
_PLAIN |= {"temperature": None, "fit_temperature": None}
TRAINING_SOURCES = ("generate", "import")


def relabel(config: RelabelConfig, store: PairStore) -> dict:
    """Score what is unscored, then label every pair by the rule.

    Returns:
        Counts: labeler, pairs, scored (a count for each scorer), labels (by choice), new_labels, bad (by reason, among
        them prompts that were cut);
        seconds and temperatures (for each scorer).

    Raises:
        UsageError: where a scorer may only judge, or the labeler exists with another rule.
        BadDataError: where more images than `max_unreadable` are unreadable, more scores not finite, or more pairs without a
            judge's answer; what could be scored is kept and labelled.
    """
    scorers = load_scorers(config.scorers, config.checkpoints, config.device, config.dtype)
    for scorer in scorers:
        if getattr(scorer, "judge_only", False):
            raise UsageError(
                f"{scorer.name} only judges: labels by it would leave no judge that made none; "
                f"give `--scorer {scorer.name}` to `prefloop eval` instead"
            )
    judges = [scorer for scorer in scorers if isinstance(scorer, Judge)]
    if judges and (len(scorers) > 1 or config != replace(config, **_PLAIN)):
        raise UsageError(f"{judges[0].name} judges pairs by itself: name it alone, without rule, ties, shares or pairs")
    labeler = config.labeler or default_labeler(config.rule, scorers)
    with (
        store.stage_lock("relabel", "-".join(sorted(scorer.name for scorer in scorers))),
        StopSignal().listening() as stop,
    ):
        ((n_pairs,),) = store.rows("select count(*) from pairs where source <> 'eval'")
        if not n_pairs:
            raise UsageError(f"there are no pairs in {store.path}; `prefloop generate --store {store.path}` makes some")
        describe_labeler(store, labeler, config, scorers)
        with run(store, "relabel", config) as this:
            if judges:
                this.summary |= _judged(config, store, judges[0], labeler, this.run_id, stop) | {"pairs": n_pairs}
                return this.summary
            counts: Counter[str] = Counter()
            scored, seconds, not_finite = {}, {}, 0
            for scorer in scorers:
                items = unscored(store, identity(scorer), TRAINING_SOURCES)
                start = time.monotonic()
                found = score_images(store, scorer, items, batch_size=config.batch_size, run_id=this.run_id, stop=stop)
                scored[scorer.name] = found.pop("scored", 0)
                seconds[scorer.name] = time.monotonic() - start
                not_finite += found.pop("not finite", 0)
                counts |= found  # the larger of the two: each scorer meets the same bad pictures
            counts += Counter({"not finite": not_finite})
            too_many = _too_many_not_finite(store, scorers, config.max_unreadable)
            temperatures = _temperatures(config, store, scorers)
            choices, new = write_labels(
                store, labeler, config, scorers, TRAINING_SOURCES, this.run_id, list(temperatures.values())
            )
            this.summary |= {
                "labeler": labeler,
                "pairs": n_pairs,
                "scored": scored,
                "labels": choices,
                "new_labels": new,
                "bad": dict(counts),
                "seconds": seconds,
                "temperatures": temperatures,
            }
            _refuse_bad(counts, store, config.max_unreadable)
            if too_many:
                raise BadDataError(too_many)
    return this.summary


def _judged(
    config: RelabelConfig, store: PairStore, judge: Judge, labeler: str, run_id: UUID, stop: StopSignal
) -> dict:
    counts = judge_pairs(
        store, judge, labeler, TRAINING_SOURCES, batch_size=config.batch_size, run_id=run_id, stop=stop
    )
    query = "select choice, count(*) from current_labels where labeler = ? group by all"
    choices = dict(store.rows(query, [labeler]))
    new = sum(counts.pop(choice, 0) for choice in ("a", "b", "tie"))
    undecided = len(unjudged(store, labeler, TRAINING_SOURCES))
    labels = {choice: choices.get(choice, 0) for choice in ("a", "b", "tie")} | {"undecided": undecided}
    told = {"labeler": labeler, "scored": {judge.name: 0}, "labels": labels, "new_labels": new, "bad": dict(counts)}
    _refuse_bad(counts, store, config.max_unreadable)
    silent, asked = counts["without an answer"], new + counts["without an answer"]
    if silent > config.max_unreadable * asked:
        raise BadDataError(
            f"{judge.name} gave no answer that can be read for {silent} of {asked} pairs, more than --max-unreadable "
            f"{config.max_unreadable:g}; its other answers are kept, and the same command asks for the rest again"
        )
    return told


def _temperatures(config: RelabelConfig, store: PairStore, scorers: Sequence[Scorer]) -> dict[str, float]:
    """Difference of scores that makes one logit, by the scorer's name."""
    if config.fit_temperature is None:
        own = {scorer.name: float(getattr(scorer, "temperature", 1.0)) for scorer in scorers}
        return own if config.temperature is None else dict.fromkeys(own, config.temperature)
    return {scorer.name: fitted_temperature(store, config.fit_temperature, identity(scorer))[0] for scorer in scorers}


def _refuse_bad(counts: Counter[str], store: PairStore, max_unreadable: float) -> None:
    bad = sum(count for reason, count in counts.items() if reason.startswith("image "))
    if not bad:
        return
    ((n_images,),) = store.rows("select count(*) from images")
    if bad > max_unreadable * n_images:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
        raise BadDataError(
            f"{bad} of {n_images} images cannot be used ({reasons}), more than --max-unreadable {max_unreadable:g}; "
            f"`prefloop store check --store {store.path}` names them"
        )


_NOT_FINITE = f"""
    select s.scorer, count(*)
    from scores s
    semi join ({IN_PAIRS}) w on w.prompt_id = s.prompt_id and w.image_id = s.image_id
    where s.scorer in (select unnest($scorers)) and not isfinite(s.score)
    group by s.scorer
"""


def _too_many_not_finite(store: PairStore, scorers: Sequence[Scorer], max_unreadable: float) -> str | None:
    """The line for an error, or None. It counts what is in the store, so that the same command says it again: a score that is
    there is not asked for again."""
    keys = [identity(scorer) for scorer in scorers]
    bad = dict(store.rows(_NOT_FINITE, {"scorers": keys, "sources": list(TRAINING_SOURCES)}))
    all_scores = dict(
        store.rows("select scorer, count(*) from scores where scorer in (select unnest(?)) group by all", [keys])
    )
    told = [
        f"{n} of {all_scores[key]} scores of {key}"
        for key, n in sorted(bad.items())
        if n > max_unreadable * all_scores[key]
    ]
    if not told:
        return None
    return (
        f"{' and '.join(told)} are not finite, more than --max-unreadable {max_unreadable:g}: they decide no pair, and are kept; a "
        "scorer that is mended needs another revision to be asked again"
    )


def default_labeler(rule: Rule, scorers: Sequence[Scorer]) -> str:
    names = [scorer.name for scorer in scorers]
    return names[0] if rule == "single" else f"{rule}:{'+'.join(names)}"


def describe_labeler(store: PairStore, labeler: str, how: RelabelConfig, scorers: Sequence[Scorer]) -> None:
    """Enter a labeler; one of that name that decides otherwise is refused, so that a name means one thing."""
    config: dict = {"rule": how.rule, "scorers": [identity(scorer) for scorer in scorers], "tie_band": how.tie_band}
    settings = {"tie_quantile": how.tie_quantile, "shares": how.scorer_weights}
    settings |= {"temperature": how.temperature, "fit_temperature": how.fit_temperature}
    config |= {name: value for name, value in settings.items() if value}
    if how.select != "all":
        config["pairs"] = how.select
    known = store.rows("select config from labelers where labeler = ?", [labeler])
    if not known:
        kind = "ai" if len(scorers) == 1 else "ensemble"
        store.append("labelers", [{"labeler": labeler, "kind": kind, "config": canonical(config)}])
        store.ingest()
    elif json.loads(known[0][0]) != config:
        raise UsageError(
            f"the labeler {labeler!r} is there and decides by {known[0][0]}, not by {canonical(config)}; "
            "give --labeler another name"
        )
