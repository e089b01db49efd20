"""`--compile`: torch.compile for the blocks that a model repeats, which it compiles once for all of them."""

import importlib.util
import os
import shutil
import sys
from typing import Any

from ..core.errors import PrefloopError, UsageError
from ..models.families import Family

_BACKEND = "inductor"
_VARIANTS = 64
"""Compiled forms of a block: by width, size, with the adapter and without, with gradients and without. torch keeps 8, and runs
all others uncompiled."""


def compile_blocks(component: Any) -> None:
    """Compile each repeated block in place: names of weights, and so checkpoints and results, stay as they are."""
    import torch._dynamo.config as settings

    settings.recompile_limit = max(settings.recompile_limit, _VARIANTS)
    component.compile_repeated_blocks(backend=_BACKEND)


def refuse_uncompilable(family: Family) -> None:
    """
    Raises:
        UsageError: if diffusers knows no repeated blocks of the model.
    """
    import diffusers

    if not getattr(getattr(diffusers, family.model_class), "_repeated_blocks", None):
        raise UsageError(
            f"compile is for models whose repeated blocks diffusers knows, and it knows none of {family.model_class}; "
            "leave --compile out"
        )


def refuse_no_compiler(on_cpu: bool) -> None:
    """
    Raises:
        PrefloopError: if torch.compile has no compiler on this machine.
    """
    if on_cpu:
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            raise PrefloopError(
                f"--compile needs a C++ compiler, and {compiler} was not found; install one, name it in CXX, or leave --compile out"
            )
    elif sys.platform != "darwin":
        if importlib.util.find_spec("triton") is None:
            raise PrefloopError("--compile needs triton on a GPU: pip install triton, or leave --compile out")
        if shutil.which(os.environ.get("CC") or "gcc") is None and shutil.which("clang") is None:
            raise PrefloopError(
                "--compile needs a C compiler for triton, and gcc was not found; install one, or leave --compile out"
            )
