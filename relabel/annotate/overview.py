"""The first page of `browse`: what a store holds. Each part is computed once for each state of the database."""

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from ...core.stats import interval_text
from ...core.text import duration, percent, plural, short_names
from ...store import PairStore
from ...store.agreement import agreement
from ...store.listing import listing
from .filters import Filters
from .output_folders import find_output

MAX_ROWS = 12
"""Comparisons by judge of an evaluation; more are in its report."""
_COUNTS = """
    select
        (select count(*) from prompts), (select count(*) from images), (select count(*) from pairs),
        (select count(*) from labels)"""
_LABELERS = """
    from (
        select
            r.labeler,
            r.kind,
            count(l.pair_id) as labels,
            count(*) filter (where l.choice in ('a', 'b')) as decided,
            count(*) filter (where l.choice = 'tie') as ties
        from labelers r left join current_labels l using (labeler) group by all
    ) order by starts_with(labeler, 'eval:'), labeler"""
_EVALUATIONS = """
    select summary ->> '$.evaluation_id', run_id, summary from runs
    where kind = 'eval' and status = 'done' and summary ->> '$.evaluation_id' is not null
    order by started desc, run_id"""
_RUNS = "select run_id, config, summary from runs where run_id in (select unnest($runs))"


class Overview:
    """Aggregates of a store, kept until another process changes the database."""

    def __init__(self, store: PairStore) -> None:
        self.store = store
        self._kept: dict[str, tuple[tuple[int, int], Any]] = {}
        self._locks: dict[str, threading.Lock] = {}

    def counts(self) -> dict[str, int]:
        """Rows of prompts, images, pairs and labels."""
        names = ("prompts", "images", "pairs", "labels")
        return self.once("counts", lambda: dict(zip(names, self.store.rows(_COUNTS)[0], strict=True)))

    def labelers(self) -> list[dict[str, Any]]:
        """labeler, kind, labels, and of these decided (a or b) and ties; those of evaluations last."""
        return self.once("labelers", lambda: self.store.sql(_LABELERS).to_pylist())

    def agreement(self) -> list[dict[str, Any]]:
        """The rows of `prefloop store agreement`, numbers and intervals as text."""
        return self.once("agreement", lambda: [_agreement_row(row) for row in agreement(self.store).to_pylist()])

    def evaluations(self, limit: int) -> list[dict[str, Any]]:
        """The newest evaluations, as they were reported last: evaluation_id, run_id, and rows of models and judges."""

        def read() -> list[dict[str, Any]]:
            newest: dict[str, dict[str, Any]] = {}
            for identity, run, summary in self.store.rows(_EVALUATIONS):
                # that of an earlier prefloop has no list of models
                if identity not in newest and len(newest) < limit and '"models"' in summary:
                    newest[identity] = {"id": UUID(identity).hex, "run": run.hex} | _win_rates(json.loads(summary))
            return list(newest.values())

        return self.once(f"evaluations {limit}", read)

    def runs(self, limit: int) -> tuple[list[dict[str, Any]], int]:
        """The newest runs, as `prefloop store ls` lists them, with their result, settings and output; and how many there are."""
        listed = self.once("runs", lambda: listing(self.store, ["runs"])["runs"].to_pylist())
        rows = [dict(row) for row in listed[::-1][:limit]]
        ids = [UUID(str(row["run_id"])) for row in rows]
        details = {
            run: (json.loads(config or "{}"), json.loads(summary or "{}"))
            for run, config, summary in self.store.rows(_RUNS, {"runs": ids})
        }
        for row, run in zip(rows, ids, strict=True):
            config, summary = details.get(run, ({}, {}))
            row |= {
                "run_id": run,
                "config": config,
                "summary": summary,
                "duration": None if row["seconds"] is None else duration(row["seconds"]),
                "result": result_text(row["kind"], summary),
                "output": find_output(self.store, run, row["kind"], row["status"], config, summary),
                "pairs_url": _pairs_url(row, run, summary),
            }
        models = short_names(list(dict.fromkeys(row["model"] for row in rows if row["model"])))
        for row in rows:
            row["model_title"] = models.get(row["model"], "")
        return rows, len(listed)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value for the present state of the database. Nobody computes it twice at the same time."""
        with self._locks.setdefault(name, threading.Lock()):
            status = self.store.database.stat()
            state = status.st_mtime_ns, status.st_size
            if name not in self._kept or self._kept[name][0] != state:
                self._kept[name] = state, compute()
            return self._kept[name][1]


def result_text(kind: str, summary: Mapping[str, Any]) -> str:
    """What a run found, in a few words; empty if that is only what it added, or it is not done."""
    if kind == "train" and isinstance(validation := summary.get("validation"), dict):
        accuracy = validation.get("implicit_accuracy")
        return "" if accuracy is None else f"implicit accuracy {percent(accuracy)} on held-out pairs"
    if kind == "eval" and (judges := summary.get("scorers")):
        names = _judges(summary)
        name = next((name for name in names if not judges[name]["in_sample"]), names[0])
        more = f", {len(judges) - 1} more" if len(judges) > 1 else ""
        return f"wins {percent(judges[name]['win_rate'])} by {name}{more}"
    if kind == "relabel" and isinstance(labels := summary.get("labels"), dict):
        decided = labels.get("a", 0) + labels.get("b", 0)
        return f"{decided:,} decided, {plural(labels.get('tie', 0), 'tie')}"
    return ""


def _pairs_url(row: Mapping[str, Any], run: UUID, summary: Mapping[str, Any]) -> str:
    """The pairs that a run added, labelled or compared; empty if it did none of it."""
    if row["kind"] == "eval" and (evaluation := summary.get("evaluation_id")):
        return Filters(evaluation=UUID(evaluation).hex).url()
    if row["pairs"] and row["kind"] != "train":
        return Filters(run=run.hex).url()
    if row["labeler"] and ", " not in row["labeler"]:
        return Filters(labeler=row["labeler"]).url()
    return ""


def _judges(summary: Mapping[str, Any]) -> list[str]:
    """The judges of an evaluation in the order in which they were named; the store sorts them."""
    order = [name for name, _ in summary.get("scorer_ids", ())]
    return sorted(summary["scorers"], key=lambda name: order.index(name) if name in order else len(order))


def _win_rates(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of an evaluation: its models against their baselines, or the first comparison, by every judge."""
    baselines = {place["model"]: place["baseline"] for place in summary["models"]}
    comparisons = [summary, *summary["other_comparisons"]]
    first = [c for c in comparisons if baselines.get(c["model"]) == c["baseline"]] or comparisons[:1]
    titles, labelers = short_names(list(baselines)), {name: f"eval:{scorer}" for name, scorer in summary["scorer_ids"]}
    rows = []
    for compared in first:
        for judge in _judges(compared | {"scorer_ids": summary["scorer_ids"]}):
            row = compared["scorers"][judge]
            low, high, n = row.get("win_rate_low"), row.get("win_rate_high"), row["n_prompts"]
            rows.append(
                {
                    "model": titles[compared["model"]],
                    "baseline": titles[compared["baseline"]],
                    "judge": judge,
                    "labeler": labelers.get(judge, ""),
                    "in_sample": row["in_sample"],
                    "win_rate": percent(row["win_rate"]),
                    "interval": interval_text(low, high, n) + ("" if low is None else " %"),
                    "n_prompts": n,
                }
            )
    return {"name": summary["name"], "rows": rows[:MAX_ROWS], "n_more": max(0, len(rows) - MAX_ROWS)}


def _agreement_row(row: Mapping[str, Any]) -> dict[str, Any]:
    def text(name: str, form: str | None = None) -> str:
        value, low, high = (row[name + end] for end in ("", "_low", "_high"))
        if value is None:
            return ""
        number = percent(value) if form is None else f"{value:{form}}"
        return f"{number} ({interval_text(low, high, row['n_prompts'], form)})"

    labeler, other = row["labeler"], row["other"]
    return {
        "labeler": labeler,
        "other": other,
        "n": row["n"],
        "agree": text("agree"),
        "kappa": text("kappa", ".2f"),
        "n_decided": row["n_decided"],
        "url": "" if labeler == other else Filters(labeler=labeler, differs=other).url(),
    }
