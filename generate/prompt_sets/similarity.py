"""Find prompts that nearly equal others, among many prompts in seconds."""

import math
import re
import unicodedata
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

# Scripts without spaces between words: each character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """Without case, punctuation, and differences in how Unicode writes the same letters; in order."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(plain) or [plain.strip()]


def shingles(text: str) -> frozenset[str]:
    """The words, and the pairs of words that stand side by side: "a red cube on a blue ball" and "a blue cube on a red ball"
    have the same words and are not the same prompt."""
    listed = words(text)
    return frozenset(listed).union(map(" ".join, pairwise(listed)))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """What is in both over what is in either, 0..1."""
    return len(first & second) / len(first | second)


class SimilarPrompts:
    """Prompts, to be searched for those whose shingles have at least some Jaccard similarity with a text's.

    Two sets with a similarity of at least t share at least ⌈t·n⌉ of the n shingles of each. In an order that all sets follow,
    the first n − ⌈t·n⌉ + 1 of the two then have one in common. With rare ones first, few prompts share one of those with a
    text, and only they are compared (prefix filtering, Chaudhuri et al., ICDE 2006).
    """

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        """
        Args:
            threshold: above 0, at most 1.
        """
        self.threshold = threshold
        self._sets = [shingles(text) for text in texts]
        self._counts = Counter(shingle for each in self._sets for shingle in each)
        self._having: dict[str, list[int]] = defaultdict(list)
        for index, each in enumerate(self._sets):
            for shingle in self._prefix(each):
                self._having[shingle].append(index)

    def search(self, text: str) -> Iterator[tuple[int, float]]:
        """Index and similarity of each prompt that is as similar as the threshold, in no order."""
        return self._search(shingles(text), len(self._sets))

    def earlier(self, index: int) -> Iterator[tuple[int, float]]:
        """The same for one of the prompts itself, among those before it."""
        return self._search(self._sets[index], index)

    def _search(self, wanted: frozenset[str], end: int) -> Iterator[tuple[int, float]]:
        candidates: set[int] = set()
        for shingle in self._prefix(wanted):
            indices = self._having.get(shingle, [])
            candidates.update(indices[: bisect_left(indices, end)])
        least, most = self.threshold * len(wanted) - 1e-9, len(wanted) / self.threshold + 1e-9
        for index in candidates:
            other = self._sets[index]
            if least <= len(other) <= most and (similarity := jaccard(wanted, other)) >= self.threshold:
                yield index, similarity

    def _prefix(self, each: frozenset[str]) -> list[str]:
        shared = math.ceil(self.threshold * len(each) - 1e-9)
        return sorted(each, key=lambda shingle: (self._counts[shingle], shingle))[: len(each) - shared + 1]
