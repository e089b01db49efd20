"""What the store knows of an evaluation: its images by model, its comparisons, and its name."""

from uuid import UUID

import pytest
from content import add_generation, add_image, add_pair, add_prompt
from prefloop.store import PairStore, UsageError
from prefloop.store.check import check
from prefloop.store.evaluations import add_evaluation, evaluations, find_evaluation
from prefloop.store.runs import run

MODELS = [UUID(int=1), UUID(int=2), UUID(int=3)]


def three_models(store: PairStore) -> tuple[UUID, list[UUID]]:
    """An evaluation of one prompt: the first and the third model generated the same image. Its id, and the images."""
    prompt = add_prompt(store, "a cat", animal="cat")
    red, blue = add_image(store, (255, 0, 0)), add_image(store, (0, 0, 255))
    images = [red, blue, red]
    store.append("models", [{"model_id": model, "name": f"m{model.int}", "config": "{}"} for model in MODELS])
    add_pair(store, prompt, red, blue, "eval")
    made = [add_generation(store, prompt, model, image) for model, image in zip(MODELS, images, strict=True)]
    store.ingest()
    evaluation = add_evaluation(store, {generation: (0, {"animal": "dog"}) for generation in made})
    store.ingest()
    assert add_evaluation(store, {generation: (0, {"animal": "dog"}) for generation in reversed(made)}) == evaluation
    assert add_evaluation(store, {made[0]: (0, {})}) != evaluation
    return evaluation, images


def test_the_comparisons_of_an_evaluation_are_every_two_models_once(store: PairStore):
    evaluation, (red, blue, _) = three_models(store)
    ((pair,),) = store.rows("select pair_id from pairs")
    query = "select * exclude (evaluation_id, prompt_id, image_index) from evaluation_pairs where evaluation_id = $1 order by all"
    one, two, three = MODELS
    tags = '{"animal":"dog"}'  # of the evaluation; the prompt keeps its own
    assert store.rows(query, [evaluation]) == [
        (one, two, red, blue, pair, tags),
        (one, three, red, red, None, tags),
        (two, three, blue, red, pair, tags),
    ]
    assert store.rows("select tags from prompts") == [('{"animal":"cat"}',)]
    assert check(store) == []


def test_an_evaluation_is_found_by_its_name_or_the_beginning_of_its_id(store: PairStore):
    with pytest.raises(UsageError, match="holds no evaluation; `prefloop eval` makes one"):
        find_evaluation(store, "first")
    evaluation, _ = three_models(store)
    other = UUID(int=evaluation.int ^ 1)  # they differ in the last digit
    for identity, name in ((evaluation, "first"), (other, "second"), (other, "first"), (evaluation, None)):
        with run(store, "eval", {"name": name}) as eval_run:
            eval_run.summary["evaluation_id"] = str(identity)
    with run(store, "eval", {"name": "failed"}):  # without a result
        pass
    assert evaluations(store) == [(evaluation, "first"), (other, "first")]  # each by the last name it was given
    assert find_evaluation(store, "first") == other  # the last one with that name
    assert find_evaluation(store, "second") == other
    assert find_evaluation(store, str(evaluation).upper()) == evaluation
    with pytest.raises(UsageError, match=r"several evaluations begin with '\w{12}'; choose from"):
        find_evaluation(store, evaluation.hex[:12])
    for unknown in ("failed", evaluation.hex[:3], ""):
        with pytest.raises(
            UsageError, match=rf"no evaluation is named '{unknown}'; choose from {evaluation.hex[:12]}, first"
        ):
            find_evaluation(store, unknown)
