"""Filters of `browse`: from the address of a page to SQL. Every value is bound; none becomes part of a query."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Self
from urllib.parse import urlencode
from uuid import UUID

from ...core.errors import UsageError

PAGE = 24
"""Pairs on one page."""
SOURCES = ("generate", "pair", "import", "eval")
_LABELS = {
    "text": "prompt contains",
    "labeler": "labeler",
    "choice": "choice",
    "differs": "differs from",
    "min_margin": "margin from",
    "max_margin": "margin to",
    "model": "model",
    "source": "source",
    "run": "run",
    "evaluation": "evaluation",
    "tag": "tag",
}
"""The filters, in the order of the form, and their names for people."""
_HEX = re.compile(r"[0-9a-f]{32}")
_ORDERS = {
    "": "p.pair_id",
    "largest": "l.margin desc nulls last, p.pair_id",
    "smallest": "l.margin nulls last, p.pair_id",
    "prompt": "q.prompt, p.pair_id",
}
_CHOICES = {
    "": "true",
    "decided": "l.choice in ('a', 'b')",
    "tie": "l.choice = 'tie'",
    "skip": "l.choice = 'skip'",
    "none": "l.choice is null",
}
# if no labeler is selected, each pair has the largest margin of all labelers
_ALL_LABELERS = """
    select pair_id, max(labeler) as labeler, max(margin) as margin,
        case when count(distinct choice) = 1 then max(choice) when count(*) filter (where choice in ('a', 'b')) > 0 then 'a' else 'tie' end as choice
    from current_labels group by pair_id"""
_DISAGREED = (
    "select pair_id from current_labels where choice in ('a', 'b') group by pair_id having count(distinct choice) = 2"
)


@dataclass(frozen=True, kw_only=True)
class Filters:
    """All of them are in the address, so that a link shows the same pairs to somebody else."""

    labeler: str = ""
    choice: str = ""
    """decided, tie, skip or none: the labeler's choice."""
    differs: str = ""
    """any, or a labeler: pairs decided in opposite ways."""
    min_margin: str = ""
    max_margin: str = ""
    """Bounds of the labeler's margin, inclusive."""
    model: str = ""
    """Hex digits of the id of a model that generated either image."""
    source: str = ""
    run: str = ""
    """Hex digits of the id of the run that added the pairs."""
    evaluation: str = ""
    """Hex digits of the id of an evaluation that compared the images."""
    tag: str = ""
    """KEY=VALUE of the prompt."""
    text: str = ""
    """Part of the prompt, ignoring case."""
    order: str = ""
    """largest or smallest margin first, or by prompt; by id if empty."""
    page: int = 1

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> "Filters":
        """Filters from the parameters of an address.

        Raises:
            UsageError: naming the invalid one.
        """
        values = {field.name: query[field.name].strip() for field in fields(cls) if field.name in query}
        page = values.pop("page", "") or "1"
        if not re.fullmatch(r"[1-9]\d{0,8}", page, re.ASCII):
            raise UsageError("page must be a number from 1")
        filters = cls(**values, page=int(page))  # type: ignore[arg-type]  # all but page are text
        for name, known in (("choice", _CHOICES), ("order", _ORDERS), ("source", ("", *SOURCES))):
            if getattr(filters, name) not in known:
                raise UsageError(f"{name} must be one of {', '.join(filter(None, known))}")
        for name in ("min_margin", "max_margin"):
            _number(name, getattr(filters, name))
        for name in ("model", "run", "evaluation"):
            if (value := getattr(filters, name)) and not _HEX.fullmatch(value):
                raise UsageError(f"{name} must be the 32 hex digits of its id")
        if filters.tag and "=" not in filters.tag:
            raise UsageError("tag must be KEY=VALUE")
        return filters

    def url(self, **changes: object) -> str:
        """Address of the page with these filters, some of them changed."""
        changed = replace(self, **changes)  # type: ignore[arg-type]  # names are checked by the dataclass
        values = {f.name: getattr(changed, f.name) for f in fields(changed) if getattr(changed, f.name) != f.default}
        return "/pairs?" + urlencode(values) if values else "/pairs"

    def chips(self, names: Mapping[str, str]) -> list[tuple[str, str, str]]:
        """The filters that are set: a name for people, the value, and the address of the page without it.

        Args:
            names: hex digits of the ids of models, runs and evaluations → what they are called.
        """
        chips = []
        for name, label in _LABELS.items():
            if value := getattr(self, name):
                text = {"decided": "a or b", "none": "no label"}.get(value, value) if name == "choice" else value
                chips.append((label, names.get(value, text), self.url(**{name: "", "page": 1})))
        return chips

    def without_each(self) -> list[Self]:
        """These filters without one that is set, for each of them; the order and the page are not filters."""
        return [replace(self, **{name: "", "page": 1}) for name in _LABELS if getattr(self, name)]

    def sql(self) -> tuple[str, dict]:
        """What follows `select …`, without an order, and the values to bind."""
        where, values = [_CHOICES[self.choice]], {}
        labels = _ALL_LABELERS
        if self.labeler:
            labels = "select * from current_labels where labeler = $labeler"
            values["labeler"] = self.labeler
        join = "left join" if self.choice in ("", "none") else "join"
        if self.labeler and self.choice == "":
            join = "join"
        if self.differs == "any":
            where.append(f"p.pair_id in ({_DISAGREED})")
            if self.labeler:
                where.append("l.choice in ('a', 'b')")
        elif self.differs:
            where.append(
                "l.choice in ('a', 'b') and p.pair_id in (select pair_id from current_labels o where o.labeler = $differs "
                "and o.choice in ('a', 'b') and o.choice <> l.choice)"
            )
            values["differs"] = self.differs
        for name, comparison in (("min_margin", ">="), ("max_margin", "<=")):
            number = _number(name, getattr(self, name))
            if number is not None:
                where.append(f"l.margin {comparison} ${name}")
                values[name] = number
        if self.model:
            of_model = "select prompt_id, image_id from image_models where model_id = $model"
            where.append(f"((p.prompt_id, p.image_a) in ({of_model}) or (p.prompt_id, p.image_b) in ({of_model}))")
            values["model"] = UUID(self.model)
        if self.source:
            where.append("p.source = $source")
            values["source"] = self.source
        if self.run:
            where.append("p.run_id = $run")
            values["run"] = UUID(self.run)
        if self.evaluation:
            where.append(
                "p.pair_id in (select pair_id from evaluation_pairs where evaluation_id = $evaluation and pair_id is not null)"
            )
            values["evaluation"] = UUID(self.evaluation)
        if self.tag:
            key, _, value = self.tag.partition("=")
            where.append("json_extract_string(q.tags, $key) = $value")
            values |= {"key": '$."' + key.replace("\\", "\\\\").replace('"', '\\"') + '"', "value": value}
        if self.text:
            where.append("contains(lower(q.prompt), lower($text))")
            values["text"] = self.text
        # join the labels only if needed: there may be millions
        needs_labels = (
            self.labeler
            or self.choice
            or self.differs
            or self.min_margin
            or self.max_margin
            or self.order in ("largest", "smallest")
        )
        source = f"from pairs p join prompts q using (prompt_id) {join} ({labels}) l using (pair_id)"
        if not needs_labels:
            source = "from pairs p join prompts q using (prompt_id)"
        return f"{source} where {' and '.join(where)}", values

    def page_sql(self) -> tuple[str, dict]:
        """The same for one page, in order."""
        query, values = self.sql()
        return f"{query} order by {_ORDERS[self.order]} limit {PAGE} offset {(self.page - 1) * PAGE}", values


def _number(name: str, text: str) -> float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{name} must be a number, got {text[:40]!r}")
    return number
