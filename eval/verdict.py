"""The answer of an evaluation: its first comparisons, each in one sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.stats import MIN_PROMPTS
from ..core.text import percent

ORACLE = "oracle"
"""The scorer of the built-in world whose scores say whether an image satisfies its prompt, 1 or 0."""


def headline(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The comparisons of the named models with their baselines; the first one if no model has one.

    Args:
        result: as `evaluate` returns it.
    """
    baselines = {place["model"]: place["baseline"] for place in result["models"]}
    comparisons = [result, *result["other_comparisons"]]
    return [c for c in comparisons if baselines[c["model"]] == c["baseline"]] or comparisons[:1]


def verdict(compared: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """What the judges whose labels trained neither model say, and how many images satisfy their prompt if the oracle was asked.

    Args:
        compared: one comparison, as `evaluate` returns it.
        names: name of a model → how to call it.
    """
    oracle = compared["scorers"].get(ORACLE)
    if oracle is None:
        return _judgement(compared, names)
    tuned, base = percent(oracle["tuned_mean"]), percent(oracle["base_mean"])
    share = f"{tuned} instead of {base} of the images" if tuned != base else f"{tuned} of the images of either model"
    return f"{_judgement(compared, names)} {share} show everything their prompt asks for, by the {ORACLE}."


def _judgement(compared: Mapping[str, Any], names: Mapping[str, str]) -> str:
    model, baseline = names[compared["model"]], names[compared["baseline"]]
    independent = {name: row for name, row in compared["scorers"].items() if not row["in_sample"]}
    if not compared["scorers"]:
        return "No judge has a result yet."
    if not independent:
        return f"Whether {model} is better than {baseline} is not known: labels by every judge trained it."
    known = {name: row for name, row in independent.items() if row["win_rate_low"] is not None}
    if not known:
        return (
            f"Whether {model} is better than {baseline} is not known: an interval needs at least {MIN_PROMPTS} prompts."
        )
    better = {name: row for name, row in known.items() if row["win_rate_low"] > 0.5}
    worse = {name: row for name, row in known.items() if row["win_rate_high"] < 0.5}
    open_ = {name: row for name, row in known.items() if name not in better and name not in worse}
    if not better and not worse:
        return f"{model} and {baseline} cannot be told apart: it wins {_rates(open_)}."
    rest = f"; undecided: {_rates(open_)}" if open_ else ""
    if better and worse:
        return f"The judges disagree: {model} wins over {baseline} {_rates(better)}, but {_rates(worse)}{rest}."
    word, rows = ("better", better) if better else ("worse", worse)
    return f"{model} is {word} than {baseline}: it wins {_rates(rows)}{rest}."


def sweep_verdict(result: Mapping[str, Any]) -> str:
    """Which checkpoint of a sweep is the best, and by how much on the prompts that did not choose it."""
    sweep = result["sweep"]
    reported = {
        name: {"win_rate": rate["value"], "win_rate_low": rate["low"], "win_rate_high": rate["high"]}
        for name, row in sweep["reported"].items()
        if name in sweep["chosen_by"]
        for rate in [row["win_rate"]]
    }
    better = "" if sweep["chosen_with"] > 0.5 else ", and not better than the baseline"
    return (
        f"The best checkpoint is that of step {sweep['best_step']}{better}: chosen by {' and '.join(sweep['chosen_by'])} on half of "
        f"the prompts; on the other half it wins {_rates(reported)}."
    )


def trained_prompts(comparisons: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """How many of the prompts each tuned model was trained on, in words.

    Args:
        comparisons: of the tuned models with their baselines.
        names: how the models are called.
    """
    if len(comparisons) > 1 and all(compared["n_trained_prompts"] == 0 for compared in comparisons):
        return "none of the tuned models was trained on these prompts"
    return "; ".join(_trained(compared, names[compared["model"]]) for compared in comparisons)


def _trained(compared: Mapping[str, Any], model: str) -> str:
    n = compared["n_trained_prompts"]
    if n is None:
        return f"which of these prompts {model} was trained on is not known"
    return f"{model} was trained on {n or 'none'} of these prompts"


def _rates(rows: Mapping[str, Any]) -> str:
    """Win rates with their intervals, such as "62.0 % (58.1 to 65.9) by hps and …"."""
    texts = []
    for name, row in rows.items():
        low, high = row["win_rate_low"], row["win_rate_high"]
        interval = "" if low is None else f" ({100 * low:.1f} to {100 * high:.1f})"
        texts.append(f"{percent(row['win_rate'])}{interval} by {name}")
    return " and ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else texts[0]
