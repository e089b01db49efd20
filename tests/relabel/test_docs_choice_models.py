"""docs/choice-models.md: its template judges, its queries run, its commands have the options they use."""

import re
import shlex
from pathlib import Path

import pytest
from chat_server import Asked, ChatServer, Said
from content import fill
from prefloop.cli import app
from prefloop.relabel import RelabelConfig
from prefloop.relabel.judges.request_limits import LIMITS, RequestLimits
from prefloop.relabel.judges.template import template_names
from prefloop.relabel.stage import relabel
from prefloop.store import PairStore
from prefloop.store.query import ask
from typer.testing import CliRunner

TEXT = (Path(__file__).parents[2] / "docs" / "choice-models.md").read_text()
SECTION = TEXT.split("## Vision-language models")[1].split("\n## ")[0]
COMMANDS = [
    shlex.split(line, comments=False)
    for block in re.findall(r"```sh\n(.*?)```", SECTION, re.S)
    for line in block.splitlines()
    if line.startswith("prefloop ")
]
(EXAMPLE,) = re.findall(r"```toml\n(.*?)```", SECTION, re.S)
ANSWERS, BIAS = re.findall(r"```sql\n(.*?)```", SECTION, re.S)


def test_the_example_template_reads_what_it_asks_for(store: PairStore, tmp_path: Path):
    fill(store, 1)
    path = tmp_path / "my-judge.toml"
    path.write_text(EXAMPLE)
    server = ChatServer()
    server.answer = lambda asked: Said(f"A finger is missing.\nHands: {5 if asked.reds[0] > 100 else 2.5}")
    scorer = f"vlm:{path}"
    summary = relabel(RelabelConfig(scorers=(scorer,), checkpoints={scorer: f"{server.url}#m"}), store)
    server.close()
    assert summary["labeler"] == "vlm:my-judge"
    assert sorted(store.rows("select score from scores")) == [(0.25,), (0.5,)]
    assert {asked.body["seed"] for asked in server.asked} == {1}
    (text,) = server.asked[0].texts
    assert text.startswith('This image was made for the prompt "prompt 0".\n')


def test_the_queries_show_what_was_answered_and_a_position_bias(store: PairStore):
    fill(store, 4)

    def says(asked: Asked) -> Said:
        """About prompt 0 and 1 the redder one, about prompt 2 always the first, about prompt 3 a tie or the first."""
        number = int(re.findall(r"prompt (\d)", asked.texts[0])[0])
        first_is_redder = asked.reds[0] > asked.reds[1]
        if number < 2:
            return Said("first" if first_is_redder else "second")
        return Said("first" if number == 2 or first_is_redder else "tie")

    server = ChatServer()
    server.answer = says
    relabel(RelabelConfig(scorers=("vlm",), checkpoints={"vlm": f"{server.url}#m"}), store)
    server.close()
    answers = ask(store, ANSWERS).to_pylist()
    assert len(answers) == 8
    assert {(row["prompt"], row["choice"]) for row in answers if row["choice"] == "tie"} == {
        ("prompt 2", "tie"),
        ("prompt 3", "tie"),
    }
    (row,) = ask(store, BIAS).to_pylist()
    # the first wins ½, ½, 1 and (1 + ½) / 2 of the two orders
    assert (row["pairs"], row["agree"], row["first_wins"]) == (4, 0.5, pytest.approx((0.5 + 0.5 + 1 + 0.75) / 4))


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:4]))
def test_every_command_has_the_options_it_uses(words: list[str]):
    shown = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"})
    for option in (word for word in words if word.startswith("--")):
        assert option in shown.output, option


def test_every_template_and_every_limit_is_in_a_table():
    assert set(re.findall(r"^\| `([a-z-]+)` \| ", SECTION.split("### Your own template")[0], re.M)) == set(
        template_names()
    )
    for name in LIMITS:
        default = getattr(RequestLimits(), name)
        shown = "none" if default is None else f"{default:g}"
        assert f"| `--{name.replace('_', '-')}` | {shown} |" in SECTION
