"""Errors of the command line: one look, and the names that were meant."""

import re
from pathlib import Path

import pytest
from prefloop.cli import app
from prefloop.core.commands import naming_options, options_like
from prefloop.store import PairStore
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
    ("store ls --formt json", "no option --formt; did you mean --json?", "store ls"),
    ("store query --formt json", "no option --formt; did you mean --format?", "store query"),
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


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("batch-size must be positive, got 0", "--batch-size must be positive, got 0"),
        ("limit must be positive, got 0", "limit must be positive, got 0"),  # of a file: it was not typed
        ("seed must be at least 0, got -1", "--seed must be at least 0, got -1"),
        ("the seed must be a number", "the seed must be a number"),
        ("labelers must have names", "--labeler must have names"),
        ("min-timestep 5 must be below max-timestep 3", "--min-timestep 5 must be below max-timestep 3"),
        ("'batch-size must' and --batch-size must", "'batch-size must' and --batch-size must"),
    ],
)
def test_a_setting_is_named_as_the_option_that_was_typed(message: str, told: str):
    typed = {name: f"--{name}" for name in ("batch-size", "seed", "min-timestep")} | {"labelers": "--labeler"}
    assert naming_options(message, typed) == told


BOUNDS = [
    ("generate --images-per-prompt 0", "--images-per-prompt must be positive and at most 10000, got 0"),
    ("relabel --max-unreadable 2", "--max-unreadable must be between 0 and 1, got 2.0"),
    ("train --labeler me --output-dir x --learning-rate -1", "--learning-rate must be above 0, got -1"),
    ("eval --model shapes --n-resamples 0", "--n-resamples must be positive and at most 1000000, got 0"),
    ("pair --pairs-per-prompt 0", "--pairs-per-prompt must be positive, got 0"),
    ("label --overlap 0", "--overlap must be from 1 to 1000, got 0"),
    ("browse --port -1", "--port must be from 0 to 65535, got -1"),
    ("store query --timeout 0 x --store STORE", "--timeout must be above 0 and at most 86400 seconds, got 0.0"),
    ("scorers serve clip --batch-size 0", "--batch-size must be between 1 and 100000, got 0"),
    ("loop --rounds 0", "--rounds must be"),
]


@pytest.mark.parametrize(("typed", "line"), BOUNDS, ids=[typed for typed, _ in BOUNDS])
def test_a_number_out_of_bounds_is_told_by_its_option(store: PairStore, typed: str, line: str):
    ended = RUNNER.invoke(app, [str(store.path) if word == "STORE" else word for word in typed.split()])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"prefloop: {line}")


def test_a_number_of_a_file_is_told_by_its_key(tmp_path: Path):
    (tmp_path / "a.toml").write_text("learning_rate = -1\n")
    words = ["train", "--labeler", "me", "--output-dir", "x", "--config", str(tmp_path / "a.toml")]
    assert RUNNER.invoke(app, words).stderr == "prefloop: learning-rate must be above 0, got -1\n"


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
