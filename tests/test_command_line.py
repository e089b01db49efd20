"""The commands as one thing: one name for one meaning, a help on everything, an example that works."""

import re
import shlex
from typing import Any

import pytest
import typer
from prefloop.cli import app
from prefloop.core.commands import walk
from typer.testing import CliRunner

ROOT: Any = typer.main.get_command(app)
COMMANDS = dict(walk(ROOT))
BY_NAME = {" ".join(path): command for path, command in COMMANDS.items()}

MEANINGS = {
    # what the help says → the one option that may say it
    r"^folder (of the rounds|of the loop|for the|for a|to create)": "--output-dir",
    r"^folder of the store|^store whose": "--store",
    r"\bcuda, mps or cpu\b": "--device",
    r"^(?!what the vae)(.*\bfloat32\b.*\bfloat16\b|.*\bbfloat16\b.*\bfloat32\b)": "--dtype",
    r"^what the vaes? (en|de)codes? in\b": "--vae-dtype",
    r"^sql condition": "--where",
    r"^seed\b": "--seed",
    r"json document": "--json",
    r"only the first n ": "--limit",
    r"^labelers? whose": "--labeler",
    r"^print .* and exit": "--dry-run",
    r"^list the recipes": "--recipes",
    r"\bupload\b": "--push-to-hub",
    r"^scorer's checkpoint": "--checkpoint",
    r"^(all: every two images|which pairs: all \(|pairs of two folders)": "--pairing",
    r"\bmaximum fraction\b.*\bunreadable|cannot be read\. above": "--max-unreadable",
    r"(at most|maximum number of|n) pairs (of|per) (a|each)? ?prompt|pairs of a prompt in each round": "--pairs-per-prompt",
    r"^(prompt file|the prompts? sets?)": "--prompts",
}
EARLIER = (
    *("--dir", "--out", "--report", "--output", "--strategy", "--max-pairs", "--cpu", "--labels", "--weights"),
    *(
        "--against",
        "--share",
        "--max-bad",
        "--precision",
        "--lora-targets",
        "--choice-model",
        "--beta-dpo",
        "--unet-init",
    ),
)


def options(command: Any) -> list[Any]:
    """The options that its help shows."""
    return [
        parameter
        for parameter in command.params
        if parameter.param_type_name == "option" and not getattr(parameter, "hidden", False)
    ]


def test_there_are_all_commands():
    assert len(COMMANDS) == 34
    assert {"train", "store query", "scorers check", "prompts fetch"} <= BY_NAME.keys()


@pytest.mark.parametrize("name", BY_NAME)
def test_every_option_and_argument_has_a_help_that_is_a_sentence(name: str):
    for parameter in BY_NAME[name].params:
        text = parameter.help or ""
        assert len(text.split()) >= 2, (parameter.name, text)
        assert text.endswith((".", ".)")), (parameter.name, text)


@pytest.mark.parametrize("name", BY_NAME)
def test_the_help_ends_with_an_example_that_the_command_takes(name: str):
    text = BY_NAME[name].help
    (example,) = re.findall(r"^Example: (.*)$", text, re.M)
    words = shlex.split(example.replace("\\$", "$"))
    depth = 1 + len(name.split())
    assert words[:depth] == ["prefloop", *name.split()]
    BY_NAME[name].make_context(name, words[depth:])  # raises what the command line would print


@pytest.mark.parametrize("pattern", MEANINGS)
def test_one_meaning_has_one_option(pattern: str):
    found = [
        (name, parameter.opts[0])
        for name, command in BY_NAME.items()
        for parameter in options(command)
        if re.search(pattern, parameter.help, re.I)
    ]
    assert found
    assert {option for _, option in found} == {MEANINGS[pattern]}, found


def test_earlier_names_are_in_no_help():
    for name, command in BY_NAME.items():
        shown = {option for parameter in options(command) for option in parameter.opts}
        assert not shown & set(EARLIER), name


def test_an_option_has_the_same_type_in_all_commands():
    kinds: dict[str, set[str]] = {}
    for command in BY_NAME.values():
        for parameter in options(command):
            kind = str(parameter.type_descriptor.annotation).replace(" | None", "")
            kinds.setdefault(parameter.opts[0], set()).add(kind)
    # where several models can be named, and where one; a sweep of prompts and a file's; an evaluation's name and a query's
    several = {"--model", "--labeler", "--scorer"}
    paths = {"--store", "--output-dir", "--push-to-hub"}  # Path or str: the same words
    differing = {option for option, found in kinds.items() if len(found) > 1}
    assert differing <= several | paths, {option: kinds[option] for option in differing}


def test_every_command_takes_json_and_no_other_spelling_of_it():
    for name, command in BY_NAME.items():
        (json,) = [parameter for parameter in options(command) if "--json" in parameter.opts]
        assert (json.is_flag, json.default) == (True, False), name


def test_where_a_model_runs_the_device_can_be_chosen():
    for name in ("generate", "relabel", "train", "eval", "loop", "demo", "scorers check"):
        assert "--device" in {parameter.opts[0] for parameter in options(BY_NAME[name])}, name
    for name in ("generate", "relabel", "eval", "scorers check"):
        assert "--dtype" in {parameter.opts[0] for parameter in options(BY_NAME[name])}, name


@pytest.mark.parametrize("name", BY_NAME)
def test_a_paragraph_of_a_help_is_one_line(name: str):
    """A line break inside of it would be shown, wherever the terminal breaks lines."""
    assert all("\n" not in paragraph for paragraph in BY_NAME[name].help.strip().split("\n\n")), BY_NAME[name].help


def test_no_help_shows_what_only_the_parser_needs():
    """A switch is not a <bool>, a list is told by its items, and an argument is in capitals as in messages."""
    shown = {
        path: CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "120"}).output
        for path in [(), ("store",), *COMMANDS]
    }
    for path, text in shown.items():
        for noise in ("<bool>", "list[", "int range", "{", "}", "<="):
            assert noise not in text, (path, noise)
    assert "prompts fetch [OPTIONS] NAMES... " in shown["prompts", "fetch"]
    assert re.search(r"NAMES +<str> +Prompt sets", shown["prompts", "fetch"])
    assert "scorers check [OPTIONS] [NAMES]... " in shown["scorers", "check"]
    assert re.search(r"--checkpoint +<str> ", shown["scorers", "check"])
    assert "--quick/--no-quick" not in shown[("demo",)]


def test_an_argument_that_became_an_option_is_not_in_the_usage_line():
    shown = CliRunner().invoke(app, ["store", "backup", "--help"], env={"COLUMNS": "120"}).output
    usage = next(line for line in shown.splitlines() if "Usage" in line)
    assert usage.split()[2:] == ["store", "backup", "[OPTIONS]"]
