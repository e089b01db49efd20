"""What a vision-language model is asked about images, and how its answer is read: TOML files of data, without code."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from ...core import recipes as shipped
from ...core.errors import UsageError
from ...core.ids import canonical
from ...core.settings import read_toml
from .readers import READERS, Reader

Kind = Literal["pair", "point", "probability", "questions"]
FOLDER = Path(str(files("prefloop.relabel.judges").joinpath("templates")))
_PLACEHOLDERS: dict[str, tuple[str, ...]] = {
    "pair": ("prompt", "first", "second"),
    "point": ("prompt", "image"),
    "probability": ("prompt", "image"),
    "questions": ("prompt", "image", "question"),
}
_MAY_BE_ABSENT = {"questions": {"prompt"}}
_IMAGES = {"first": 0, "second": 1, "image": 0}
_NOT_EXTRA = {"model", "messages", "max_tokens", "temperature", "logprobs", "top_logprobs", "stream", "n"}
_TYPES: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "prompt": (str,),
    "system": (str,),
    "max_tokens": (int,),
    "temperature": (int, float),
    "request": (dict,),
    "answer": (dict,),
    "source": (str,),
    "license": (str,),
}


@dataclass(frozen=True, kw_only=True)
class Template:
    """One way to ask a model about images."""

    name: str
    kind: Kind
    prompt: str
    """Text with {prompt}; {first} and {second}, or {image}, are where the images go; {question} for kind questions."""
    reader: Reader
    system: str | None = None
    max_tokens: int | None = None
    """Of the answer; not sent if None."""
    temperature: float | None = None
    """Of sampling; not sent if None."""
    request: Mapping[str, Any]
    """More fields of the request, such as reasoning_effort."""
    digest: str
    """12 hex digits that change with everything that can change an answer or how it is read."""

    def messages(self, prompt: str, images: Sequence[str], question: str | None = None) -> list[dict[str, Any]]:
        """The chat's messages.

        Args:
            images: data URLs, in the order in which they are shown.
        """
        content: list[dict[str, Any]] = []
        texts = {"prompt": prompt, "question": question or ""}
        # split first: braces in a prompt mean nothing
        for number, part in enumerate(re.split(r"\{(prompt|question|first|second|image)\}", self.prompt)):
            if number % 2 and part in _IMAGES:
                content.append({"type": "image_url", "image_url": {"url": images[_IMAGES[part]]}})
                continue
            text = texts[part] if number % 2 else part
            if content and content[-1]["type"] == "text":
                content[-1]["text"] += text
            elif text:
                content.append({"type": "text", "text": text})
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": content}]

    def body(self, model: str, prompt: str, images: Sequence[str], question: str | None = None) -> dict[str, Any]:
        """The request of one answer."""
        body = {"model": model, "messages": self.messages(prompt, images, question), **self.request}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        if self.reader.needs_logprobs:
            body |= {"logprobs": True, "top_logprobs": 20}
        return body


def template_names() -> dict[str, str]:
    """The built-in templates, with the first line of each."""
    return shipped.recipes(FOLDER)


def read_template(name: str) -> Template:
    """A built-in template, or a TOML file of one's own.

    Raises:
        UsageError: if it does not exist, or a field is missing, unknown or has a wrong value.
    """
    path = shipped.find_recipe(FOLDER, name, "template")
    table = read_toml(path)
    for key, value in table.items():
        if key not in _TYPES:
            raise UsageError(f"{path} sets {key!r}, which a template does not have; fields are {', '.join(_TYPES)}")
        if not isinstance(value, _TYPES[key]) or isinstance(value, bool):
            raise UsageError(f"{path}: {key} cannot be {str(value)[:40]!r}")
    for key in ("kind", "prompt", "answer"):
        if key not in table:
            raise UsageError(f"{path} has no {key}; a template needs kind, prompt and [answer]")
    kind = table["kind"]
    if kind not in get_args(Kind):
        raise UsageError(f"{path}: unknown kind {kind!r}; choose from {', '.join(get_args(Kind))}")
    prompt = table["prompt"]
    _refuse_placeholders(path, kind, prompt)
    if table.get("max_tokens", 1) < 1:
        raise UsageError(f"{path}: max_tokens must be positive, got {table['max_tokens']}")
    if not 0 <= table.get("temperature", 0) <= 2:
        raise UsageError(f"{path}: temperature must be between 0 and 2, got {table['temperature']}")
    request = table.get("request", {})
    if taken := sorted(_NOT_EXTRA & request.keys()):
        raise UsageError(f"{path}: [request] cannot set {taken[0]}, which prefloop sends itself or the template names")
    reader = READERS[kind].read(str(path), table["answer"])
    try:
        digest = canonical({key: value for key, value in table.items() if key not in ("source", "license")})
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: [request] cannot be sent as JSON: {error}") from error
    return Template(
        name=path.stem,
        kind=kind,
        prompt=prompt,
        reader=reader,
        system=table.get("system"),
        max_tokens=table.get("max_tokens"),
        temperature=table.get("temperature"),
        request=request,
        digest=hashlib.sha256(digest.encode()).hexdigest()[:12],
    )


def _refuse_placeholders(path: Path, kind: str, prompt: str) -> None:
    """
    Raises:
        UsageError: if the prompt lacks a placeholder of its kind, has one twice, or has one of another kind.
    """
    present = re.findall(r"\{(prompt|question|first|second|image)\}", prompt)
    for name in _PLACEHOLDERS[kind]:
        if name not in present and name not in _MAY_BE_ABSENT.get(kind, ()):
            raise UsageError(f"{path}: the prompt of a template of kind {kind} needs {{{name}}}")
        if name in _IMAGES and present.count(name) > 1:
            raise UsageError(f"{path}: the prompt has {{{name}}} twice; each image is shown once")
    for name in present:
        if name not in _PLACEHOLDERS[kind]:
            raise UsageError(f"{path}: the prompt of a template of kind {kind} cannot have {{{name}}}")
