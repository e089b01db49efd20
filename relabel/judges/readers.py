"""How a model's answer becomes a number: a closed set of readers, whose parameters are a template's [answer]."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal, Self

from ...core.errors import UsageError

Logprobs = Sequence[tuple[str, float]]
"""The most probable first tokens of an answer, each with the logarithm of its probability."""
_NUMBERS = dict(
    zip(
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
        map(str, range(1, 11)),
        strict=True,
    )
)


@dataclass(frozen=True)
class Reader:
    needs_logprobs: ClassVar[bool] = False

    @classmethod
    def read(cls, source: str, table: Mapping[str, Any]) -> Self:
        """A reader with the parameters of a table.

        Raises:
            UsageError: if one is missing, unknown or has a wrong value.
        """
        known = {field.name: field for field in fields(cls)}
        for key in table:
            if key not in known:
                raise UsageError(f"{source}: [answer] sets {key!r}; this kind has {', '.join(known)}")
        for name, field in known.items():
            if name not in table and field.default is MISSING:
                raise UsageError(f"{source}: [answer] has no {name}")
        try:
            values = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
            return cls(**values)
        except (TypeError, ValueError, AttributeError, re.error) as error:
            raise UsageError(f"{source}: [answer]: {error}") from error


@dataclass(frozen=True)
class ChoiceReader(Reader):
    """Which of three regular patterns is in the answer, in upper or lower case."""

    first: str
    second: str
    tie: str
    take: Literal["only", "last"] = "only"
    """only: an answer with two of the patterns cannot be read. last: the last one in the answer counts."""

    def __post_init__(self) -> None:
        for pattern in (self.first, self.second, self.tie):
            re.compile(pattern)
        if self.take not in ("only", "last"):
            raise ValueError(f"take is only or last, not {self.take!r}")

    def choice(self, text: str) -> float | None:
        """1 if the first image is better, ½ for a tie, 0 if the second is; None if the answer does not say."""
        ends: dict[float, int] = {}
        for value, pattern in ((1.0, self.first), (0.5, self.tie), (0.0, self.second)):
            for match in re.finditer(pattern, text, re.IGNORECASE):
                ends[value] = match.end()
        if not ends or (self.take == "only" and len(ends) > 1):
            return None
        return max(ends, key=lambda value: ends[value])


@dataclass(frozen=True)
class NumberReader(Reader):
    """The mean of the numbers that regular patterns find, each as its first group, from 0 to 1 of the scale."""

    numbers: tuple[str, ...]
    scale: tuple[float, float]
    """The lowest and the highest number."""
    without: str | None = None
    """What is written where an aspect does not apply; it is left out of the mean."""
    clamp: bool = False
    """Take numbers outside of the scale as its ends; otherwise they cannot be read."""

    def __post_init__(self) -> None:
        if not self.numbers or any(re.compile(pattern).groups != 1 for pattern in self.numbers):
            raise ValueError("numbers is a list of patterns with one group each")
        if len(self.scale) != 2 or not -math.inf < self.scale[0] < self.scale[1] < math.inf:
            raise ValueError(f"scale is the lowest and the highest number, not {list(self.scale)}")

    def score(self, text: str) -> float | None:
        """0 to 1; None if a pattern is not in the answer, or nothing applies."""
        (low, high), values = self.scale, []
        for pattern in self.numbers:
            match = re.search(pattern, text, re.IGNORECASE)
            if match is None or match[1] is None:
                return None
            if self.without is not None and match[1].lower() == self.without.lower():
                continue
            try:
                value = float(match[1])
            except ValueError:
                return None
            if self.clamp:
                value = min(max(value, low), high)
            if not low <= value <= high:
                return None
            values.append((value - low) / (high - low))
        return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class ProbabilityReader(Reader):
    """P(yes) / (P(yes) + P(no)) of the first token, over upper and lower case and spaces around the words."""

    needs_logprobs: ClassVar[bool] = True
    yes: tuple[str, ...] = ("Yes",)
    no: tuple[str, ...] = ("No",)

    def __post_init__(self) -> None:
        lists = isinstance(self.yes, tuple) and isinstance(self.no, tuple) and self.yes and self.no
        if not lists or {_plain(word) for word in self.yes} & {_plain(word) for word in self.no}:
            raise ValueError("yes and no are lists of different words")

    def probability(self, logprobs: Logprobs) -> float | None:
        """None if neither is among the most probable tokens."""
        yes, no = probability_of(self.yes, logprobs), probability_of(self.no, logprobs)
        return yes / (yes + no) if yes + no else None


@dataclass(frozen=True)
class QuestionReader(Reader):
    """The mean probability of the right answers to a prompt's questions."""

    needs_logprobs: ClassVar[bool] = True
    tag: str = "vqa_list"
    """The tag of the prompt that lists [question, answer]."""
    mean: Literal["geometric", "arithmetic"] = "geometric"
    least: float = 1e-6
    """The probability of an answer that is not among the most probable tokens."""

    def __post_init__(self) -> None:
        if self.mean not in ("geometric", "arithmetic"):
            raise ValueError(f"mean is geometric or arithmetic, not {self.mean!r}")
        if not isinstance(self.tag, str):
            raise ValueError(f"tag is the name of a tag, not {self.tag!r}")
        if not 0 < self.least < 1:
            raise ValueError(f"least is a probability, not {self.least!r}")

    def probability(self, answer: str, logprobs: Logprobs) -> float:
        """Of an answer in one word; a number from one to ten also as digits."""
        words = [answer, *filter(None, [_NUMBERS.get(_plain(answer))])]
        return min(max(probability_of(words, logprobs), self.least), 1.0)

    def score(self, probabilities: Sequence[float]) -> float:
        if self.mean == "arithmetic":
            return sum(probabilities) / len(probabilities)
        return math.exp(sum(map(math.log, probabilities)) / len(probabilities))


READERS: dict[str, type[Reader]] = {
    "pair": ChoiceReader,
    "point": NumberReader,
    "probability": ProbabilityReader,
    "questions": QuestionReader,
}


def probability_of(words: Sequence[str], logprobs: Logprobs) -> float:
    """Sum over the tokens that are one of the words, in any case and with any space around it."""
    plain = {_plain(word) for word in words}
    return sum(math.exp(logprob) for token, logprob in logprobs if _plain(token) in plain)


def _plain(token: str) -> str:
    # ▁ and Ġ are spaces in the raw tokens that some servers give
    return token.strip(" \t\n▁Ġ").lower()
