"""A small store that is always the same, with an answer to every query of docs/sql.md."""

import datetime
import json
import math
import random
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import content
from prefloop.store import PairStore, prompt_id
from prefloop.store.pairstore import new_pair

PROMPTS = {
    "a red fox in the snow": ("animals", "photo"),
    "A red fox  in the snow": ("animals", "photo"),
    "an owl on a clock": ("animals", "painting"),
    "a lighthouse at night": ("places", "photo"),
    "a market under umbrellas": ("places", "painting"),
    "a baker at work": ("people", "photo"),
    "two sailors playing chess": ("people", "painting"),
    "a glass teapot": ("things", "photo"),
}
DAYS = (datetime.datetime(2026, 3, 2, 9), datetime.datetime(2026, 3, 3, 14), datetime.datetime(2026, 3, 9, 10))


NOTES = {
    ("human:ben", "a baker at work", 0): '{"both_bad":true,"comment":"six fingers on each hand"}',
    ("human:ann", "two sailors playing chess", 1): '{"both_bad":true}',
    ("human:ann", "a lighthouse at night", 1): '{"flag":"broken image"}',
}
"""By labeler, prompt and number of the pair."""


class _Builder:
    def __init__(self, store: PairStore) -> None:
        self.store, self.random, self.n_images = store, random.Random(7), 0
        self.rows: dict[str, list[dict]] = {}

    def add(self, table: str, **row: object) -> None:
        self.rows.setdefault(table, []).append(row)

    def image(self, prompt: UUID, model: UUID, index: int, run: UUID, reused: UUID | None = None) -> UUID:
        """A generated image: a new one, or one that exists already."""
        image = reused
        if image is None:
            self.n_images += 1
            row = self.store.write_image(content.image_bytes((self.n_images, 0, 0)), 8, 8)
            self.add("images", **row)
            image = row["image_id"]
        self.add(
            "generations",
            generation_id=UUID(int=prompt.int ^ model.int ^ image.int ^ index),
            prompt_id=prompt,
            model_id=model,
            image_id=image,
            sampling="{}",
            seed=0,
            image_index=index,
            run_id=run,
        )
        return image

    def pair(self, prompt: UUID, first: UUID, second: UUID, source: str, run: UUID) -> dict:
        row = new_pair(prompt, first, second, source, run)
        assert row is not None
        self.add("pairs", **row)
        return row

    def label(self, pair: dict, labeler: str, choice: str, **more: object) -> None:
        self.add("labels", **{"pair_id": pair["pair_id"], "labeler": labeler, "revision": 0, "choice": choice} | more)

    def label_by_score(self, pair: dict, labeler: str, difference: float, run: UUID) -> None:
        choice = "a" if difference > 0 else "b"
        p_a = 1 / (1 + math.exp(-difference))
        self.label(pair, labeler, choice, margin=round(abs(difference), 3), p_a=round(p_a, 3), run_id=run)


