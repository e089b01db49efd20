"""Vision-language models behind an OpenAI-compatible endpoint as judges, of pairs or of single images."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from ...core.errors import PrefloopError, UsageError
from ...store.images import png_bytes
from ..scorers import checkpoints as files
from .chat import API_KEY, ChatEndpoint, Reply, RequestRefused
from .readers import ChoiceReader, NumberReader, ProbabilityReader, QuestionReader
from .request_limits import RequestLimits
from .template import Template, read_template

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["API_KEY", "VLM", "Answer", "ChatJudge", "Judgement", "PointJudge"]
REFUSED_AT_FIRST = 8
"""Refusals without a single answer that end the run: then it is not about one image."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one request."""

    text: str
    value: float | None
    """As it was read: for two images 1 if the one shown first is better, ½ or 0; None if it cannot be read."""
    model: str
    shown_first: int
    """Which of the item's images was shown first: 0 or 1."""
    details: dict[str, Any]
    """question, finish_reason, usage, logprobs; as far as there are any."""


@dataclass(frozen=True)
class Judgement:
    """Of one pair or image."""

    value: float | None
    """Score, or choice between two images; None without an answer."""
    answers: tuple[Answer, ...]


class ChatJudge:
    """The checkpoint is URL#MODEL, such as http://localhost:8000/v1#Qwen/Qwen2.5-VL-7B-Instruct; the key is read from the
    environment variable PREFLOOP_VLM_API_KEY."""

    template: ClassVar[Template]
    name: str
    needs_prompt = True
    needs_tags = False
    reads: tuple[str, ...] = ()
    wants_gpu = False  # the server may
    is_endpoint = True
    checkpoint_needed = "serve a model and give --checkpoint vlm=http://localhost:8000/v1#MODEL"

    def __init__(self, checkpoint: str | None = None) -> None:
        url, _, self.model = (checkpoint or "").partition("#")
        if not (url.startswith(("http://", "https://")) and self.model):
            raise UsageError(
                f"{self.name} needs an endpoint and a model: --checkpoint {self.name}=http://localhost:8000/v1#MODEL"
                + (f"; got {checkpoint!r}" if checkpoint else "")
            )
        self.endpoint = ChatEndpoint(url)
        self.revision = files.revision(self.model, *_revised(self.template))
        template = {"name": self.template.name, "hash": self.template.digest}
        self.sources = {"url": url, "model": self.model, "template": template}

    def limit_requests(self, limits: RequestLimits) -> None:
        """How many requests to send from here on, how fast, and how long to wait for each."""
        self.endpoint.begin(limits)

    def n_requests(self, tags: Mapping[str, Any] | None = None) -> int:
        """Requests for one item, of a prompt with these tags, if none has to be repeated."""
        raise NotImplementedError

    def judge(self, prompt: str, images: "Sequence[Image]", tags: Mapping[str, Any] | None = None) -> Judgement:
        """Ask about one pair or image; many threads may do so at once.

        Raises:
            BudgetSpent, Stopped, PrefloopError: as `ChatEndpoint.ask`.
        """
        raise NotImplementedError

    def requests_used(self) -> dict[str, float]:
        """requests, and the tokens and the cost of their answers as far as the endpoint tells them."""
        return {"requests": self.endpoint.sent, **self.endpoint.usage}

    def score(self, prompts: Sequence[str], images: "Sequence[Image]") -> Any:
        raise NotImplementedError

    def _ask(
        self,
        read: Callable[[Reply], float | None],
        prompt: str,
        urls: Sequence[str],
        question: str | None = None,
        shown_first: int = 0,
    ) -> Answer:
        asked = {} if question is None else {"question": question}
        try:
            reply = self.endpoint.ask(self.template.body(self.model, prompt, urls, question))
        except RequestRefused as error:
            if self.endpoint.refused >= REFUSED_AT_FIRST and not self.endpoint.answered:
                raise PrefloopError(f"{error}: it refuses every request") from error
            return Answer(str(error), None, "", shown_first, asked | {"refused": True})
        if self.template.reader.needs_logprobs and reply.logprobs is None:
            raise PrefloopError(
                f"{self.endpoint} gives no logprobs for {reply.model or self.model}, which {self.name} reads; serve the model "
                "with a server that returns top_logprobs, such as vLLM (--max-logprobs 20), or use another template"
            )
        details = asked | {"usage": reply.usage, "finish_reason": reply.finish_reason}
        if reply.logprobs is not None:
            details["logprobs"] = [[token, round(logprob, 6)] for token, logprob in reply.logprobs]
        return Answer(reply.text, read(reply), reply.model, shown_first, {k: v for k, v in details.items() if v})

    def _each(self, prompts: Sequence[str], images: Sequence, tags: Sequence) -> list[float | None]:
        with ThreadPoolExecutor(self.endpoint.limits.concurrency) as pool:
            judgements = pool.map(self.judge, prompts, images, tags)
            return [judgement.value for judgement in judgements]


