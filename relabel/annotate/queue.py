"""Which pairs are labelled, in which order, and what the labelling page needs to know about them, from the store."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from ...core.text import plural
from ...store import PairStore, UsageError
from ...store.evaluations import find_evaluation
from ...store.query import ask
from .config import LabelConfig, labeler_name
from .notes import Label, Notes

_TRAINING = "source <> 'eval'"
# Score differences of every training pair, by every scorer that has scored both images.
_DIFFERENCES = f"""
    select pair_id, scorer, score_a - score_b as difference
    from pair_scores
    where {_TRAINING} and isfinite(score_a) and isfinite(score_b)"""
_SHUFFLED = "md5(pair_id::varchar || $seed)"

QUEUES = {
    "random": f"select pair_id from pairs where {_TRAINING} order by {_SHUFFLED}",
    # the most even split between scorers first
    "disagreements": f"""
        select pair_id from ({_DIFFERENCES})
        group by pair_id
        having count(*) filter (where difference > 0) > 0 and count(*) filter (where difference < 0) > 0
        order by least(count(*) filter (where difference > 0), count(*) filter (where difference < 0)) / count(*) desc,
            {_SHUFFLED}""",
    # scorers have different units, so their differences are compared by rank
    "close": f"""
        select pair_id from (
            select pair_id, percent_rank() over (partition by scorer order by abs(difference)) as difference_rank
            from ({_DIFFERENCES})
        )
        group by pair_id order by avg(difference_rank), {_SHUFFLED}""",
    "eval": f"select pair_id from pairs where source = 'eval' order by {_SHUFFLED}",
}
OF_EVALUATION = "eval:"
# A first pair of every prompt before a second one: more prompts say more than more pairs of the same prompts.
_EVALUATION_PAIRS = f"""
    select pair_id from (
        select distinct pair_id, prompt_id from evaluation_pairs where evaluation_id = $evaluation and pair_id is not null
    )
    order by row_number() over (partition by prompt_id order by {_SHUFFLED}), {_SHUFFLED}"""
_OLD_NAMES = {"fights": "disagreements"}
"""Names of 0.1."""
_CURES = {
    "random": "create some with `prefloop generate`, or `prefloop pair` if it has images",
    "disagreements": "it needs two scorers that disagree; score with another one: `prefloop relabel --scorer …`",
    "close": "it needs scores: `prefloop relabel --scorer …`",
    "eval": "create some with `prefloop eval`",
}

_BLIND_PAIRS = """
    select p.pair_id, q.prompt, p.image_a, p.image_b, a.width, a.height, b.width, b.height, a.format, b.format
    from pairs p
    join prompts q using (prompt_id)
    join images a on a.image_id = p.image_a
    join images b on b.image_id = p.image_b
    where p.pair_id in (select unnest($pairs))
"""
# The latest label of each person on each pair. A skip with no side shown undoes a label.
_STANDING = """
    select l.labeler, l.pair_id, l.revision, case when l.choice = 'skip' and l.shown_left is null then null else l.choice end, l.notes
    from labels l
    join labelers r using (labeler)
    where r.kind = 'human' and (l.labeler = $labeler or ($labeler is null and not json_exists(r.config, '$.imported')))
    qualify row_number() over (partition by l.pair_id, l.labeler order by l.revision desc) = 1
"""

_OTHER_QUESTIONS = """
    select labeler, question, count(*) from human_labels
    where question <> $question and ($everybody or labeler in (select unnest($labelers)))
    group by all order by all
