"""Images and prompts are embedded once; scores equal those of `score`."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from content import add_image, add_pair, add_prompt, fill
from PIL.Image import Image
from prefloop.cli import app
from prefloop.relabel import RelabelConfig
from prefloop.relabel.auto_batch import AutoBatch
from prefloop.relabel.plan import plan
from prefloop.relabel.scorers.dual_encoder import EmbeddingScoreMixin
from prefloop.relabel.scorers.registry import load_scorer
from prefloop.relabel.stage import relabel
from prefloop.store import PairStore, PrefloopError, load_image
from typer.testing import CliRunner


class Colours(EmbeddingScoreMixin):
    """Embeds an image as its mean color and a prompt as its length and last letter; counts what it embeds."""

    name, revision, needs_prompt, backbone = "colours", "1", True, "colours-1"
    embedded: ClassVar[Counter[str]] = Counter()
    max_images: ClassVar[int] = 10**9

    def preprocess(self, image: Image) -> Any:
        return np.asarray(image, np.float32).reshape(-1, 3).mean(0)

    def embed_images(self, pixels: Sequence[Any]) -> np.ndarray:
        if len(pixels) > self.max_images:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        self.embedded["images"] += len(pixels)
        return np.stack(list(pixels)).astype(np.float32)

    def embed_prompts(self, prompts: Sequence[str]) -> np.ndarray:
        self.embedded["prompts"] += len(prompts)
        return np.array([[len(prompt), 1, ord(prompt[-1])] for prompt in prompts], np.float32)

    def n_truncated(self, prompts: Sequence[str]) -> int:
        return sum(len(prompt) > 8 for prompt in prompts)

    def score_embeddings(self, images: np.ndarray, prompts: np.ndarray | None) -> np.ndarray:
        assert prompts is not None
        return (images * prompts).sum(1)


class Redder(Colours):
    """Another head of the same backbone, blind to prompts."""

    name, needs_prompt = "redder", False

    def score_embeddings(self, images: np.ndarray, prompts: np.ndarray | None) -> np.ndarray:
        assert prompts is None
        return images[:, 0]


class OtherBackbone(Redder):
    name, backbone = "other", "colours-2"


COLOURS = RelabelConfig(scorers=("test_embeddings:Colours",), batch_size=3)


@pytest.fixture(autouse=True)
def _nothing_embedded():
    Colours.embedded.clear()
    Colours.max_images = 10**9


def test_each_image_and_each_prompt_is_embedded_once(store: PairStore):
    fill(store, n_prompts=3, images_per_prompt=4)
    shared = add_image(store, (9, 9, 9))
    for prompt, image in store.rows("select prompt_id, image_a from pairs"):
        add_pair(store, prompt, image, shared)  # one image with three prompts
    store.ingest()
    assert relabel(COLOURS, store)["scored"] == {"colours": 15}
    assert Colours.embedded == {"images": 13, "prompts": 3}


def test_truncated_prompts_are_counted_once(store: PairStore):
    fill(store, 12)  # "prompt 9" is read completely, "prompt 10" and "prompt 11" are not
    assert relabel(COLOURS, store)["truncated_prompts"] == {"colours": 2}
    assert relabel(COLOURS, store)["truncated_prompts"] == {}


def test_scores_from_embeddings_equal_those_of_score(store: PairStore):
    fill(store, n_prompts=3, images_per_prompt=3)
    relabel(COLOURS, store)
    rows = store.rows(
        "select q.prompt, image_id, score from scores join prompts q using (prompt_id) where scorer = 'colours@1'"
    )
    scorer = load_scorer("test_embeddings:Colours")
    images = [load_image(store.image_path(image)) for _, image, _ in rows]
    assert len(rows) == 9
    assert scorer.score([prompt for prompt, _, _ in rows], images) == pytest.approx([score for *_, score in rows])


def test_another_head_of_the_same_backbone_embeds_nothing(store: PairStore):
    fill(store, n_prompts=2, images_per_prompt=3)
    relabel(COLOURS, store)
    Colours.embedded.clear()
    redder = replace(COLOURS, scorers=("test_embeddings:Redder",))
    assert relabel(redder, store)["scored"] == {"redder": 6}
    assert not Colours.embedded
    for image, score in store.rows("select image_id, score from scores where scorer = 'redder@1'"):
        assert score == pytest.approx(np.asarray(load_image(store.image_path(image)), np.float32)[..., 0].mean())
    relabel(replace(COLOURS, scorers=("test_embeddings:OtherBackbone",)), store)
    assert Colours.embedded == {"images": 6}


def test_without_its_cache_a_store_is_embedded_again_and_scores_the_same(store: PairStore):
    fill(store)
    relabel(COLOURS, store)
    for path in (store.path / "cache").rglob("*.npy"):
        path.unlink()
    Colours.embedded.clear()
    relabel(replace(COLOURS, scorers=("test_embeddings:Redder",)), store)
    assert Colours.embedded == {"images": 6}


def test_a_batch_is_halved_if_memory_runs_out_and_stays_so(store: PairStore, capsys: pytest.CaptureFixture[str]):
    fill(store, n_prompts=4, images_per_prompt=3)
    Colours.max_images = 3
    relabel(replace(COLOURS, batch_size=8), store)
    assert Colours.embedded["images"] == 12
    # 8 and 4 are too many, 2 is not: reported twice, and not again for the second batch
    assert re.findall(r"memory ran out; scoring (\d) at a time", capsys.readouterr().err) == ["4", "2"]
    Colours.max_images = 0
    with pytest.raises(PrefloopError, match="memory runs out when colours scores one image"):
        relabel(replace(COLOURS, scorers=("test_embeddings:Colours",)), other_store(store))


def other_store(store: PairStore) -> PairStore:
    other = PairStore.create(store.path.parent / "other")
    fill(other, 1)
    return other


def test_halving_keeps_every_row_in_order():
    def half(numbers: Sequence[int], letters: Sequence[str]) -> list[list[float]]:
        if len(numbers) > 2:
            raise MemoryError
        return [[number, ord(letter)] for number, letter in zip(numbers, letters, strict=True)]

    rows = AutoBatch("x")(half, list(range(7)), "abcdefg")
    assert rows.tolist() == [[number, 97 + number] for number in range(7)]


def test_other_errors_of_a_scorer_are_not_mistaken_for_lack_of_memory():
    def broken(_: Sequence) -> list:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        AutoBatch("x")(broken, [1, 2])


def test_a_damaged_cache_does_not_change_scores(store: PairStore, capsys: pytest.CaptureFixture[str]):
    fill(store, n_prompts=2, images_per_prompt=3)
    relabel(COLOURS, store)
    (path,) = (store.path / "cache").rglob("images/*.npy")
    data = bytearray(path.read_bytes())
    data[-40] ^= 64  # in the last embedding
    path.write_bytes(data)
    Colours.embedded.clear()
    capsys.readouterr()
    redder = replace(COLOURS, scorers=("test_embeddings:Redder",))
    assert relabel(redder, store)["scored"] == {"redder": 6}
    assert Colours.embedded == {"images": 6}
    for image, score in store.rows("select image_id, score from scores where scorer = 'redder@1'"):
        assert score == np.asarray(load_image(store.image_path(image)), np.float32)[..., 0].mean()
    assert capsys.readouterr().err.count("fails its checksum") == 1


def test_a_dry_run_counts_and_changes_nothing(store: PairStore):
    fill(store, n_prompts=3, images_per_prompt=3)
    (before,) = plan(COLOURS, store)
    assert (before.unscored, before.embedded, before.batches, before.seconds) == (9, 0, 3, None)
    relabel(COLOURS, store)
    prompt = add_prompt(store, "new")
    add_pair(store, prompt, add_image(store, (1, 1, 1)), add_image(store, (2, 1, 1)))
    store.ingest()
    (new,) = plan(COLOURS, store)
    assert (new.unscored, new.batches) == (2, 1)
    assert new.seconds is not None
    assert 0 < new.seconds < 10  # as long per image as the nine took
    (head,) = plan(replace(COLOURS, scorers=("test_embeddings:Redder",)), store)
    assert (head.unscored, head.embedded, head.batches) == (11, 9, 1)


def test_a_dry_run_on_the_command_line_lists_each_scorer(store: PairStore):
    fill(store, 2)
    words = ["relabel", "--scorer", "hps", "--scorer", "test_embeddings:Colours", "--rule", "majority", "--dry-run"]
    ended = CliRunner().invoke(app, [*words, "--checkpoint", "shapes", "--store", str(store.path)])
    first, second = ended.stdout.splitlines()
    assert first.startswith("hps           4 unscored, 0 of them embedded already; 1 batches; time unknown")
    assert second.startswith("colours       4 unscored")
    assert store.rows("select count(*) from scores") == [(0,)]
    assert store.rows("select count(*) from runs") == [(0,)]


def test_dtype_is_for_scorers_that_take_one(store: PairStore):
    fill(store, 1)
    ended = CliRunner().invoke(
        app, ["relabel", "--scorer", "test_embeddings:Colours", "--dtype", "bfloat16", "--store", str(store.path)]
    )
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "takes no dtype" in ended.stderr
    ended = CliRunner().invoke(
        app, ["relabel", "--scorer", "hps", "--checkpoint", "shapes", "--dtype", "int8", "--store", str(store.path)]
    )
    assert ended.exit_code == 2
    assert "unknown dtype 'int8'; choose from float32, bfloat16, float16" in ended.stderr
