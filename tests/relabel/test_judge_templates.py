"""What judges are asked and how their answers are read: the built-in templates, and mistakes in one's own."""

import math
from pathlib import Path

import pytest
from chat_server import ChatServer, Said
from PIL import Image
from prefloop.core.errors import PrefloopError, UsageError
from prefloop.relabel.judges.readers import (
    ChoiceReader,
    NumberReader,
    ProbabilityReader,
    QuestionReader,
    probability_of,
)
from prefloop.relabel.judges.template import read_template, template_names
from prefloop.relabel.judges.vlm import ChatJudge
from prefloop.relabel.scorers.registry import identity, load_scorer, load_scorers

URL = "http://localhost:1/v1#m"
IDENTITIES = {
    "pair": "vlm@ae70ed457722",
    "rationalrewards": "vlm:rationalrewards@03ddc09a3b2b",
    "soft-tifa": "vlm:soft-tifa@b3769ecf87c0",
    "unifiedreward-pair": "vlm:unifiedreward-pair@e59a520ac615",
    "unifiedreward-point": "vlm:unifiedreward-point@c13d0fc537ca",
    "vqascore": "vlm:vqascore@005f10f0b16d",
}
"""Scores and labels are stored under these: published questions must not change by a letter."""


@pytest.mark.parametrize("name", IDENTITIES)
def test_the_question_of_a_built_in_template_does_not_change(name: str):
    assert identity(load_scorer(f"vlm:{name}", URL)) == IDENTITIES[name]
    assert IDENTITIES.keys() == template_names().keys()


def test_how_the_pair_template_is_read_is_pinned_too():
    assert read_template("pair").digest == "c9b078b43c0d"


def contents(name: str, **values: str) -> list[str]:
    """The parts of the message, images as their own text."""
    images = ["first", "second"] if read_template(name).kind == "pair" else ["image"]
    parts = read_template(name).messages(values["prompt"], images, values.get("question"))[-1]["content"]
    return [part.get("text") or f"<{part['image_url']['url']}>" for part in parts]


def test_images_and_prompts_go_where_the_authors_put_them():
    fox = "a {first} fox"  # braces of a prompt are its own
    assert contents("vqascore", prompt=fox) == [
        "<image>",
        'Does this figure show "a {first} fox"? Please answer Yes or No.',
    ]
    assert contents("soft-tifa", prompt=fox, question="Is it red?") == ["<image>", "Is it red? Answer in one word."]
    first, second, text = contents("unifiedreward-pair", prompt=fox)
    assert (first, second) == ("<first>", "<second>")
    assert text.startswith("You are given a text caption and two generated images based on that caption.")
    assert text.endswith("Your task is provided as follows:\nText Caption: [a {first} fox]")
    image, text = contents("unifiedreward-point", prompt=fox)
    assert image == "<image>"
    assert text.endswith("Style Score (1-5): Z\n\nYour task is provided as follows:\nText Caption: [a {first} fox]")
    before, image, after = contents("rationalrewards", prompt=fox)
    assert before == "User Instruction: a {first} fox\nYou are provided with one image:\n1. Generated Image "
    assert image == "<image>"
    assert after.startswith("\n\n\nTo do this, you must first assess the image on three critical aspects")
    text, first, second = contents("pair", prompt=fox)
    assert text.endswith("Answer with one word: first, second or tie.")
    assert (first, second) == ("<first>", "<second>")


