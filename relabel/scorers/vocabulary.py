"""Build tokenizers of known classes from a folder's vocabulary alone. Other settings of the tokenizer, such as a class to
import, are not read."""

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
    """Byte pairs in order of rank; empty for BERT."""

    @property
    def digest(self) -> str:
        """Depends on the entries alone, not on anything else in the file."""
        return files.revision(json.dumps([self.kind, sorted(self.tokens.items()), self.merges]))

    def tokenizer(self, n_embeddings: int) -> Any:
        """A tokenizer of transformers, for a text model with this number of token embeddings.

        Raises:
            IntegrityError: if the vocabulary has more tokens than that.
        """
        from transformers import BertTokenizer, CLIPTokenizer

        highest = max(self.tokens.values())
        if highest >= n_embeddings:
            raise IntegrityError(
                f"{self.path} has tokens up to number {highest}, but the model has only {n_embeddings} token embeddings: "
                "it belongs to another model; give another --checkpoint"
            )
        clip: Any = CLIPTokenizer  # the type stubs of transformers lack these arguments
        bert: Any = BertTokenizer
        try:
            return clip(vocab=self.tokens, merges=self.merges) if self.kind == "CLIP" else bert(vocab=self.tokens)
        except Exception as error:  # tokenizers raises nothing narrower
            raise _unreadable(self.path, self.kind) from error


def read_vocabulary(folder: Path, kind: Kind) -> Vocabulary:
    """Read tokenizer.json or, if it does not exist, vocab.json and merges.txt (CLIP) or vocab.txt (BERT).

    Raises:
        IntegrityError: if the folder has none, or one of another kind.
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
            tokens = {line: number for number, line in enumerate(_lines(path))}
        pairs = [byte_pair(merge) for merge in merges]
        valid_ids = all(type(number) is int and number >= 0 for number in tokens.values())
        if not valid_ids or not tokens.keys() >= set(_NEEDED[kind]):
            raise ValueError
        return Vocabulary(path, kind, dict(tokens), pairs)
    except (PrefloopError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unreadable(path, kind) from error


def _unreadable(path: Path, kind: Kind) -> IntegrityError:
    return IntegrityError(
        f"{path.parent} has no {kind} tokenizer: {path.name} cannot be read as one; download it again"
    )


def byte_pair(merge: Any) -> tuple[str, str]:
    """A byte pair from "a b", as older files have it, or [a, b]."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    if not (isinstance(left, str) and isinstance(right, str)):
        raise TypeError
    return left, right


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
