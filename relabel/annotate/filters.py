"""What `browse` is asked for, from the address of a page to SQL. Every value is bound; none becomes part of a query."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from urllib.parse import urlencode
from uuid import UUID

from ...core.errors import UsageError

PAGE = 24
_HEX = re.compile(r"[0-9a-f]{32}")
_ORDERS = {
    "": "p.pair_id",
    "surest": "l.margin desc nulls last, p.pair_id",
    "closest": "l.margin nulls last, p.pair_id",
    "prompt": "q.prompt, p.pair_id",
}
_CHOICES = {
    "": "true",
    "decided": "l.choice in ('a', 'b')",
    "tie": "l.choice = 'tie'",
    "skip": "l.choice = 'skip'",
    "none": "l.choice is null",
}
# of a pair chosen by no labeler in particular: the widest margin, so that margins can be asked for anyhow
_LABELS = """
    select pair_id, max(labeler) as labeler, max(margin) as margin,
        case when count(distinct choice) = 1 then max(choice) when count(*) filter (where choice in ('a', 'b')) > 0 then 'a' else 'tie' end as choice
    from current_labels group by pair_id"""
_FOUGHT = (
    "select pair_id from current_labels where choice in ('a', 'b') group by pair_id having count(distinct choice) = 2"
)


@dataclass(frozen=True, kw_only=True)
class Filters:
    """All of it stands in the address, so that a link shows the same pairs to somebody else."""

    labeler: str = ""
    choice: str = ""
    """decided, tie, skip or none: what the labeler says."""
    differs: str = ""
    """any, or a labeler: pairs decided in opposite ways."""
    least: str = ""
    most: str = ""
    """Margin of the labeler, from and to."""
    model: str = ""
    """Hex digits of a model's id: either picture is of it."""
    source: str = ""
    tag: str = ""
    """KEY=VALUE of the prompt."""
    text: str = ""
    """Part of the prompt, in capitals or not."""
    order: str = ""
    page: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Filters":
        """From the parameters of an address.

        Raises:
            UsageError: naming the one that cannot be.
        """
        given = {field.name: query[field.name].strip() for field in fields(cls) if field.name in query}
        page = given.pop("page", "") or "1"
        if not re.fullmatch(r"[1-9]\d{0,8}", page, re.ASCII):
            raise UsageError("page must be a number from 1")
        found = cls(**given, page=int(page))  # type: ignore[arg-type]  # all but page are text
        for name, known in (("choice", _CHOICES), ("order", _ORDERS), ("source", ("", "generate", "eval", "import"))):
            if getattr(found, name) not in known:
                raise UsageError(f"{name} must be one of {', '.join(filter(None, known))}")
        for name in ("least", "most"):
            _number(name, getattr(found, name))
        if found.model and not _HEX.fullmatch(found.model):
            raise UsageError("model must be the 32 hex digits of a model's id")
        if found.tag and "=" not in found.tag:
            raise UsageError("tag must be KEY=VALUE")
        return found

    def address(self, **changes: object) -> str:
        """Of the page that shows this, with some of it changed."""
        changed = replace(self, **changes)  # type: ignore[arg-type]  # names are checked by the dataclass
        kept = {f.name: getattr(changed, f.name) for f in fields(changed) if getattr(changed, f.name) != f.default}
        return "/?" + urlencode(kept) if kept else "/"

    def query(self) -> tuple[str, dict]:
        """What follows `select …`, without order, and its values."""
        where, values = [_CHOICES[self.choice]], {}
        labels = _LABELS
        if self.labeler:
            labels = "select * from current_labels where labeler = $labeler"
            values["labeler"] = self.labeler
        joined = "left join" if self.choice in ("", "none") else "join"
        if self.labeler and self.choice == "":
            joined = "join"
        if self.differs == "any":
            where.append(f"p.pair_id in ({_FOUGHT})")
            if self.labeler:
                where.append("l.choice in ('a', 'b')")
        elif self.differs:
            where.append(
                "l.choice in ('a', 'b') and p.pair_id in (select pair_id from current_labels o where o.labeler = $differs "
                "and o.choice in ('a', 'b') and o.choice <> l.choice)"
            )
            values["differs"] = self.differs
        for name, compared in (("least", ">="), ("most", "<=")):
            number = _number(name, getattr(self, name))
            if number is not None:
                where.append(f"l.margin {compared} ${name}")
                values[name] = number
        if self.model:
            of_model = "select prompt_id, image_id from image_models where model_id = $model"
            where.append(f"((p.prompt_id, p.image_a) in ({of_model}) or (p.prompt_id, p.image_b) in ({of_model}))")
            values["model"] = UUID(self.model)
        if self.source:
            where.append("p.source = $source")
            values["source"] = self.source
        if self.tag:
            key, _, value = self.tag.partition("=")
            where.append("json_extract_string(q.tags, $key) = $value")
            values |= {"key": '$."' + key.replace("\\", "\\\\").replace('"', '\\"') + '"', "value": value}
        if self.text:
            where.append("contains(lower(q.prompt), lower($text))")
            values["text"] = self.text
        # the labels are joined only where they are asked for: there may be millions
        used = (
            self.labeler
            or self.choice
            or self.differs
            or self.least
            or self.most
            or self.order in ("surest", "closest")
        )
        source = f"from pairs p join prompts q using (prompt_id) {joined} ({labels}) l using (pair_id)"
        if not used:
            source = "from pairs p join prompts q using (prompt_id)"
        return f"{source} where {' and '.join(where)}", values

    def ordered(self) -> tuple[str, dict]:
        """The query for one page's pairs."""
        query, values = self.query()
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
