"""Options derived from the fields of a config."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import pytest
import typer
from prefloop.core.cli import options_of
from prefloop.core.commands import current_names, renamed
from prefloop.core.options import config_fields
from prefloop.eval.config import EvalConfig
from prefloop.generate.config import GenerateConfig
from prefloop.relabel.annotate.config import BrowseConfig, LabelConfig
from prefloop.relabel.config import RelabelConfig
from prefloop.store.exporters.config import ExportConfig
from prefloop.store.importers.config import ImportConfig
from prefloop.train.config import TrainConfig
from typer.testing import CliRunner

CONFIGS = (
    BrowseConfig,
    EvalConfig,
    ExportConfig,
    GenerateConfig,
    ImportConfig,
    LabelConfig,
    RelabelConfig,
    TrainConfig,
)


@dataclass(frozen=True, kw_only=True)
class Bakery:
    name: str
    """Name over
    the door."""
    size: Literal["small", "large"] = "small"
    """small or large."""
    breads: tuple[str, ...] = ("rye",)
    """Kind of bread; repeat for several."""
    prices: dict[str, int] = field(default_factory=dict)
    """BREAD=PRICE; repeat for several."""
    ovens: int = field(default=2, metadata={"help": "Number of " + "ovens."})
    open: bool = False
    """Open to customers."""
    heated: bool = True
    """Heat the oven."""
    oven_temperature: float | None = None
    """Degrees."""


def prices_of(texts: list[str]) -> dict[str, int]:
    return {bread: int(price) for bread, _, price in (text.partition("=") for text in texts)}


@pytest.fixture
def call() -> Callable[..., Any]:
    """Runs a command made from Bakery; gives what it was given, its exit code and what it printed."""
    app, seen = typer.Typer(pretty_exceptions_enable=False), []

    @app.command(cls=renamed({"--kiln": "--oven-temperature", "--loaf": "--bread"}))
    @options_of(Bakery, panels={"Baking": "breads ovens"}, parsers={"prices": prices_of})
    def bake(given: dict[str, Any], fast: bool = False) -> None:
        """Bake."""
        seen.append(given | {"fast": True} if fast else given)

    def run(*arguments: str) -> tuple[Any, int, str]:
        seen.clear()
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "100"})
        return (seen[0] if seen else None), result.exit_code, result.output

    return run


def test_only_the_fields_on_the_command_line_are_given(call: Callable[..., Any]):
    assert call()[0] == {}
    assert call("--fast")[0] == {"fast": True}  # the command's own option
    call("--help")  # which hides --no-open, but for itself alone
    assert call("--name", "Rose", "--ovens", "2", "--no-open")[0] == {"name": "Rose", "ovens": 2, "open": False}


def test_a_tuple_is_an_option_in_the_singular_that_may_be_repeated(call: Callable[..., Any]):
    assert call("--bread", "oat", "--bread", "rye")[0] == {"breads": ("oat", "rye")}
    assert call("--breads", "oat")[1] == 2


def test_a_dict_is_made_by_its_parser(call: Callable[..., Any]):
    assert call("--price", "oat=3", "--price", "rye=4")[0] == {"prices": {"oat": 3, "rye": 4}}


def test_help_shows_each_fields_docstring_on_one_line_and_its_default(call: Callable[..., Any]):
    _, code, text = call("--help")
    assert code == 0
    for line in ("Name over the door.", "small or large.", "Number of ovens.", "[default: small]", "[default: 2]"):
        assert line in text
    # a switch that is off needs neither its default nor its --no- form in the help, one that is on needs both
    assert "no-open" not in text
    assert "--no-heated" in text
    assert "[default: heated]" in text
    assert text.index("--oven-temperature") < text.index("Baking") < text.index("--ovens")


def test_a_default_follows_its_field(call: Callable[..., Any]):
    ovens = next(option for option in config_fields(Bakery) if option.name == "ovens")
    assert ovens.default == Bakery(name="Rose").ovens
    assert call()[0] == {}  # a command never sees a default: Bakery(**given) takes its own


def test_an_earlier_name_works_with_both_spellings_of_a_value_and_is_not_in_the_help(call: Callable[..., Any]):
    assert call("--kiln", "230", "--loaf=oat")[0] == {"oven_temperature": 230.0, "breads": ("oat",)}
    assert call("--kiln=230")[0] == {"oven_temperature": 230.0}
    text = call("--help")[2]
    assert "--kiln" not in text
    assert "--loaf" not in text


def test_earlier_names_after_two_dashes_stay_as_they_are():
    assert current_names(["--a", "--", "--a"], {"--a": "--b"}) == ["--b", "--", "--a"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_field_of_every_stage_has_a_help_text_that_is_a_sentence(config: type):
    options = config_fields(config)
    assert [option.name for option in options] == [field.name for field in fields(config)]
    for option in options:
        assert option.help.endswith((".", ".)")), f"{config.__name__}.{option.name}: {option.help!r}"


def test_a_field_that_must_be_given_is_optional_on_the_command_line_so_that_a_file_can_set_it():
    required = {option.name: option for option in config_fields(TrainConfig)}["output_dir"]
    assert (required.type, required.default) == (str | None, None)


def test_fields_of_a_parent_are_options_too():
    @dataclass(frozen=True, kw_only=True)
    class Cafe(Bakery):
        seats: int = 4
        """Number of seats."""

    helps = {option.name: option.help for option in config_fields(Cafe)}
    assert (helps["name"], helps["seats"]) == ("Name over the door.", "Number of seats.")