class VLM(ChatJudge):
    """Compares two images, in both orders."""

    template = read_template("pair")
    name = "vlm"

    @staticmethod
    def variant(template: str) -> type:
        """The class of `vlm:TEMPLATE`: a built-in template's name, or a TOML file.

        Raises:
            UsageError: as `read_template`.
        """
        chosen = read_template(template)
        if chosen == VLM.template:
            return VLM
        base = VLM if chosen.kind == "pair" else PointJudge
        attributes = {"template": chosen, "name": f"vlm:{chosen.name}", "needs_tags": chosen.kind == "questions"}
        return type(base.__name__, (base,), attributes)

    def n_requests(self, tags: Mapping[str, Any] | None = None) -> int:  # noqa: ARG002
        return 2

    def score(self, prompts: Sequence[str], images: "Sequence[Image]") -> Any:  # noqa: ARG002
        raise UsageError(
            f"{self.name} compares two images and cannot score one; `prefloop relabel --scorer {self.name}` labels pairs "
            "with it"
        )

    def choose(self, prompts: Sequence[str], first: "Sequence[Image]", second: "Sequence[Image]") -> list[float | None]:
        """1 if the first image is better, 0 if the second, ½ for a tie or if the answer changes with the order; None if
        an answer cannot be read. (B,)"""
        return self._each(prompts, list(zip(first, second, strict=True)), [None] * len(prompts))

    def judge(self, prompt: str, images: "Sequence[Image]", tags: Mapping[str, Any] | None = None) -> Judgement:  # noqa: ARG002
        reader = cast("ChoiceReader", self.template.reader)
        self.endpoint.reserve(2)
        urls = [_data_url(image) for image in images]
        forward, backward = (
            self._ask(lambda reply: reader.choice(reply.text), prompt, shown, shown_first=order)
            for order, shown in enumerate((urls, urls[::-1]))
        )
        return Judgement(_combine(forward.value, backward.value), (forward, backward))


class PointJudge(ChatJudge):
    """Scores one image, from 0 to 1."""

    def n_requests(self, tags: Mapping[str, Any] | None = None) -> int:
        return len(self.questions(tags)) if self.needs_tags else 1

    def score(
        self, prompts: Sequence[str], images: "Sequence[Image]", tags: Sequence[Mapping[str, Any] | None] | None = None
    ) -> list[float]:
        """(B,); nan for an image without an answer."""
        values = self._each(prompts, [(image,) for image in images], tags or [None] * len(prompts))
        return [float("nan") if value is None else value for value in values]

    def judge(self, prompt: str, images: "Sequence[Image]", tags: Mapping[str, Any] | None = None) -> Judgement:
        reader, urls = self.template.reader, [_data_url(image) for image in images]
        if not isinstance(reader, QuestionReader):
            self.endpoint.reserve(1)
            answer = self._ask(self._read, prompt, urls)
            return Judgement(answer.value, (answer,))
        questions = self.questions(tags)
        if not questions:
            raise UsageError(f"the prompt {prompt[:80]!r} has no questions for {self.name}; {self.questions_needed}")
        self.endpoint.reserve(len(questions))
        answers = tuple(
            self._ask(partial(_probability, reader, right), prompt, urls, question) for question, right in questions
        )
        values = [answer.value for answer in answers if answer.value is not None]
        return Judgement(reader.score(values) if len(values) == len(answers) else None, answers)

    @property
    def questions_needed(self) -> str:
        """What prompts need, for messages."""
        return _FORMAT.format(cast("QuestionReader", self.template.reader).tag)

    def _read(self, reply: Reply) -> float | None:
        reader = self.template.reader
        if isinstance(reader, ProbabilityReader):
            return reader.probability(reply.logprobs or ())
        return cast("NumberReader", reader).score(reply.text)

    def questions(self, tags: Mapping[str, Any] | None) -> list[tuple[str, str]]:
        """The questions in a prompt's tags, each with its right answer; empty without any.

        Raises:
            UsageError: if the tag has another form.
        """
        tag = cast("QuestionReader", self.template.reader).tag
        value = (tags or {}).get(tag)
        if value is None or value == "":
            return []
        wrong = UsageError(f"the tag {tag} of a prompt cannot be read: {str(value)[:80]!r}; {_FORMAT.format(tag)}")
        try:
            listed = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            raise wrong from None
        if not isinstance(listed, list) or not all(_is_question(item) for item in listed):
            raise wrong
        return [(question, answer) for question, answer in listed]


_FORMAT = 'give each prompt a tag {} such as [["Is the fox red?", "Yes"], ["How many foxes are in the image?", "two"]]'


def _probability(reader: QuestionReader, right: str, reply: Reply) -> float:
    return reader.probability(right, reply.logprobs or ())


def _is_question(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and all(isinstance(part, str) and part.strip() for part in item)


def _revised(template: Template) -> tuple[str, ...]:
    """What is hashed into the revision besides the model. The first template keeps what it had before there were others."""
    if template == VLM.template:
        return template.prompt.removesuffix("{first}{second}"), "both orders, png, 1"
    return template.digest, "png"


def _data_url(image: "Image") -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()


def _combine(forward: float | None, backward: float | None) -> float | None:
    """Of the first image; `backward` is the answer when the second was shown first."""
    if forward is None or backward is None:
        return None
    return forward if forward == 1 - backward else 0.5
