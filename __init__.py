"""A preference loop for text-to-image diffusion models: generate, relabel, train, eval, around one store.

Example:
    import prefloop

    store = prefloop.open_store("prefloop-store", create=True)
    store.generate(prompts="shapes", images_per_prompt=2)
    store.relabel(scorers="pickscore", checkpoints="shapes")
    store.sql("select prompt, margin from preferences order by margin desc").to_pandas()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Store, compare, open_store
    from .core.errors import PrefloopError, UsageError
    from .eval.compare import Comparison
    from .eval.config import EvalConfig
    from .generate.config import GenerateConfig
    from .relabel.config import RelabelConfig
    from .relabel.rules import PairScores, Rule
    from .relabel.scorers.registry import Scorer
    from .train.config import TrainConfig

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "EvalConfig",
    "GenerateConfig",
    "PairScores",
    "PrefloopError",
    "RelabelConfig",
    "Rule",
    "Scorer",
    "Store",
    "TrainConfig",
    "UsageError",
    "compare",
    "open_store",
]
_MODULES = {
    "api": "Store compare open_store",
    "core.errors": "PrefloopError UsageError",
    "eval.compare": "Comparison",
    "eval.config": "EvalConfig",
    "generate.config": "GenerateConfig",
    "relabel.config": "RelabelConfig",
    "relabel.rules": "PairScores Rule",
    "relabel.scorers.registry": "Scorer",
    "train.config": "TrainConfig",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import prefloop` alone takes milliseconds."""
    if name in ("generate", "relabel", "train", "evaluate"):
        raise AttributeError(f"a stage is a method of a store: prefloop.open_store(path).{name}(...)")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'prefloop' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
