"""Browsing pairs: every filter against a store with known contents, what a page shows of a pair, and images."""

import io
import re
from html import unescape
from pathlib import Path
from urllib.parse import parse_qsl
from uuid import UUID

import pytest
from browsing import entered
from content import add_generation, add_image, add_label, add_labeler, add_pair, add_prompt, add_scores, fill
from pages import label_server
from PIL import Image
from prefloop.relabel.annotate.browse_queries import page_of_pairs
from prefloop.relabel.annotate.filters import PAGE, Filters
from prefloop.relabel.annotate.thumbnails import THUMBNAIL, ImageCache
from prefloop.store import PairStore
from prefloop.store.images import png_bytes
from starlette.testclient import TestClient

OLD, NEW, RUN = UUID(int=1), UUID(int=2), UUID(int=9)
HOSTILE = "<b onmouseover=alert(1)>100% 'of' \"it\"</b>"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[PairStore, list[UUID]]:
    """Six pairs: kind=odd of the old model, kind=even of both; margins of 'one' are 0.5, 1.5, …; 'two' always chooses b."""
    store = PairStore.create(tmp_path_factory.mktemp("browse") / "store")
    store.append("models", [{"model_id": m, "name": n, "config": "{}"} for m, n in ((OLD, "old"), (NEW, "new"))])
    for labeler in ("one", "two"):
        add_labeler(store, labeler, kind="ai")
    pairs, scores = [], {}
    for number in range(6):
        kind = ("even", "odd")[number % 2]
        text = HOSTILE if number == 5 else f"Prompt number {number} of 100_percent"
        prompt = add_prompt(store, text, kind=kind, **{'we"ird': "x'y"})
        images = sorted(add_image(store, (40 * number, shade, 0)) for shade in (10, 200))
        for image, model in zip(images, (OLD, NEW if kind == "even" else OLD), strict=True):
            add_generation(store, prompt, model, image)
        source = "eval" if number == 4 else "generate"
        pairs.append(add_pair(store, prompt, *images, source=source, run_id=RUN if number < 2 else None))
        choice = ("a", "b", "tie")[number % 3]
        add_label(store, pairs[-1], "one", choice, margin=number + 0.5, p_a=0.25)
        if number < 4:
            add_label(store, pairs[-1], "two", "b", margin=0.0)
        scores |= {(prompt, images[0]): float(number), (prompt, images[1]): 2.0}
    add_scores(store, "clip@1", scores)
    store.ingest()
    return store, pairs


@pytest.fixture(scope="module")
def client(known: tuple[PairStore, list[UUID]]) -> TestClient:
    return entered(known[0])


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, {0, 1, 2, 3, 4, 5}),
        ({"text": "NUMBER 3"}, {3}),
        ({"text": "100_p"}, {0, 1, 2, 3, 4}),  # _ and % are not wildcards
        ({"text": "0%"}, {5}),
        ({"text": "' or true --"}, set()),
        ({"labeler": "one"}, {0, 1, 2, 3, 4, 5}),
        ({"labeler": "two"}, {0, 1, 2, 3}),
        ({"labeler": "nobody"}, set()),
        ({"labeler": "one", "choice": "tie"}, {2, 5}),
        ({"labeler": "one", "choice": "decided"}, {0, 1, 3, 4}),
        ({"labeler": "two", "choice": "none"}, {4, 5}),
        ({"choice": "skip"}, set()),
        ({"labeler": "one", "min_margin": "1.5", "max_margin": "3.5"}, {1, 2, 3}),
        ({"min_margin": "4.6"}, {5}),
        ({"differs": "any"}, {0, 3}),  # one chooses a, two chooses b
        ({"labeler": "one", "differs": "two"}, {0, 3}),
        ({"labeler": "two", "differs": "one"}, {0, 3}),
        ({"labeler": "one", "differs": "any"}, {0, 3}),
        ({"model": NEW.hex}, {0, 2, 4}),
        ({"model": OLD.hex}, {0, 1, 2, 3, 4, 5}),
        ({"model": UUID(int=3).hex}, set()),
        ({"source": "eval"}, {4}),
        ({"source": "pair"}, set()),
        ({"run": RUN.hex}, {0, 1}),
        ({"run": UUID(int=3).hex}, set()),
        ({"evaluation": UUID(int=3).hex}, set()),
        ({"tag": "kind=odd"}, {1, 3, 5}),
        ({"tag": "we\"ird=x'y"}, {0, 1, 2, 3, 4, 5}),
        ({"tag": "kind=x' or '1'='1"}, set()),
        ({"tag": "kind=even", "source": "generate", "labeler": "one", "max_margin": "1"}, {0}),
    ],
    ids=str,
)
def test_a_filter_finds_exactly_the_pairs_that_match(
    known: tuple[PairStore, list[UUID]], query: dict[str, str], expected: set[int]
):
    store, pairs = known
    page, total = page_of_pairs(store, Filters.from_query(query))
    assert {pairs.index(pair.pair_id) for pair in page} == expected
    assert total == len(expected)