def test_a_template_says_how_it_is_sent():
    body = read_template("rationalrewards").body("m", "a fox", ["image"])
    assert (body["temperature"], body["max_tokens"], body["messages"][0]["role"]) == (0.1, 2048, "system")
    assert "logprobs" not in body
    body = read_template("vqascore").body("m", "a fox", ["image"])
    assert (body["temperature"], body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, 1, True, 20)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("First", 1),
        ("second!", 0),
        (" It is a TIE", 0.5),
        ("neither", None),
        ("firstly", None),
        ("first or second", None),
    ],
)
def test_one_word_is_read_if_it_is_the_only_one(text: str, choice: float | None):
    reader = read_template("pair").reader
    assert isinstance(reader, ChoiceReader)
    assert reader.choice(text) == choice


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("The fox of the first is crisp. Image 1 is better.", 1),
        ("Is it that Image 1 is better? No. **Image 2 is better.**", 0),
        ("Both images are equally good.", 0.5),
        ("Image 3 is better.", None),
    ],
)
def test_the_conclusion_of_a_longer_answer_counts(text: str, choice: float | None):
    reader = read_template("unifiedreward-pair").reader
    assert isinstance(reader, ChoiceReader)
    assert reader.choice(text) == choice


def test_unifiedreward_scores_are_averaged_over_their_scale():
    reader = read_template("unifiedreward-point").reader
    assert isinstance(reader, NumberReader)
    text = "Alignment Score (1-5): 2.6\nCoherence Score (1-5): 3\nStyle Score (1-5): 4.4"
    assert reader.score(text) == pytest.approx((1.6 + 2 + 3.4) / 3 / 4)
    assert reader.score(text.replace("4.4", "44")) is None  # not of the scale
    assert reader.score(text.replace("Style", "Taste")) is None


RATIONAL = """# User Request Analysis
Score: 1 would be harsh.
# Detailed Judgement
1. Text Faithfulness:
## Justification: the score: 3 at first, but the fox is red.
## Score: 3.5
2. Physical and Visual Quality:
## Justification: a fifth leg.
## Score: **0.7**
3. Text Rendering:
## Justification: none is asked for.
## Score: N/A
# Summary: 4"""


def test_rationalrewards_averages_the_aspects_that_apply():
    reader = read_template("rationalrewards").reader
    assert isinstance(reader, NumberReader)
    # 3.5 and 0.7, which counts as 1, the lowest: (2.5/3 + 0) / 2
    assert reader.score(RATIONAL) == pytest.approx(2.5 / 3 / 2)
    assert reader.score(RATIONAL.replace("N/A", "4")) == pytest.approx((2.5 / 3 + 0 + 1) / 3)
    assert reader.score(RATIONAL.replace("## Score: 3.5", "")) is None  # and not the next aspect's
    cut = RATIONAL.split("3. Text Rendering")[0]
    assert reader.score(cut) is None  # it ended at max_tokens


def test_probability_is_summed_over_spellings_and_shared_between_yes_and_no():
    top = [("Yes", math.log(0.5)), (" yes", math.log(0.1)), ("No", math.log(0.2)), ("Maybe", math.log(0.2))]
    assert ProbabilityReader().probability(top) == pytest.approx(0.6 / 0.8)
    assert ProbabilityReader().probability(top[:2]) == pytest.approx(1)
    assert ProbabilityReader().probability(top[3:]) is None
    assert probability_of(["Yes"], [("ĠYes", math.log(0.25)), ("▁YES", math.log(0.25))]) == pytest.approx(0.5)


def test_an_answer_may_be_a_number_in_words_or_digits_and_is_never_impossible():
    top = [("two", math.log(0.5)), ("2", math.log(0.25)), ("three", math.log(0.125))]
    reader = QuestionReader()
    assert reader.probability("Two", top) == pytest.approx(0.75)
    assert reader.probability("seven", top) == 1e-6
    assert reader.score([0.9, 0.4]) == pytest.approx(0.6)  # √0.36
    assert QuestionReader(mean="arithmetic").score([0.9, 0.4]) == pytest.approx(0.65)


