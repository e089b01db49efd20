"""What is in a set of prompts before images are generated: tags, repeats, prompts that were trained on, lengths, scripts."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.errors import UsageError
from ...core.validate import positive
from ..prompts import Prompt, find_prompts
from .scripts import scripts_of
from .similarity import SimilarPrompts, words

if TYPE_CHECKING:
    from ...store import PairStore

N_EXAMPLES = 10
SIMILARITY = 0.8


@dataclass(frozen=True, kw_only=True)
class Similar:
    prompt: str
    other: str
    similarity: float
    """Jaccard similarity of their shingles."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Of the checked prompts with others."""

    n_equal: int
    """Prompts that equal another one but for case, punctuation and spaces, or in everything."""
    n_similar: int
    """Prompts that equal none, but are as similar to another one as the threshold."""
    examples: list[Similar]
    """The most similar ones that are not equal."""


@dataclass(frozen=True, kw_only=True)
class Leakage(Overlap):
    """Overlap with the prompts on which a model can have been trained."""

    store: str
    n_training: int
    """Prompts of the store's train split that have pairs other than those of evaluations."""
    share: float
    """Of the checked prompts that are equal or similar to one of them, 0..1."""


@dataclass(frozen=True, kw_only=True)
class TokenLengths:
    """Of the prompts in tokens of one text encoder, start and end marks included."""

    tokenizer: str
    """Its name in the pipeline."""
    limit: int
    """Tokens that the pipeline keeps."""
    mean: float
    longest: int
    n_truncated: int
    """Prompts that are longer than the limit."""


@dataclass(frozen=True, kw_only=True)
class PromptCheck:
    name: str
    revision: str | None
    sha256: str | None
    n_rows: int
    """Rows with a prompt."""
    n_prompts: int
    """Different prompts: the first of equal rows counts, as when images are generated."""
    tags: dict[str, dict[str, int]]
    """Tag → value → prompts."""
    threshold: float
    inside: Overlap
    """Of each prompt with those before it."""
    leakage: Leakage | None
    """None without a store."""
    mean_words: float
    most_words: int
    tokens: list[TokenLengths]
    """Empty without a model."""
    scripts: dict[str, int]
    """Script → prompts with letters of it."""


def check_prompts(
    source: str, store: "PairStore | None" = None, model: str | None = None, threshold: float = SIMILARITY
) -> PromptCheck:
    """
    Args:
        source: as for `find_prompts`.
        store: to look for its training prompts.
        model: to count tokens with its tokenizers.
        threshold: Jaccard similarity from which two prompts are similar, above 0, at most 1.

    Raises:
        UsageError: if the prompts cannot be read.
        PrefloopError: if a set or a model cannot be fetched.
    """
    positive("similarity", threshold, 1.0)
    found = find_prompts(source)
    rows = [Prompt(text, tags) for _, text, tags in found.rows()]
    if not rows:
        raise UsageError(f"{source} holds no prompts")
    prompts: dict[str, Prompt] = {}
    for row in rows:
        prompts.setdefault(row.text, row)
    texts = list(prompts)
    index = SimilarPrompts(texts, threshold)
    n_words = [len(words(text)) for text in texts]
    tokens = []
    if model is not None:
        from .lengths import token_lengths

        tokens = token_lengths(model, texts)
    scripts = Counter(script for text in texts for script in scripts_of(text))
    return PromptCheck(
        **found.identity(),  # type: ignore[arg-type]  # its keys are name, revision and sha256
        n_rows=len(rows),
        n_prompts=len(texts),
        tags=count_tags(prompts.values()),
        threshold=threshold,
        inside=_overlap_inside(texts, index),
        leakage=None if store is None else _leakage(texts, index, store),
        mean_words=sum(n_words) / len(n_words),
        most_words=max(n_words),
        tokens=tokens,
        scripts=dict(scripts.most_common()),
    )


def count_tags(prompts: Iterable[Prompt]) -> dict[str, dict[str, int]]:
    """Tag → value → prompts, the most frequent value first."""
    counts: dict[str, Counter[str]] = {}
    for prompt in prompts:
        for tag, value in prompt.tags.items():
            counts.setdefault(tag, Counter())[value] += 1
    return {tag: dict(values.most_common()) for tag, values in counts.items()}


def _overlap_inside(texts: Sequence[str], index: SimilarPrompts) -> Overlap:
    first: dict[str, int] = {}
    equal, similar = set(), {}
    for number, text in enumerate(texts):
        if first.setdefault(_normalized(text), number) != number:
            equal.add(number)
            continue
        best = max(index.earlier(number), key=lambda item: (item[1], -item[0]), default=None)
        if best is not None:
            similar[number] = Similar(prompt=text, other=texts[best[0]], similarity=best[1])
    return _overlap(equal, similar)


def _leakage(texts: Sequence[str], index: SimilarPrompts, store: "PairStore") -> Leakage:
    # evaluations add their prompts and pairs too, on which nothing trains
    query = """
        select prompt from prompts
        semi join (select prompt_id from pairs where source <> 'eval') trained using (prompt_id)
        where split = 'train' order by prompt_id"""
    training = [prompt for (prompt,) in store.rows(query)]
    known = {_normalized(prompt) for prompt in training}
    equal = {number for number, text in enumerate(texts) if _normalized(text) in known}
    similar: dict[int, Similar] = {}
    for prompt in training:
        for number, similarity in index.search(prompt):
            if number not in equal and (number not in similar or similarity > similar[number].similarity):
                similar[number] = Similar(prompt=texts[number], other=prompt, similarity=similarity)
    overlap = _overlap(equal, similar)
    return Leakage(
        n_equal=overlap.n_equal,
        n_similar=overlap.n_similar,
        examples=overlap.examples,
        store=str(store.path),
        n_training=len(training),
        share=(overlap.n_equal + overlap.n_similar) / len(texts),
    )


def _overlap(equal: set[int], similar: dict[int, Similar]) -> Overlap:
    examples = sorted(similar.values(), key=lambda pair: -pair.similarity)[:N_EXAMPLES]
    return Overlap(n_equal=len(equal), n_similar=len(similar), examples=examples)


def _normalized(text: str) -> str:
    return " ".join(words(text))