def test_pairs_come_in_the_selected_order(known: tuple[PairStore, list[UUID]]):
    store, pairs = known
    orders = {"": sorted(pairs), "largest": pairs[::-1], "smallest": pairs, "prompt": [pairs[5], *pairs[:5]]}
    for order, expected in orders.items():
        query = {"order": order, "labeler": "one"}
        assert [pair.pair_id for pair in page_of_pairs(store, Filters.from_query(query))[0]] == expected, order


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("page=0", "page must be a number"),
        ("page=x", "page must be a number"),
        ("page=99999999999", "page must be a number"),
        ("order=margin;drop", "order must be one of largest, smallest, prompt"),
        ("choice=c", "choice must be one of"),
        ("min_margin=nan", "min_margin must be a number"),
        ("max_margin=1e999", "max_margin must be a number"),
        ("model=shapes", "32 hex digits"),
        ("tag=kind", "KEY=VALUE"),
        ("source=x", "source must be one of"),
        ("run=x", "run must be the 32 hex digits"),
        ("evaluation=x", "evaluation must be the 32 hex digits"),
    ],
)
def test_an_invalid_filter_is_named_and_shown_again(client: TestClient, query: str, message: str):
    answer = client.get(f"/pairs?{query}")
    assert answer.status_code == 400
    text = unescape(answer.text)
    assert message in text
    name, value = query.split("=")
    if name in ("min_margin", "max_margin", "tag"):
        assert f'name="{name}" value="{value}"' in text


def test_all_filters_are_in_the_address():
    query = {"labeler": "human:me & you", "text": "a+b=c", "tag": "k=v", "order": "smallest", "page": "3"}
    filters = Filters.from_query(query)
    parsed = dict(parse_qsl(filters.url().removeprefix("/pairs?")))
    assert parsed == query
    assert Filters.from_query(parsed) == filters
    assert Filters().url() == "/pairs"


def test_every_pair_is_on_exactly_one_page(store: PairStore):
    prompt = add_prompt(store, "many")
    images = sorted(add_image(store, (value, 0, 0)) for value in range(9))
    pairs = {add_pair(store, prompt, a, b) for a in images for b in images if a < b}
    store.ingest()
    client = entered(store)
    address, seen = "/pairs", []
    for _ in range(5):
        text = client.get(address).text
        seen += re.findall(r'href="/pair/(\w{32})"', text)
        next_page = re.findall(r'href="([^"]+)" rel="next"', text)
        if not next_page:
            break
        address = unescape(next_page[0])
    # 36 pairs: one page of 24 and one of 12
    assert (len(pairs), PAGE, len(seen)) == (36, 24, 36)
    assert {UUID(hex_digits) for hex_digits in seen} == pairs


def test_a_pair_shows_its_scores_labels_and_origin(known: tuple[PairStore, list[UUID]], client: TestClient):
    _, pairs = known
    text = unescape(re.sub(r"<[^>]+>", " ", client.get(f"/pair/{pairs[3].hex}").text))
    words = " ".join(text.split())
    assert "Prompt number 3 of 100_percent" in words
    assert "kind=odd" in words
    assert "clip@1 3.0000 2.0000 +1.0000" in words
    assert "one 0 a 0.250 3.5" in words
    assert "two 0 b 0" in words
    assert "old, seed 0, image 0" in words
    assert client.get(f"/pair/{UUID(int=3).hex}").status_code == 404


def cards(text: str) -> list[str]:
    """The words of each pair on a page, in order."""
    found = re.findall(r'<li class="pair">(.*?)</li>', text, re.S)
    return [" ".join(unescape(re.sub(r"<[^>]+>", " ", card)).split()) for card in found]


def test_the_choice_of_the_selected_labeler_is_in_words_and_models_are_named_in_evaluations(
    known: tuple[PairStore, list[UUID]], client: TestClient
):
    _, pairs = known
    # one chooses a, b, tie, a, b, tie; pair 4 is of an evaluation: old generated its first image, new its second
    shown = cards(client.get("/pairs?labeler=one&order=smallest").text)
    captions = [
        "a ✓ chosen b",
        "a b ✓ chosen",
        "a = tie b = tie",
        "a ✓ chosen b",
        "a old b new ✓ chosen",
        "a = tie b = tie",
    ]
    assert [card.split(" Prompt")[0].split(" <b")[0] for card in shown] == captions
    assert "chosen" not in client.get("/pairs").text
    details = client.get(f"/pair/{pairs[4].hex}?labeler=one").text
    assert details.count("✓ chosen") == 1
    assert "✓ chosen" in details.split("<figure")[2]


