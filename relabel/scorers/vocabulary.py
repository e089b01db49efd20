"""Tokenizers of classes that we name, made from a folder's vocabulary alone. What else a folder says of its tokenizer, such
as a class to import, is not read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...core.errors import IntegrityError, PrefloopError
from . import checkpoints as files
from .settings import read_json

Kind = Literal["CLIP", "BERT"]
_NEEDED = {"CLIP": ("<|startoftext|>", "<|endoftext|>"), "BERT": ("[PAD]", "[UNK]", "[CLS]", "[SEP]")}


@dataclass(frozen=True)
class Vocabulary:
    path: Path
    kind: Kind
    tokens: dict[str, int]
    merges: list[tuple[str, str]]
    """Of byte pairs, by their rank; none for BERT."""

    @property
    def digest(self) -> str:
        """Changes with every entry, and with nothing else of the file."""
        return files.revision(json.dumps([self.kind, sorted(self.tokens.items()), self.merges]))

    def tokenizer(self, n_embeddings: int) -> Any:
        """One of transformers, for a text tower with this number of token embeddings.

        Raises:
            IntegrityError: where the vocabulary has more tokens than that.
        """
        from transformers import BertTokenizer, CLIPTokenizer

        highest = max(self.tokens.values())
        if highest >= n_embeddings:
            raise IntegrityError(
                f"{self.path} has tokens up to number {highest}, the model only {n_embeddings} embeddings of tokens; "
                "it belongs to another model"
            )
        clip: Any = CLIPTokenizer  # transformers' types know none of these arguments
        bert: Any = BertTokenizer
        try:
            return clip(vocab=self.tokens, merges=self.merges) if self.kind == "CLIP" else bert(vocab=self.tokens)
        except Exception as error:  # tokenizers raises nothing narrower
            raise _unreadable(self.path, self.kind) from error


def read_vocabulary(folder: Path, kind: Kind) -> Vocabulary:
    """From tokenizer.json, else from vocab.json and merges.txt (CLIP) or vocab.txt (BERT).

    Raises:
        IntegrityError: where the folder holds none, or another kind of it.
    """
    path = folder / "tokenizer.json"
    merges: list[Any] = []
    try:
        if path.exists():
            model = read_json(path)["model"]
            tokens, merges = model["vocab"], model.get("merges", [])
        elif kind == "CLIP":
            path = folder / "vocab.json"
            tokens, merges = read_json(path), _lines(folder / "merges.txt")
            merges = [line for line in merges if line and not line.startswith("#version")]
        else:
            path = folder / "vocab.txt"
            tokens = {line: at for at, line in enumerate(_lines(path))}
        pairs = [_pair(merge) for merge in merges]
        numbered = all(type(number) is int and number >= 0 for number in tokens.values())
        if not numbered or not tokens.keys() >= set(_NEEDED[kind]):
            raise ValueError
        return Vocabulary(path, kind, dict(tokens), pairs)
    except (PrefloopError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(path, kind) from error


def _unreadable(path: Path, kind: Kind) -> IntegrityError:
    return IntegrityError(f"{path.parent} holds no tokenizer: {path.name} is not one of {kind}; fetch it again")


def _pair(merge: Any) -> tuple[str, str]:
    """Of "a b", as older files have it, or [a, b]."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    if not (isinstance(left, str) and isinstance(right, str)):
        raise TypeError
    return left, right


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
