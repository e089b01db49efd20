"""Which pairs are labelled, in which order, and what is known of them: the questions that the desk asks the store."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from ...store import PairStore, UsageError
from ...store.query import ask
from .config import LabelConfig

_TRAINING = "source <> 'eval'"
# Scores of both pictures of every training pair, by every scorer that has scored both.
_DIFFERENCES = f"""
    select pair_id, scorer, score_a - score_b as difference
    from pair_scores
    where {_TRAINING} and isfinite(score_a) and isfinite(score_b)"""
_SHUFFLED = "md5(pair_id::varchar || $seed)"

QUEUES = {
    "random": f"select pair_id from pairs where {_TRAINING} order by {_SHUFFLED}",
    # of two scorers or more the most even split first
    "fights": f"""
        select pair_id from ({_DIFFERENCES})
        group by pair_id
        having count(*) filter (where difference > 0) > 0 and count(*) filter (where difference < 0) > 0
        order by least(count(*) filter (where difference > 0), count(*) filter (where difference < 0)) / count(*) desc,
            {_SHUFFLED}""",
    # differences of several scorers are compared by their ranks
    "close": f"""
        select pair_id from (
            select pair_id, percent_rank() over (partition by scorer order by abs(difference)) as place
            from ({_DIFFERENCES})
        )
        group by pair_id order by avg(place), {_SHUFFLED}""",
    "eval": f"select pair_id from pairs where source = 'eval' order by {_SHUFFLED}",
}
_NOTHING = {
    "random": "`prefloop generate` makes some",
    "fights": "it takes two scorers that disagree: `prefloop relabel --scorer …` with another one",
    "close": "it takes scores: `prefloop relabel --scorer …`",
    "eval": "`prefloop eval` makes some",
}

_DETAILS = """
    select p.pair_id, q.prompt, p.image_a, p.image_b, a.width, a.height, b.width, b.height, a.format, b.format
    from pairs p
    join prompts q using (prompt_id)
    join images a on a.image_id = p.image_a
    join images b on b.image_id = p.image_b
    where p.pair_id in (select unnest($pairs))
"""
# What each person says of each pair at last. A skip with no side shown takes a label back.
_STANDING = """
    select l.labeler, l.pair_id, l.revision, case when l.choice = 'skip' and l.shown_left is null then null else l.choice end
    from labels l
    join labelers r using (labeler)
    where r.kind = 'human' and (l.labeler = $labeler or ($labeler is null and not json_exists(r.config, '$.imported')))
    qualify row_number() over (partition by l.pair_id, l.labeler order by l.revision desc) = 1
"""


@dataclass(frozen=True)
class Shown:
    """What a page shows of a pair, and no more: it is judged blind."""

    pair_id: UUID
    prompt: str
    image_a: UUID
    image_b: UUID
    size_a: tuple[int, int]
    size_b: tuple[int, int]
    """Width and height in pixels."""
    formats: tuple[str, str]
    """Extensions of the files."""


def pairs_to_label(store: PairStore, config: LabelConfig) -> list[UUID]:
    """The queue, each pair once.

    Raises:
        UsageError: where the query is none, has no column pair_id, names something else, or finds nothing.
    """
    if config.queue in QUEUES:
        query = QUEUES[config.queue]
        parameters = {"seed": str(config.seed)} if "$seed" in query else None
        found = [pair for (pair,) in store.rows(query, parameters)]
        nothing = _NOTHING[config.queue]
    else:
        found = _asked(store, config.queue)
        nothing = "try the query with `prefloop store query`"
    if not found:
        raise UsageError(f"--queue {config.queue!r} finds no pairs in {store.path}; {nothing}")
    return list(dict.fromkeys(found))[: config.limit]


def _asked(store: PairStore, query: str) -> list[UUID]:
    try:
        answer = ask(store, query)
    except UsageError as error:
        names = ", ".join(QUEUES)
        raise UsageError(f"--queue is none of {names}, and no query: {error}") from error
    if "pair_id" not in answer.column_names:
        raise UsageError(f"--queue needs a column pair_id; the query gives {', '.join(answer.column_names)}")
    try:
        found = [UUID(str(value)) for value in answer["pair_id"].to_pylist()]
    except ValueError as error:
        raise UsageError(f"--queue gives a pair_id that is no id: {error}") from error
    known = {pair for (pair,) in store.rows("select pair_id from pairs where pair_id in (select unnest($1))", [found])}
    if foreign := [pair for pair in found if pair not in known]:
        raise UsageError(f"--queue gives {foreign[0]}, which is no pair of {store.path}")
    return found


def details(store: PairStore, pairs: Sequence[UUID]) -> dict[UUID, Shown]:
    """What is shown of some pairs."""
    return {
        pair: Shown(pair, prompt, a, b, (wa, ha), (wb, hb), (fa, fb))
        for pair, prompt, a, b, wa, ha, wb, hb, fa, fb in store.rows(_DETAILS, {"pairs": list(pairs)})
    }


def standing(store: PairStore, labeler: str | None = None) -> list[tuple[str, UUID, int, str | None]]:
    """Labeler, pair, last repetition, and the choice that stands; None where it was taken back.

    Args:
        labeler: one person; None is everybody whose labels were not imported.
    """
    rows = store.rows(_STANDING, {"labeler": labeler})
    return [(name, pair, rep, choice) for name, pair, rep, choice in rows]