def test_a_server_without_logprobs_is_told_from_a_wrong_answer():
    server = ChatServer()
    server.answer = lambda _: Said("Yes")
    scorer = load_scorer("vlm:vqascore", f"{server.url}#m")
    with pytest.raises(PrefloopError, match=r"gives no logprobs for little-1, which vlm:vqascore reads; serve"):
        scorer.score(["a fox"], [Image.new("RGB", (8, 8))])
    server.answer = lambda _: Said("Yes", top={"Yes": 0.6, "No": 0.2})
    assert scorer.score(["a fox"] * 3, [Image.new("RGB", (8, 8))] * 3) == pytest.approx([0.75] * 3)
    server.answer = lambda _: Said("Oh", top={"Oh": 0.6})
    assert math.isnan(scorer.score(["a fox"], [Image.new("RGB", (8, 8))])[0])
    server.close()


OWN = """
kind = "point"
prompt = "{image}Rate it. {prompt}"
[answer]
numbers = ['(\\d+)']
scale = [0, 10]
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return f"vlm:{path}"


def test_a_change_of_ones_own_template_is_another_scorer_but_a_comment_is_not(tmp_path: Path):
    def of(text: str) -> str:
        return identity(load_scorer(written(tmp_path, text), URL))

    before = of(OWN)
    assert before.startswith("vlm:mine@")
    assert of(f"# redness\n{OWN}") == of(f'source = "me"\n{OWN}') == before
    changed = [OWN.replace("Rate", "Judge"), OWN.replace("10]", "9]"), f"temperature = 1\n{OWN}", f"{OWN}clamp = true"]
    assert len({before, *map(of, changed)}) == 5


def test_more_fields_of_the_request_are_sent(tmp_path: Path):
    written(tmp_path, f'{OWN}[request]\nmax_completion_tokens = 900\nreasoning_effort = "low"\n')
    body = read_template(str(tmp_path / "mine.toml")).body("m", "a fox", ["image"])
    assert (body["max_completion_tokens"], body["reasoning_effort"]) == (900, "low")
    assert "max_tokens" not in body
    assert "temperature" not in body


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "point"', "", "has no kind"),
        ('"point"', '"picture"', "unknown kind 'picture'; choose from pair, point, probability, questions"),
        ("{image}", "", "needs {image}"),
        ("{image}", "{image}{image}", "has {image} twice"),
        ("{prompt}", "{first}{prompt}", "cannot have {first}"),
        ("kind", 'code = "exit()"\nkind', "sets 'code', which a template does not have"),
        ("kind", "max_tokens = 0\nkind", "max_tokens must be positive"),
        ("kind", 'max_tokens = "8"\nkind', "max_tokens cannot be '8'"),
        ("kind", "temperature = 3\nkind", "temperature must be between 0 and 2"),
        ("numbers = ['(\\d+)']", "", "has no numbers"),
        ("(\\d+)", "\\d+", "patterns with one group"),
        ("(\\d+)", "(\\d+", "unterminated subpattern"),
        ("[0, 10]", "[10, 0]", "scale is the lowest and the highest number"),
        ("scale", "colour = 1\nscale", "sets 'colour'; this kind has numbers, scale, without, clamp"),
        ("[answer]", "[request]\nmodel = 'm'\n[answer]", "cannot set model"),
        ("[answer]", "[request]\nday = 2020-01-01\n[answer]", "cannot be sent as JSON"),
        ("kind", "kind kind", "is not valid TOML"),
    ],
)
def test_a_mistake_in_ones_own_template_is_named(tmp_path: Path, old: str, new: str, message: str):
    with pytest.raises(UsageError) as raised:
        load_scorer(written(tmp_path, OWN.replace(old, new, 1)), URL)
    assert message in str(raised.value)


def test_an_endpoint_that_is_named_for_vlm_serves_its_templates():
    both = load_scorers(["vlm:vqascore", "vlm:rationalrewards"], {"vlm": URL, "vlm:rationalrewards": f"{URL}2"})
    assert [scorer.model for scorer in both if isinstance(scorer, ChatJudge)] == ["m", "m2"]


def test_an_unknown_template_names_those_that_exist():
    with pytest.raises(
        UsageError, match="no template is called 'nope'; templates are pair, rationalrewards, soft-tifa"
    ):
        load_scorer("vlm:nope", URL)
