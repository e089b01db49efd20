"""The first page of `browse`: what a store holds, and where each row leads."""

import re
from html import unescape
from uuid import UUID

import pytest
from browsing import add_run, entered
from content import add_generation, add_image, add_label, add_labeler, add_pair, add_prompt
from prefloop.relabel.annotate.overview import Overview
from prefloop.store import PairStore
from prefloop.store.evaluations import add_evaluation

OLD, NEW = UUID(int=1), UUID(int=2)


def rows(text: str, region: str) -> list[list[str]]:
    """The cells of a table's body as words."""
    (table,) = re.findall(rf'aria-label="{region}"><table>(.*?)</table>', text, re.S)
    body = table.split("<tbody>")[1]
    return [
        [
            " ".join(unescape(re.sub(r"<[^>]+>", " ", cell)).split())
            for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)
        ]
        for row in re.findall(r"<tr>.*?</tr>", body, re.S)
    ]


@pytest.fixture
def known(store: PairStore) -> PairStore:
    """Four pairs of four prompts; ann chooses a, b, tie, a and bob b three times; the last pair is of an evaluation."""
    store.append("models", [{"model_id": m, "name": n, "config": "{}"} for m, n in ((OLD, "x/old"), (NEW, "x/new"))])
    for labeler in ("human:ann", "human:bob"):
        add_labeler(store, labeler)
    of_models: list[UUID] = []
    for number, choice in enumerate(("a", "b", "tie", "a")):
        prompt = add_prompt(store, f"prompt {number}")
        images = sorted(add_image(store, (40 * number, shade, 0)) for shade in (10, 200))
        of_models = [add_generation(store, prompt, m, i) for m, i in zip((OLD, NEW), images, strict=True)]
        pair = add_pair(store, prompt, *images, source="eval" if number == 3 else "generate")
        add_label(store, pair, "human:ann", choice)
        if number < 3:
            add_label(store, pair, "human:bob", "b")
        store.ingest()
    add_evaluation(store, {generation: (0, {}) for generation in of_models})
    store.ingest()
    return store


def test_the_overview_counts_rows_and_shares_of_choices(known: PairStore):
    text = entered(known).get("/").text
    counts = dict(re.findall(r"<dt>(\w+)</dt><dd>(?:<a [^>]*>)?([\d,]+)", text))
    assert counts == {"prompts": "4", "images": "8", "pairs": "4", "labels": "7"}
    # ann decided 3 of 4 and tied 1; bob decided all
    assert rows(text, "Labelers") == [
        ["human:ann", "human", "4", "75.0 %", "25.0 %"],
        ["human:bob", "human", "3", "100.0 %", "0.0 %"],
    ]
    assert 'href="/pairs?labeler=human%3Aann&amp;choice=tie"' in text


def test_agreement_is_loaded_after_the_overview_and_leads_to_the_disagreements(known: PairStore):
    client = entered(known)
    assert 'hx-get="/agreement"' in client.get("/").text
    part = client.get("/agreement", headers={"hx-request": "true"}).text
    assert "<html" not in part
    # of ann's a, b, tie and bob's b, b, b one is the same
    ((labeler, other, n, agree, _, n_decided, _),) = rows(part, "Agreement between labelers")
    assert (labeler, other, n, n_decided) == ("human:ann", "human:bob", "3", "2")
    assert agree == "33.3 % (no interval: 3 prompts, at least 10 are needed)"
    (link,) = re.findall(r'href="(/pairs[^"]*)"', part)
    assert "1 pair<" in client.get(unescape(link)).text
    assert "<h1>Agreement between labelers</h1>" in client.get("/agreement").text


def test_the_overview_shows_what_another_process_adds(known: PairStore):
    overview = Overview(known)
    assert overview.counts()["labels"] == 7
    other = PairStore.open(known.path)
    ((pair,),) = other.rows("select pair_id from pairs where source = 'eval'")
    add_label(other, pair, "human:bob", "a")
    other.ingest()
    assert overview.counts()["labels"] == 8
    assert [row["labels"] for row in overview.labelers()] == [4, 4]


def test_an_evaluation_has_its_win_rates_in_the_order_of_its_judges_and_leads_to_its_pairs(known: PairStore):
    ((evaluation,),) = known.rows("select distinct evaluation_id from evaluations")
    wins = {"win_rate": 0.625, "win_rate_low": 0.55, "win_rate_high": 0.7, "n_prompts": 40, "in_sample": False}
    summary = {
        "evaluation_id": str(evaluation),
        "name": "first",
        "scorer_ids": [["hps", "hps@1"], ["clip", "clip@2"]],
        "models": [{"model": "x/new", "baseline": "x/old"}, {"model": "x/old", "baseline": None}],
        "model": "x/new",
        "baseline": "x/old",
        "scorers": {"clip": wins | {"in_sample": True}, "hps": wins | {"win_rate_low": None, "n_prompts": 3}},
        "other_comparisons": [],
    }
    add_run(known, config={"name": "first"}, summary=summary, seconds=130)
    client = entered(known)
    text = client.get("/").text
    assert re.findall(r'<th scope="col" class="words">(model|against|baseline)</th>', text)[:2] == ["model", "baseline"]
    assert rows(text, "Win rates of first") == [
        ["hps", "62.5 %", "no interval: 3 prompts, at least 10 are needed", "3", "new", "old"],
        ["clip in-sample", "62.5 %", "55.0 to 70.0 %", "40", "new", "old"],
    ]
    ((run, *_, duration, result, _),) = rows(text, "Runs")
    assert (run.split()[0], duration, result) == ("eval", "2 min", "wins 62.5 % by hps, 1 more")
    assert f'href="/pairs?labeler=eval%3Ahps%401&amp;evaluation={evaluation.hex}"' in text
    pairs = client.get(f"/pairs?evaluation={evaluation.hex}").text
    assert "1 pair<" in pairs
    assert "evaluation <b>first</b>" in pairs


def test_the_store_is_named_by_its_path_without_detours(store: PairStore):
    (store.path.parent / "a").mkdir()
    text = entered(PairStore.open(store.path.parent / "a" / ".." / store.path.name)).get("/").text
    assert f'<p class="dim">Store <code>{store.path.resolve()}</code></p>' in text


def test_an_empty_store_has_an_overview(store: PairStore):
    text = entered(store).get("/").text
    for line in ("No labelers yet", "No evaluations yet", "No runs yet"):
        assert line in text
