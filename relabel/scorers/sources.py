"""The published files that a scorer reads if no checkpoint is given: whether they are here, and how to get them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...core.download import download
from ...core.errors import IntegrityError, PrefloopError, UsageError
from ...core.files import user_cache, write_atomic
from ...core.hashing import sha256
from ...core.hub import hub_reachable
from ...core.text import size
from . import checkpoints
from .registry import scorer_class

_SHA256 = re.compile(r"[0-9a-f]{64}")


class MissingWeights(PrefloopError):
    """A scorer's published files are not on this machine and cannot be downloaded now."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files of one repository of the hub, or one file of another server."""

    repository: str = ""
    """owner/name on the hub; empty for a file of another server."""
    files: tuple[str, ...] = ()
    """What is read of it. Empty: all settings and .safetensors files, as for a repository that a user names."""
    optional: tuple[str, ...] = ()
    """Read too, if the repository has them."""
    same_in: tuple[str, ...] = ()
    """Other repositories whose files of these names are as good, if they are here already."""
    url: str = ""
    """http(s) address of the only file; its sha256 must be given."""
    n_bytes: int | None = None
    """Size of the download; None if it is not known."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """File → hash of the published one, as hex."""

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.repository):
            raise ValueError(f"a source is of a repository or of a url, got {self.repository!r} and {self.url!r}")
        if self.url and (len(self.files) != 1 or self.files[0] not in self.sha256):
            raise ValueError(f"{self.url} needs the name and the sha256 of its one file")

    @property
    def name(self) -> str:
        """As people name it: owner/name, owner/name/file, or the file of another server."""
        if self.url:
            return self.files[0]
        return f"{self.repository}/{self.files[0]}" if self._is_one_file else self.repository

    @property
    def _is_one_file(self) -> bool:
        return len(self.files) == 1 and not self.optional

    def local(self, cache: Path | None = None) -> Path | None:
        """The folder with the files on this machine, or the file if it is only one; None if one is missing.

        Args:
            cache: of the hub; the one that its client uses if not given.
        """
        if self.url:
            path = self._own_path
            return path if path.is_file() else None
        if not self.files:
            return checkpoints.cached(self.repository, cache)
        for repository in (self.repository, *self.same_in):
            paths = [checkpoints.cached(f"{repository}/{file}", cache) for file in self.files]
            if all(paths):
                return paths[0] if self._is_one_file or paths[0] is None else paths[0].parent
        return None

    @property
    def _own_path(self) -> Path:
        """Where a file that does not come from the hub is kept, under its hash."""
        return user_cache() / "scorers" / self.sha256[self.files[0]][:16] / self.files[0]

    def fetch(self) -> Path:
        """Download what is missing, continuing an interrupted download, and compare the hashes that are known.

        Returns:
            As `local`.

        Raises:
            MissingWeights: if nothing can be downloaded now.
            PrefloopError: if the server refuses or breaks off.
            IntegrityError: if a file has another hash than the published one.
        """
        if (why := offline(self)) is not None:
            raise MissingWeights(f"{self.name} cannot be downloaded: {why}")
        if self.url:
            (file,), path = self.files, self._own_path
            if not path.is_file():
                download(self.url, path, self.sha256[file])
                manifest = {
                    "url": self.url,
                    "file": file,
                    "sha256": self.sha256[file],
                    "bytes": path.stat().st_size,
                }
                write_atomic(path.with_name("manifest.json"), json.dumps(manifest, indent=1).encode())
            return path
        if not self.files:
            return checkpoints.from_hub("a scorer", self.repository)
        for file in (*self.files, *self.optional):
            path = checkpoints.download_file(self.repository, file, optional=file in self.optional)
            if path is not None:
                self._refuse_other(path, file)
        path = self.local()
        assert path is not None
        return path

    def _refuse_other(self, path: Path, file: str) -> None:
        """The hub's cache names a large file by the sha256 that the hub gave for it."""
        given = path.resolve().name
        expected = self.sha256.get(file) or (given if _SHA256.fullmatch(given) else None)
        if expected is not None and (digest := sha256(path)) != expected:
            raise IntegrityError(
                f"{self.repository}/{file} is not the published file: sha256 {digest[:16]}…, expected {expected[:16]}…; "
                f"remove {path.resolve()} and fetch it again"
            )


def as_source(item: Source | str) -> Source:
    """An entry of a scorer's `reads`; a text is owner/name or owner/name/file of the hub."""
    if isinstance(item, Source):
        return item
    if "/" not in item:
        raise UsageError(f"what a scorer reads must be owner/name or owner/name/file of the hub, got {item!r}")
    owner, repository, *file = item.split("/", 2)
    return Source(repository=f"{owner}/{repository}", files=tuple(file))


def sources_of(name: str) -> list[Source]:
    """What an installed scorer reads if no checkpoint is given; empty if it reads nothing or does not say.

    Raises:
        UsageError: if the scorer is not known.
    """
    return [as_source(item) for item in getattr(scorer_class(name), "reads", None) or ()]


def offline(source: Source | None = None) -> str | None:
    """Why nothing can be downloaded now; None if it may be possible."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if source is not None and source.url:
        return None  # whether its server answers shows when it is asked
    return None if hub_reachable() else "the hub does not answer"


def official(scorer: str, source: Source) -> Path:
    """The folder or file of a source, downloaded if it is not here yet.

    Raises:
        MissingWeights: if it cannot be downloaded; the message says why, and which command does it.
    """
    if (path := source.local()) is not None:
        return path
    try:
        return source.fetch()
    except IntegrityError:
        raise
    except PrefloopError as error:
        amount = "" if source.n_bytes is None else f" ({size(source.n_bytes)})"
        built_in = (
            f"; `--checkpoint {scorer}=shapes` uses the built-in world's"
            if checkpoints.built_in(scorer).is_dir()
            else ""
        )
        raise MissingWeights(
            f"{scorer} lacks {source.name}: {error}. With a network, `prefloop scorers fetch {scorer}` gets it{amount}"
            f"{built_in}"
        ) from error