def example_store(path: Path) -> PairStore:
    store = PairStore.create(path)
    builder = _Builder(store)
    store.add_prompts((text, {"category": category, "style": style}) for text, (category, style) in PROMPTS.items())
    models = {name: UUID(int=number) for number, name in enumerate(("base", "tuned"), 1)}
    for name, model in models.items():
        builder.add("models", model_id=model, name=name, config="{}")
    builder.add("scorers", scorer="hps@2.1", name="hps", config="{}")
    kinds = {"human:ann": "human", "human:ben": "human", "pickscore": "ai", "eval:hps@2.1": "ai", "eval:clip@1": "ai"}
    for labeler, kind in kinds.items():
        builder.add("labelers", labeler=labeler, kind=kind, config="{}")
    sessions = [UUID(int=100 + number) for number in range(len(DAYS))]
    for session, started in zip(sessions, DAYS, strict=True):
        _add_run(builder, session, "label", started, {}, {"question": "Which image is better for this prompt?"})
    scored = UUID(int=200)
    summary = {"scored": {"pickscore": 24, "hps": 16}, "seconds": {"pickscore": 3.6, "hps": 1.2}}
    _add_run(builder, scored, "relabel", DAYS[0], summary)
    generated, evaluation = _add_rounds(builder, models)
    shared = None
    for text in PROMPTS:
        prompt = prompt_id(text)
        # the two foxes share an image
        images = [builder.image(prompt, models["base"], 0, generated[0], shared if text.startswith("A") else None)]
        images += [builder.image(prompt, models["base"], index, generated[index - 1]) for index in (1, 2)]
        shared = shared or images[0]
        for number, (first, second) in enumerate(pairwise(images)):
            pair = builder.pair(prompt, first, second, "generate", generated[number])
            difference = builder.random.gauss(0, 1)
            builder.label_by_score(pair, "pickscore", difference, scored)
            _add_people(builder, pair, difference, sessions, number)
        tuned_image = builder.image(prompt, models["tuned"], 0, evaluation)
        evaluated = builder.pair(prompt, images[0], tuned_image, "eval", evaluation)
        # the tuned model is better, except on prompts about people
        gain = builder.random.gauss(-0.5 if PROMPTS[text][0] == "people" else 0.5, 1)
        difference = gain if evaluated["image_a"] == tuned_image else -gain
        builder.label_by_score(evaluated, "eval:hps@2.1", difference, scored)
        for image, score in ((images[0], 0.0), (tuned_image, gain)):
            builder.add("scores", scorer="hps@2.1", image_id=image, prompt_id=prompt, score=score, run_id=scored)
            model = models["base" if image == images[0] else "tuned"]
            generation = UUID(int=prompt.int ^ model.int ^ image.int)
            row = {"evaluation_id": evaluation, "generation_id": generation, "place": 0, "tags": "{}"}
            builder.add("evaluations", **row)
        builder.label_by_score(evaluated, "eval:clip@1", difference + builder.random.gauss(0, 1.5), scored)
    for table, rows in builder.rows.items():
        store.append(table, rows)
    store.ingest()
    return store


def _add_people(builder: _Builder, pair: dict, difference: float, sessions: list[UUID], number: int) -> None:
    """Ann labels every pair and some twice; Ben only the first pair of each prompt, and often differently."""
    chance = builder.random
    notes = {(labeler, prompt_id(prompt), number): text for (labeler, prompt, number), text in NOTES.items()}

    def answer(labeler: str, weight: float, session: UUID, revision: int = 0) -> None:
        opinion = difference * weight + chance.gauss(0, 0.8)
        choice = "tie" if abs(opinion) < 0.2 else "a" if opinion > 0 else "b"
        more: dict[str, object] = {"shown_left": chance.choice("ab"), "response_ms": chance.randint(900, 4000)}
        more["notes"] = notes.get((labeler, pair["prompt_id"], number))
        builder.label(pair, labeler, choice, revision=revision, run_id=session, **more)

    first = sessions[chance.randrange(2)]
    answer("human:ann", 1.0, first)
    if chance.random() < 0.4:
        answer("human:ann", 1.0, sessions[2], revision=1)
    if number == 0:
        answer("human:ben", 0.3, sessions[1])


def _add_rounds(builder: _Builder, models: dict[str, UUID]) -> tuple[list[UUID], UUID]:
    """Two rounds, of which the second has no evaluation yet; the runs that generate, and the one that evaluates."""
    rounds, generated, evaluation = [UUID(int=300), UUID(int=400)], [UUID(int=301), UUID(int=401)], UUID(int=302)
    for number, (this_round, generating) in enumerate(zip(rounds, generated, strict=True), 1):
        _add_run(builder, this_round, "round", DAYS[0], {}, {"round": number})
        _add_run(builder, generating, "generate", DAYS[0], {}, parent=this_round)
    compared = {"model_id": str(models["tuned"]), "base_model_id": str(models["base"])}
    _add_run(builder, evaluation, "eval", DAYS[0], compared, parent=rounds[0])
    return generated, evaluation


def _add_run(
    builder: _Builder,
    run: UUID,
    kind: str,
    started: datetime.datetime,
    summary: dict,
    config: dict | None = None,
    parent: UUID | None = None,
) -> None:
    ended = started + datetime.timedelta(hours=1)
    texts = {"config": json.dumps(config or {}), "versions": "{}", "summary": json.dumps(summary)}
    texts |= {"parents": [str(parent)] if parent else []}
    builder.add("runs", run_id=run, kind=kind, status="done", started=started, updated=ended, **texts)
