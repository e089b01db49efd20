"""Errors of the command line: one look, and the names that were meant."""

import re

import pytest
from prefloop.cli import app
from prefloop.core.commands import options_like
from typer.testing import CliRunner

RUNNER = CliRunner()
KNOWN = (
    "--labeler",
    "--label-smoothing",
    "--output-dir",
    "--max-train-steps",
    "--validation-steps",
    "--store",
    "--seed",
)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--labelr", ["--labeler"]),
        ("--Labeler", ["--labeler"]),
        ("--output_dir", ["--output-dir"]),
        ("--output", ["--output-dir"]),  # its beginning
        ("--dir", ["--output-dir"]),  # one of its words
        ("--steps", ["--max-train-steps", "--validation-steps"]),
        ("--xyz", []),
        ("--", []),
    ],
)
def test_the_option_that_was_meant_is_found(typed: str, meant: list[str]):
    assert options_like(typed, KNOWN) == meant


LINES = [
    # what is typed; the first line; the command whose help is named
    ("train --labelr x", "no option --labelr; did you mean --labeler?", "train"),
    ("train --xyz", "no option --xyz", "train"),
    ("train --output_dir=x", "no option --output_dir; did you mean --output-dir?", "train"),
    ("--nope", "no option --nope", ""),
    ("-x", "no option -x", ""),
    ("evl", "no command evl; did you mean eval?", ""),
    ("zzz", "no command zzz", ""),
    ("store schma", "no command schma; did you mean schema?", "store"),
    ("train --labeler", "--labeler requires an argument", "train"),
    ("train --resume=yes", "--resume does not take a value", "train"),
    ("train --beta much", "--beta must be a valid number, got 'much'", "train"),
    ("pair one two", "unexpected argument one two", "pair"),
    ("prompts fetch", "missing argument NAMES: prompt sets of `prefloop prompts ls`", "prompts fetch"),
]


@pytest.mark.parametrize(("typed", "line", "command"), LINES, ids=[typed for typed, *_ in LINES])
def test_an_error_of_the_parser_is_one_line_and_one_that_names_the_help(typed: str, line: str, command: str):
    ended = RUNNER.invoke(app, typed.split(), prog_name="prefloop")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.splitlines() == [f"prefloop: {line}", f"help: {' '.join(f'prefloop {command}'.split())} --help"]


def test_a_command_of_another_group_is_named_in_full():
    ended = RUNNER.invoke(app, ["compact"], prog_name="prefloop")
    assert re.search(r"no command compact; did you mean \w+ store compact\?", ended.stderr)
    several = RUNNER.invoke(app, ["check"], prog_name="prefloop").stderr
    assert [word for word in ("prompts check", "scorers check", "store check") if word in several] == [
        "prompts check",
        "scorers check",
        "store check",
    ]


def test_a_name_that_controls_the_terminal_is_shown_harmless():
    for words in (["\x1b[31mtrain"], ["train", "--\x1b[31m"], ["pair", "\x1b[31m"]):
        ended = RUNNER.invoke(app, words, prog_name="prefloop")
        assert ended.exit_code == 2
        assert "\x1b" not in ended.stderr


def test_no_words_print_the_help():
    for words in ([], ["store"]):
        ended = RUNNER.invoke(app, words, prog_name="prefloop")
        assert ended.exit_code == 2
        assert "Usage: prefloop" in ended.output
        assert "prefloop:" not in ended.output