def test_each_filter_can_be_removed_alone(client: TestClient):
    text = client.get("/pairs?labeler=one&choice=tie&min_margin=3&order=largest&page=1").text
    removals = {
        unescape(name): unescape(url)
        for url, name in re.findall(r'<li><a class="chip" href="(.*?)" aria-label="Remove the filter (.*?)">', text)
    }
    assert {name: dict(parse_qsl(url.removeprefix("/pairs?"))) for name, url in removals.items()} == {
        "labeler one": {"choice": "tie", "min_margin": "3", "order": "largest"},
        "choice tie": {"labeler": "one", "min_margin": "3", "order": "largest"},
        "margin from 3": {"labeler": "one", "choice": "tie", "order": "largest"},
    }
    assert "model <b>new</b>" in client.get(f"/pairs?model={NEW.hex}").text
    assert 'class="chip" href' not in client.get("/pairs?order=largest").text


def test_an_empty_page_says_which_filter_to_drop(client: TestClient):
    # two never ties, but labels four pairs; without a labeler, pair 5 is a tie by all of its labelers
    text = client.get("/pairs?labeler=two&choice=tie").text
    links = [(unescape(url), unescape(words)) for url, words in re.findall(r'<li><a href="(.*?)">(.*?)</a></li>', text)]
    assert links[-2:] == [
        ("/pairs?choice=tie", "1 pair without labeler two"),
        ("/pairs?labeler=two", "4 pairs without choice tie"),
    ]
    text = client.get("/pairs?labeler=nobody&text=no+such&source=import").text
    assert "Removing one filter does not help" in text
    assert "Page 7 does not exist" in client.get("/pairs?page=7").text


def test_prompts_and_names_are_shown_as_text(known: tuple[PairStore, list[UUID]], client: TestClient):
    for path in ("/pairs", f"/pair/{known[1][5].hex}"):
        text = client.get(path).text
        assert "&lt;b onmouseover=alert(1)&gt;" in text
        assert "<b onmouseover" not in text
    text = client.get("/pairs?text=%22%3E%3Cscript%3Ealert(1)%3C/script%3E").text
    assert "<script>" not in text
    assert "&#34;&gt;&lt;script&gt;" in text


# Images


def test_a_page_shows_the_pixels_that_scorers_see(store: PairStore, tmp_path: Path):
    red = Image.new("RGB", (20, 10), (200, 0, 0))
    turned = red.copy()
    turned.paste((0, 0, 200), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    turned.save(tmp_path / "turned.jpg", exif=exif)
    clear = png_bytes(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))
    plain = png_bytes(red)
    rows = [store.write_image((tmp_path / "turned.jpg").read_bytes(), 10, 20, "jpg")]
    rows += [store.write_image(clear, 4, 4), store.write_image(plain, 20, 10)]
    store.append("images", rows)
    store.ingest()
    images = ImageCache(store)
    first, second, third = (images.get(row["image_id"]) for row in rows)
    assert (_opened(first[0]).size, first[1]) == ((10, 20), "image/png")
    assert _opened(second[0]).getpixel((0, 0)) == (255, 255, 255)
    assert third == (plain, "image/png")  # the file itself


def test_a_thumbnail_is_small(store: PairStore):
    row = store.write_image(png_bytes(Image.effect_noise((900, 600), 80).convert("RGB")), 900, 600)
    store.append("images", [row])
    store.ingest()
    data, media_type = ImageCache(store).get(row["image_id"], small=True)
    assert media_type == "image/webp"
    assert _opened(data).size == (THUMBNAIL, THUMBNAIL * 600 // 900 + 1)


def test_an_image_whose_file_changed_is_not_shown(store: PairStore):
    image = add_image(store, (9, 9, 9))
    store.ingest()
    store.image_path(image).write_bytes(png_bytes(Image.new("RGB", (8, 8))))
    answer = entered(store).get(f"/image/{image.hex}")
    assert answer.status_code == 410
    assert "cannot be shown: hash" in answer.text


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_a_command_in_a_message_is_shown_as_code_and_never_as_html(store: PairStore):
    pair, *_ = fill(store, 1)
    add_labeler(store, "human:<b>x")
    add_label(store, pair, "human:<b>x", "a")
    store.ingest()
    page = entered(store).get("/raters").text
    assert "too; <code>prefloop label --overlap 2</code> has two people label each pair</li>" in page
    assert "<b>x" not in page


def test_raters_are_shown_to_the_operator_and_not_to_raters(store: PairStore):
    pairs = fill(store, 12)
    assert "No person has labelled pairs yet" in entered(store).get("/raters").text
    server = label_server(store, overlap=2)
    for name in ("ann", "ben"):
        person = server.enter(name)
        for _ in pairs:
            person.choose("left")
    store.ingest()
    text = unescape(entered(store).get("/raters").text)
    assert "human:ann</th>" in text
    assert "100.0 % (75.8 to 100.0)" in text  # Wilson's lower end of 12 of 12: 12 / 15.84
    assert "human:ann chose the left image in 100 % of 12 answers" in text
    assert "Krippendorff's alpha" in text
    assert server.enter("cat").client.get("/raters").status_code == 404
