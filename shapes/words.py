"""The built-in world's tokenizer: a CLIPTokenizer with a vocabulary of its own."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from .scene import all_scenes

MAX_LENGTH = 16  # tokens, with begin and end; the longest prompt needs 12
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


SHIPPED = Path(__file__).parent / "weights" / "pipeline" / "tokenizer"


def tokenizer() -> CLIPTokenizer:
    """The shipped tokenizer: whole words for this world's prompts, single characters for any other English text."""
    return CLIPTokenizer.from_pretrained(SHIPPED) if SHIPPED.exists() else trained_tokenizer()


def trained_tokenizer() -> CLIPTokenizer:
    """A new tokenizer. Training orders the tokens differently each time, so weights belong to the tokenizer they were made with."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
    byte_pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    byte_pairs.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=400, end_of_word_suffix="</w>", initial_alphabet=list(letters), show_progress=False
    )
    byte_pairs.train_from_iterator([str(scene) for scene in all_scenes()] + list(letters), trainer)
    state = json.loads(byte_pairs.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    tokens += [f"{letter}</w>" for letter in letters if f"{letter}</w>" not in state["vocab"]]
    # the end token has the highest id: CLIP takes a text's embedding at the position of the highest id
    vocabulary = {token: at for at, token in enumerate([*tokens, BEGIN, END])}
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split()) for merge in state["merges"]]
    tokenizer_class: Any = CLIPTokenizer
    return tokenizer_class(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)
