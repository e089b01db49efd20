"""Facts about this machine, each with what to do if something is missing. No model is loaded, and nothing is downloaded."""

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from .. import __version__
from ..core.hub import hub_reachable
from ..core.text import plural, size

PACKAGES = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "duckdb")
LITTLE_SPACE = 20 << 30
"""Bytes; a pipeline of Stable Diffusion XL has 7 GB, and a checkpoint of all its weights three times that."""
Section = Literal["versions", "devices", "disk", "scorers", "hub"]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """`dataclasses.asdict` turns it into JSON."""

    section: Section
    name: str
    ok: bool
    """False if a stage will refuse or fail for want of it."""
    text: str
    cure: str | None = None
    """What to do, if there is something to do."""
    values: dict[str, Any]
    """The same for machines; sizes in bytes."""


def all_facts(store: Path, *, cache: Path | None = None, network: bool = False) -> list[Fact]:
    """
    Args:
        store: folder of the store; it may not exist.
        cache: of the hub; the one that its client uses if not given.
        network: try whether the hub answers.
    """
    return [
        *versions(),
        *devices(),
        disk(store),
        *scorers(cache),
        hub(network),
        *cached_models(cache),
    ]


def versions(packages: Sequence[str] = PACKAGES) -> list[Fact]:
    facts = [
        Fact(section="versions", name=name, ok=True, text=number, values={"version": number})
        for name, number in (("prefloop", __version__), ("python", platform.python_version()))
    ]
    for name in packages:
        try:
            number = version(name)
            facts.append(Fact(section="versions", name=name, ok=True, text=number, values={"version": number}))
        except PackageNotFoundError:
            facts.append(
                Fact(
                    section="versions",
                    name=name,
                    ok=False,
                    text="not installed",
                    cure=f"pip install {name}",
                    values={"version": None},
                )
            )
    return facts


def devices() -> list[Fact]:
    """The CPU, and the accelerators that torch can use, with their memory and the precisions that they compute in."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    facts = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        # from compute capability 8.0, Ampere, on
        precisions = ["float32", "float16"] + (["bfloat16", "TF32"] if major >= 8 else [])
        facts.append(
            _device(
                f"cuda:{index}",
                f"{torch.cuda.get_device_name(index)} (compute capability {major}.{minor}), {size(free)} free of {size(total)}",
                precisions,
                total,
                None
                if major >= 8
                else "give --mixed-precision fp16: bf16, which recipes have, is emulated and slow here",
            )
        )
    if torch.backends.mps.is_available():
        facts.append(_device("mps", "Apple GPU", ["float32", "float16"], torch.mps.recommended_max_memory(), None))
    has_accelerator = bool(facts)
    facts.append(
        _device(
            "cpu",
            f"{plural(os.cpu_count() or 1, 'core')}" + ("" if memory is None else f", {size(memory)} of memory"),
            ["float32", "bfloat16"],
            memory,
            None
            if has_accelerator
            else f"no GPU that torch {torch.__version__} can use: enough for the built-in models; for others install the "
            "driver and a build of torch for your GPU (https://pytorch.org/get-started)",
        )
    )
    return facts


def _device(name: str, text: str, precisions: list[str], memory: int | None, cure: str | None) -> Fact:
    return Fact(
        section="devices",
        name=name,
        ok=True,
        text=f"{text}; {', '.join(precisions)}",
        cure=cure,
        values={"memory_bytes": memory, "precisions": precisions},
    )


def disk(store: Path) -> Fact:
    """Free space where the store is or would be."""
    folder = store.expanduser().absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free, exists = shutil.disk_usage(folder).free, (store.expanduser() / "journal").is_dir()
    cures = []
    if not exists:
        cures.append("`prefloop generate` or `prefloop store import` creates the store")
    if free < LITTLE_SPACE:
        cures.append("checkpoints and images may not fit: name a folder on a larger disk with --store and --output-dir")
    return Fact(
        section="disk",
        name="store",
        ok=free >= LITTLE_SPACE,
        text=f"{size(free)} free for {store}, {'which exists' if exists else 'which does not exist yet'}",
        cure="; ".join(cures) or None,
        values={"path": str(store), "exists": exists, "free_bytes": free},
    )


def scorers(cache: Path | None = None) -> list[Fact]:
    """Each installed scorer, and whether the weights that it reads by default are here: as `prefloop scorers ls`."""
    from ..relabel.scorers.availability import installed

    facts = []
    for scorer in installed(cache=cache):
        if scorer.weights == "unknown":
            text, cure = "what it reads is not known", f"`prefloop scorers check {scorer.name}` loads it"
        else:
            text, cure = "ready" if scorer.runs else scorer.lacks, scorer.cure
        values = asdict(scorer) | {"missing": list(scorer.missing)}
        facts.append(Fact(section="scorers", name=scorer.name, ok=scorer.runs, text=text, cure=cure, values=values))
    return facts


def hub(network: bool = False) -> Fact:
    """Whether the hub may be asked, and if `network`, whether it answers."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return _hub(
            "offline", "offline: HF_HUB_OFFLINE is set", "unset it to download models; what is in the cache can be used"
        )
    if not network:
        return _hub("not tried", "online; whether the hub answers was not tried", "--network tries it")
    if hub_reachable():
        return _hub("reachable", "the hub answers", None)
    cure = "check the network and HTTPS_PROXY, or `hf download` elsewhere and copy the cache; what is in it can be used"
    return _hub("unreachable", "the hub does not answer", cure)


def _hub(state: str, text: str, cure: str | None) -> Fact:
    return Fact(section="hub", name="network", ok=state != "unreachable", text=text, cure=cure, values={"state": state})


def cached_models(cache: Path | None = None) -> list[Fact]:
    """The models in the cache of the hub, the largest first."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import CacheNotFound

    folder = Path(cache or HF_HUB_CACHE)
    try:
        repositories = [repo for repo in scan_cache_dir(folder).repos if repo.repo_type == "model"]
    except (CacheNotFound, ValueError):
        repositories = []
    total = sum(repo.size_on_disk for repo in repositories)
    facts = [
        Fact(
            section="hub",
            name="cache",
            ok=True,
            text=f"{plural(len(repositories), 'model')}, {size(total)}, in {folder}",
            cure=None if repositories else "`hf download OWNER/NAME` or the first use of a model fills it",
            values={"path": str(folder), "n_models": len(repositories), "bytes": total},
        )
    ]
    for repo in sorted(repositories, key=lambda repo: (-repo.size_on_disk, repo.repo_id)):
        facts.append(
            Fact(
                section="hub",
                name=repo.repo_id,
                ok=True,
                text=size(repo.size_on_disk),
                values={"bytes": repo.size_on_disk},
            )
        )
    return facts


def as_text(facts: Sequence[Fact]) -> str:
    """A line for each fact."""
    width, lines, section = max(len(fact.name) for fact in facts) + 2, [], None
    for fact in facts:
        head = fact.section if fact.section != section else ""
        section = fact.section
        cure = "" if fact.cure is None else f"; {fact.cure}"
        lines.append(f"{head:<10}{'ok' if fact.ok else '--':<4}{fact.name:<{width}}{fact.text}{cure}")
    return "\n".join(lines)
