# ruff: noqa: ARG002
"""Scorers that fail, or return something other than a list of floats."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from little_scorers import Redness
from PIL.Image import Image


class Raises(Redness):
    name = "raises"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        raise KeyError("no such key\nand a second line")


class Exits(Redness):
    name = "exits"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        sys.exit("enough")


class Strings(Redness):
    name = "strings"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        return [f"{score:.0f}" for score in super().score(prompts, images)]


class Nothings(Redness):
    name = "nothings"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        return None


class Columns(Redness):
    name = "columns"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        return super().score(prompts, images)[:, None]


class Halves(Redness):
    """bfloat16, which numpy does not support."""

    name = "halves"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        return torch.tensor(super().score(prompts, images)).bfloat16()


class Gradients(Redness):
    name = "gradients"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        return torch.tensor(super().score(prompts, images), requires_grad=True)


class ListOfGradients(Redness):
    name = "list-of-gradients"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        return [score.clone() for score in torch.tensor(super().score(prompts, images), requires_grad=True)]


class Nans(Redness):
    name = "nans"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        return [float("nan")] * len(images)


class NeedsMore(Redness):
    def __init__(self, folder: str, *, size: int, weights: str | None = None) -> None: ...


class CannotBeMade(Redness):
    def __init__(self) -> None:
        raise FileNotFoundError("no file here")


class NumberedName(Redness):
    name = 7  # type: ignore[assignment]  # on purpose


class NoTemperature(Redness):
    temperature = 0.0


class OddSources(Redness):
    name, sources = "odd-sources", {"folder": object()}


class Embeds(Redness):
    """A dual encoder; subclasses break one of its methods."""

    name, backbone, needs_prompt = "embeds", "embeds-1", True

    def preprocess(self, image: Image) -> Any:
        return np.asarray(image, np.float32).reshape(-1, 3).mean(0)

    def embed_images(self, pixels: Sequence[Any]) -> Any:
        return np.stack(list(pixels))

    def embed_prompts(self, prompts: Sequence[str]) -> Any:
        return np.ones((len(prompts), 3), np.float32)

    def score_embeddings(self, images: Any, prompts: Any) -> Any:
        return images[:, 0] * prompts[:, 0]


class EmbedsInHalf(Embeds):
    name, backbone = "embeds-in-half", "half"

    def embed_images(self, pixels: Sequence[Any]) -> Any:
        return torch.tensor(np.stack(list(pixels)), requires_grad=True).bfloat16()

    def score_embeddings(self, images: Any, prompts: Any) -> Any:
        return torch.tensor(images)[:, 0] * torch.tensor(prompts, requires_grad=True)[:, 0]


class EmbedsTooFew(Embeds):
    name, backbone = "embeds-too-few", "few"

    def embed_images(self, pixels: Sequence[Any]) -> Any:
        return np.stack(list(pixels))[:1]


class PreprocessFails(Embeds):
    name, backbone = "preprocess-fails", "fails"

    def preprocess(self, image: Image) -> Any:
        raise ZeroDivisionError("by zero")


class PromptsFail(Embeds):
    name, backbone = "prompts-fail", "prompts"

    def embed_prompts(self, prompts: Sequence[str]) -> Any:
        raise IndexError("index out of range in self")


class CountFails(Embeds):
    name, backbone = "count-fails", "count"

    def n_truncated(self, prompts: Sequence[str]) -> int:
        raise OSError("no tokenizer")


class Judges(Redness):
    """A pairwise judge with an invalid answer."""

    name = "judges"
    answers: Sequence[Any] = (0.7,)

    def choose(self, prompts: Sequence[str], first: Sequence[Image], second: Sequence[Image]) -> Any:
        return list(self.answers) * len(prompts)


class JudgesTwice(Judges):
    name, answers = "judges-twice", (1.0, 0.0)


class Generates(Redness):
    name = "generates"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        yield from super().score(prompts, images)


class Complex(Redness):
    name = "complex"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        return torch.ones(len(images), dtype=torch.complex64)


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class RaisesTheUnprintable(Redness):
    name = "unprintable"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        raise UnprintableError


class RevisionFails(Redness):
    @property
    def revision(self) -> str:  # type: ignore[override]  # computed, as that of the built-in ones
        raise RuntimeError("no weights")


class RevisionFailsLater(Redness):
    """Its file is gone when it is asked a third time."""

    name, asked = "fails-later", 0

    @property
    def revision(self) -> str:  # type: ignore[override]
        self.asked += 1
        if self.asked > 2:
            raise RuntimeError("no weights")
        return "1"


class NoRevision(Redness):
    revision = None  # type: ignore[assignment]  # on purpose


class Person(Redness):
    name = "human:me"


class Noise(Redness):
    """A name such as the hub's, and prints wherever it can."""

    name = "owner/noise"

    def __init__(self) -> None:
        print("loading weights")

    def n_truncated(self, prompts: Sequence[str]) -> int:
        print("counting")
        return 0

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        print("100 %", flush=True)
        return super().score(prompts, images)


class SomeNones(Redness):
    """None for the darker images."""

    name = "some-nones"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        return [None if score < 50 else torch.tensor(score) for score in super().score(prompts, images)]


class ColumnsTwice(Redness):
    name, columns = "columns-twice", ("sigma", "sigma")


class ColumnsInAText(Redness):
    name, columns = "columns-in-a-text", "sigma"


class RevisionChanges(Redness):
    """Knows its revision once it has scored."""

    name, revision = "late", "unknown"

    def score(self, prompts: Sequence[str], images: Sequence[Image]) -> Any:
        self.revision = "2"
        return super().score(prompts, images)


class JudgesInTwoColumns(Judges):
    name = "judges-in-two-columns"

    def choose(self, prompts: Sequence[str], first: Sequence[Image], second: Sequence[Image]) -> Any:
        return np.ones((len(prompts), 2))


class JudgesInTensors(Judges):
    """The first image of every pair, as a tensor."""

    name = "judges-in-tensors"

    def choose(self, prompts: Sequence[str], first: Sequence[Image], second: Sequence[Image]) -> Any:
        return torch.ones(len(prompts), requires_grad=True)


class JudgesInAList(Judges):
    """The second image of every pair, as a list of numbers of several kinds."""

    name = "judges-in-a-list"

    def choose(self, prompts: Sequence[str], first: Sequence[Image], second: Sequence[Image]) -> Any:
        return [torch.tensor(0), np.float32(0), None][: len(prompts)]


class JudgeChanges(Judges):
    name, revision, answers = "judge-changes", "unknown", (1.0,)

    def choose(self, prompts: Sequence[str], first: Sequence[Image], second: Sequence[Image]) -> Any:
        self.revision = "2"
        return super().choose(prompts, first, second)
