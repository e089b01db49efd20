"""A small store that is always the same, with something to find for every question of docs/sql.md."""

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


class _Filling:
    def __init__(self, store: PairStore) -> None:
        self.store, self.chance, self.n_pictures = store, random.Random(7), 0
        self.rows: dict[str, list[dict]] = {}

    def add(self, table: str, **row: object) -> None:
        self.rows.setdefault(table, []).append(row)

    def picture(self, prompt: UUID, model: UUID, index: int, reused: UUID | None = None) -> UUID:
        """A new picture, or one that is there already."""
        image = reused
        if image is None:
            self.n_pictures += 1
            row = self.store.write_image(content.picture((self.n_pictures, 0, 0)), 8, 8)
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
        )
        return image

    def pair(self, prompt: UUID, one: UUID, other: UUID, source: str) -> dict:
        row = new_pair(prompt, one, other, source)
        assert row is not None
        self.add("pairs", **row)
        return row

    def label(self, pair: dict, labeler: str, choice: str, **more: object) -> None:
        self.add("labels", **{"pair_id": pair["pair_id"], "labeler": labeler, "revision": 0, "choice": choice} | more)

    def labels_by_score(self, pair: dict, labeler: str, better_a: float, run: UUID) -> None:
        choice = "a" if better_a > 0 else "b"
        p_a = 1 / (1 + math.exp(-better_a))
        self.label(pair, labeler, choice, margin=round(abs(better_a), 3), p_a=round(p_a, 3), run_id=run)


def asked_store(path: Path) -> PairStore:
    store = PairStore.create(path)
    filling = _Filling(store)
    store.add_prompts((text, {"category": category, "style": style}) for text, (category, style) in PROMPTS.items())
    models = {name: UUID(int=number) for number, name in enumerate(("base", "tuned"), 1)}
    for name, identity in models.items():
        filling.add("models", model_id=identity, name=name, config="{}")
    kinds = {"human:ann": "human", "human:ben": "human", "pickscore": "ai", "eval:hps@2.1": "ai", "eval:clip@1": "ai"}
    for labeler, kind in kinds.items():
        filling.add("labelers", labeler=labeler, kind=kind, config="{}")
    sessions = [UUID(int=100 + number) for number in range(len(DAYS))]
    for session, started in zip(sessions, DAYS, strict=True):
        _run(filling, session, "label", started, {})
    scored = UUID(int=200)
    summary = {"scored": {"pickscore": 24, "hps": 16}, "seconds": {"pickscore": 3.6, "hps": 1.2}}
    _run(filling, scored, "relabel", DAYS[0], summary)
    shared = None
    for text in PROMPTS:
        prompt, chance = prompt_id(text), filling.chance
        # the two foxes share a picture
        images = [filling.picture(prompt, models["base"], 0, shared if text.startswith("A") else None)]
        images += [filling.picture(prompt, models["base"], index) for index in (1, 2)]
        shared = shared or images[0]
        for number, (one, other) in enumerate(pairwise(images)):
            pair = filling.pair(prompt, one, other, "generate")
            better_a = chance.gauss(0, 1)
            filling.labels_by_score(pair, "pickscore", better_a, scored)
            _people(filling, pair, better_a, sessions, number)
        held = filling.picture(prompt, models["tuned"], 0)
        evaluated = filling.pair(prompt, images[0], held, "eval")
        # the tuned model is better, but for people
        lead = chance.gauss(-0.5 if PROMPTS[text][0] == "people" else 0.5, 1) * (
            1 if evaluated["image_a"] == held else -1
        )
        filling.labels_by_score(evaluated, "eval:hps@2.1", lead, scored)
        filling.labels_by_score(evaluated, "eval:clip@1", lead + chance.gauss(0, 1.5), scored)
    for table, rows in filling.rows.items():
        store.append(table, rows)
    store.ingest()
    return store


def _people(filling: _Filling, pair: dict, better_a: float, sessions: list[UUID], number: int) -> None:
    """Ann judges every pair and some twice; Ben the first ones of the prompts, and often otherwise."""
    chance = filling.chance

    def answer(labeler: str, sure: float, session: UUID, revision: int = 0) -> None:
        draw = better_a * sure + chance.gauss(0, 0.8)
        choice = "tie" if abs(draw) < 0.2 else "a" if draw > 0 else "b"
        more = {"shown_left": chance.choice("ab"), "response_ms": chance.randint(900, 4000)}
        filling.label(pair, labeler, choice, revision=revision, run_id=session, **more)

    first = sessions[chance.randrange(2)]
    answer("human:ann", 1.0, first)
    if chance.random() < 0.4:
        answer("human:ann", 1.0, sessions[2], revision=1)
    if number == 0:
        answer("human:ben", 0.3, sessions[1])


def _run(filling: _Filling, identity: UUID, kind: str, started: datetime.datetime, summary: dict) -> None:
    ended = started + datetime.timedelta(hours=1)
    told = {"config": "{}", "versions": "{}", "summary": json.dumps(summary)}
    filling.add("runs", run_id=identity, kind=kind, status="done", started=started, updated=ended, **told)
