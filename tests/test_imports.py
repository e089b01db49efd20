"""Imports run one way, and the slow libraries stay out of what must be quick."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("core", "store", "models", "generate", "relabel", "train", "eval", "loop", "shapes", "doctor")
ALLOWED = {
    "core": {"core"},
    "store": {"core", "store"},
    "models": {"core", "store", "models"},
    "generate": {"core", "store", "models", "generate"},
    "relabel": {"core", "store", "models", "relabel"},
    "train": {"core", "store", "models", "train"},
    "eval": {"core", "store", "models", "generate", "relabel", "train", "eval"},
    "doctor": {"core", "store", "models", "relabel", "doctor"},
    "loop": {"core", "store", "models", "generate", "relabel", "train", "eval", "loop"},
}
SLOW = {"torch", "diffusers", "transformers", "open_clip", "accelerate", "peft", "torchvision", "matplotlib"}
AVOIDABLE = {
    "transformers",
    "open_clip",
    "torchvision",
    "matplotlib",
    "scipy",
    "pandas",
    "sklearn",
    "datasets",
    "requests",
}
RAY = "core/ray_workers.py"
SERVERS = {"starlette", "uvicorn", "jinja2"}


def modules(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).glob("*.py" if folder == "." else "**/*.py"))]


def imported(path: Path, *, module_level: bool = False) -> Iterator[str]:
    """Full names; relative ones begin with prefloop."""
    tree = ast.parse(path.read_text())
    for node in tree.body if module_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ("prefloop", *path.relative_to(ROOT).parent.parts)
            start = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, (start, node.module)))
            yield from (f"{module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_run_one_way(folder: str):
    assert modules(folder)
    for path in modules(folder):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "prefloop" and len(parts) > 1 and parts[1] in FOLDERS:
                assert parts[1] in ALLOWED[folder], f"{path.relative_to(ROOT)} imports {name}"


def test_the_import_reader_sees_relative_imports():
    assert "prefloop.core.errors.UsageError" in set(imported(ROOT / "store" / "query.py"))
    assert "prefloop.models.model.Model" in set(imported(ROOT / "models" / "pipelines.py"))
    assert "torch" in set(imported(ROOT / "models" / "pipelines.py", module_level=True))


def test_commands_and_the_store_import_nothing_slow_at_module_level():
    commands = [path for path in modules(*FOLDERS) if path.name in ("cli.py", "config.py")]
    for path in [*modules("core", "store"), ROOT / "cli.py", *commands]:
        slow = {name for name in imported(path, module_level=True) if name.split(".")[0] in SLOW | SERVERS}
        assert not slow, f"{path.relative_to(ROOT)} imports {slow}"


def test_generating_and_training_import_at_module_level_only_what_a_u_net_of_diffusers_imports_anyway():
    # 5 of the 7 seconds that both take to start are diffusers' own: torch._dynamo, peft, and through it transformers and scipy
    assert {"diffusers", "peft"} <= {name.split(".")[0] for path in modules("train") for name in imported(path)}
    for path in modules("models", "generate", "train"):
        names = set(imported(path, module_level=True))
        assert not {name for name in names if name.split(".")[0] in AVOIDABLE}, path.relative_to(ROOT)
        assert not {name for name in names if name.startswith("diffusers.pipelines.auto_pipeline")}, path


@pytest.mark.slow(reason="reads every module")
def test_one_file_imports_ray_and_nothing_imports_it_at_module_level():
    for path in modules(".", *FOLDERS):
        name = path.relative_to(ROOT).as_posix()
        assert any(module.split(".")[0] == "ray" for module in imported(path)) == (name == RAY), name
        assert not any("ray_workers" in module for module in imported(path, module_level=True)), name


def test_only_the_command_line_imports_typer():
    for path in modules(".", *FOLDERS):
        if path.name != "cli.py" and path != ROOT / "core" / "commands.py":
            assert not any(name.split(".")[0] in ("typer", "click") for name in imported(path)), path


def test_each_module_of_the_tests_has_its_own_name():
    # pytest imports them by their names alone: the second of two with one name is an error, or the wrong module
    counts = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert counts["test_imports.py"] == 1
    assert not [name for name, count in counts.items() if count > 1]
