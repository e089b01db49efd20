"""The `prefloop` command: each stage's commands, attached."""

import sys
from typing import Annotated

import typer

from . import __version__
from .core.cli import say
from .core.commands import App, Root, renamed
from .core.options import config_fields
from .doctor.cli import doctor
from .eval.cli import evaluate
from .generate.cli import generate, pair
from .generate.prompt_sets.cli import app as prompts_app
from .loop.cli import loop
from .relabel.annotate.cli import browse, label, raters
from .relabel.cli import relabel
from .relabel.scorers.cli import app as scorers_app
from .shapes.cli import demo
from .store.cli import app as store_app
from .store.exporters.cli import export
from .store.importers.cli import import_
from .store.maintenance.cli import backup, compact, gc, merge, migrate
from .store.queries.cli import query, schema
from .train.cli import card, train
from .train.config import RENAMED, TrainConfig

# earlier names of options, which keep working
_TRAIN_OPTIONS = {field.name: field.option for field in config_fields(TrainConfig)}
_TRAIN = {f"--{old.replace('_', '-')}": _TRAIN_OPTIONS[new] for old, new in RENAMED.items()}
_TRAIN |= {"--lora-targets": "--lora-target"}
_SWITCHES = {field.option: field.choices for field in config_fields(TrainConfig) if field.switch}
_SCORING = {
    "--weights": "--checkpoint",
    "--share": "--scorer-weight",
    "--pairs": "--select",
    "--max-bad": "--max-unreadable",
}


app = App(
    cls=Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A preference loop for text-to-image diffusion models: generate, relabel, train, eval, around one store.",
)
app.command(cls=renamed({"--dir": "--output-dir"}))(demo)
app.command(cls=renamed({"--dir": "--output-dir"}))(loop)
app.command(cls=renamed({"--pairs": "--pairing"}))(generate)
app.command(cls=renamed({"--strategy": "--pairing"}))(pair)
app.command(cls=renamed(_SCORING))(relabel)
app.command(cls=renamed({"--pairs": "--queue"}))(label)
app.command()(browse)
app.command()(raters)
app.command(cls=renamed(_TRAIN, _SWITCHES))(train)
app.command("eval", cls=renamed({"--against": "--baseline", "--weights": "--checkpoint", "--report": "--output-dir"}))(
    evaluate
)
app.command()(card)
app.command()(doctor)
for command in (query, schema):
    store_app.command()(command)
store_app.command(
    "import",
    rich_help_panel="Import and export",
    cls=renamed({"--max-bad": "--max-unreadable", "--max-pairs": "--pairs-per-prompt"}),
)(import_)
store_app.command(rich_help_panel="Import and export", cls=renamed({"--labels": "--labeler"}))(export)
for command in (merge, backup, gc, compact, migrate):
    store_app.command(rich_help_panel="Maintenance")(command)
app.add_typer(prompts_app, name="prompts")
app.add_typer(scorers_app, name="scorers")
app.add_typer(store_app, name="store")


def _version(flag: bool) -> None:
    if flag:
        say(f"prefloop {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A preference loop for text-to-image diffusion models: generate, relabel, train, eval, around one store."""


def main() -> None:
    app(prog_name="prefloop", args=sys.argv[1:])


if __name__ == "__main__":
    main()