"""


@dataclass(frozen=True)
class BlindPair:
    """What the labelling page shows of a pair. Nothing else: people label without knowing models, scores or labels."""

    pair_id: UUID
    prompt: str
    image_a: UUID
    image_b: UUID
    size_a: tuple[int, int]
    size_b: tuple[int, int]
    """Width and height in pixels."""
    formats: tuple[str, str]
    """File extensions."""


def pairs_to_label(store: PairStore, config: LabelConfig) -> list[UUID]:
    """The queue, each pair once.

    Raises:
        UsageError: if the query is invalid, has no column pair_id, selects something else, or finds nothing.
    """
    name = _OLD_NAMES.get(config.queue, config.queue)
    evaluation = evaluation_of(store, config)
    if evaluation is not None:
        values = {"evaluation": evaluation, "seed": str(config.seed)}
        pairs = [pair for (pair,) in store.rows(_EVALUATION_PAIRS, values)]
        cure = "its models generated the same images"
    elif name in QUEUES:
        query = QUEUES[name]
        parameters = {"seed": str(config.seed)} if "$seed" in query else None
        pairs = [pair for (pair,) in store.rows(query, parameters)]
        cure = _CURES[name]
    else:
        pairs = _pairs_of_query(store, config.queue)
        cure = "try the query with `prefloop store query`"
    if not pairs:
        raise UsageError(f"--queue {config.queue!r} finds no pairs in {store.path}; {cure}")
    return list(dict.fromkeys(pairs))[: config.limit]


def evaluation_of(store: PairStore, config: LabelConfig) -> UUID | None:
    """The evaluation that a queue eval:NAME selects; None for any other queue.

    Raises:
        UsageError: if the store has no such evaluation.
    """
    if not config.queue.startswith(OF_EVALUATION):
        return None
    return find_evaluation(store, config.queue.removeprefix(OF_EVALUATION))


def _pairs_of_query(store: PairStore, query: str) -> list[UUID]:
    try:
        answer = ask(store, query)
    except UsageError as error:
        raise UsageError(
            f"--queue must be one of {', '.join(QUEUES)}, eval:NAME, or a query; as a query: {error}"
        ) from error
    if "pair_id" not in answer.column_names:
        raise UsageError(f"--queue needs a column pair_id; the query selects {', '.join(answer.column_names)}")
    try:
        pairs = [UUID(str(value)) for value in answer["pair_id"].to_pylist()]
    except ValueError as error:
        raise UsageError(f"--queue selects a pair_id that is not an id: {error}") from error
    known = {pair for (pair,) in store.rows("select pair_id from pairs where pair_id in (select unnest($1))", [pairs])}
    if unknown := [pair for pair in pairs if pair not in known]:
        raise UsageError(f"--queue selects {unknown[0]}, which is not a pair of {store.path}")
    return pairs


def blind_pairs(store: PairStore, pairs: Sequence[UUID]) -> dict[UUID, BlindPair]:
    """What the page shows of these pairs, by pair."""
    return {
        pair: BlindPair(pair, prompt, a, b, (wa, ha), (wb, hb), (fa, fb))
        for pair, prompt, a, b, wa, ha, wb, hb, fa, fb in store.rows(_BLIND_PAIRS, {"pairs": list(pairs)})
    }


def current_labels(store: PairStore, labeler: str | None = None) -> list[tuple[str, UUID, int, Label | None]]:
    """Labeler, pair, latest revision, and the current label; None if it was undone.

    Args:
        labeler: one person; None means everybody whose labels were not imported.
    """
    return [
        (name, pair, revision, None if choice is None else Label(choice, Notes.from_json(notes)))
        for name, pair, revision, choice, notes in store.rows(_STANDING, {"labeler": labeler})
    ]


def other_questions(store: PairStore, config: LabelConfig) -> list[str]:
    """A line for each labeler of this run, or of the store, whose labels answer another question: a labeler has one label that
    counts for a pair, and whoever trains on it gets both questions mixed."""
    labelers = [labeler_name(name) for name in config.labelers]
    values = {"question": config.question, "everybody": not labelers, "labelers": labelers}
    return [
        f"{labeler} has {plural(n, 'label')} that answer another question, {question!r}; those pairs are not shown again. "
        f"To keep the answers apart, use another name: --labeler {labeler.removeprefix('human:')}-2"
        for labeler, question, n in store.rows(_OTHER_QUESTIONS, values)
    ]
