"""The files of a prompt set: in the cache of the hub, fetched into it, or a copy that the user has. Nothing unverified is kept."""

import fnmatch
import hashlib
import io
import os
import sys
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ...core.errors import IntegrityError, PrefloopError, UsageError, WriteError, reading
from ...core.files import atomic_folder, write_atomic
from ...core.hashing import sha256
from ...core.hub import hub_reachable
from ..prompt_files import Row, read_rows
from .record import PromptSet

MAX_BYTES = 64 << 20  # the largest set is 2 MB
_TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of the answer


def find_files(chosen: PromptSet) -> list[Path]:
    """The verified files of a set, fetched if they are not in the cache.

    Raises:
        PrefloopError: if they cannot be fetched; the message says how to do it elsewhere.
        IntegrityError: if they are not those of the set.
    """
    files = cached_files(chosen)
    if files is not None:
        try:
            verified_rows(chosen, files)
        except IntegrityError as error:
            raise IntegrityError(f"{error}; remove {_removable(chosen, files)} and fetch the set again") from error
        return files
    return _from_hub(chosen) if chosen.on_hub else _from_address(chosen)


def cached_files(chosen: PromptSet) -> list[Path] | None:
    """The files in the cache, not verified; None if one is missing."""
    if chosen.on_hub:
        files = _hub_files(chosen)
        return files if len(files) == len(chosen.files) else None
    folder = cache_folder(chosen)
    return _in_folder(chosen, folder) if folder.is_dir() else None


def local_files(chosen: PromptSet, path: Path) -> list[Path]:
    """The files of a user's copy: the file, or the folder that holds the files under their own names.

    Raises:
        UsageError: if one is missing, or the copy has another number of prompts.
    """
    with reading(path):
        is_file, is_folder = path.is_file(), path.is_dir()
    single = len(chosen.files) == 1 and not chosen.archive
    if is_file and single:
        files = [path]
    elif is_folder:
        files = _in_folder(chosen, path)
        if files is None:
            names = ", ".join(PurePosixPath(file).name for file in chosen.files)
            raise UsageError(f"{path} is not a copy of the prompt set {chosen.name}: it must hold {names}")
    else:
        what = "file" if single else "folder"
        raise UsageError(f"{path} is not a {what}; name the {what} of the prompt set {chosen.name}")
    n = sum(bool(text.strip()) for _, text, _ in set_rows(chosen, files))
    if n != chosen.n_prompts:
        raise UsageError(
            f"{path} is not a copy of the prompt set {chosen.name}: it holds {n} prompts, not {chosen.n_prompts}"
            + (f"; to use them as they are, give --prompts {path}" if single else "")
        )
    return files


def set_rows(chosen: PromptSet, files: Sequence[Path]) -> list[Row]:
    """
    Raises:
        UsageError: if a file cannot be read as one of the set.
    """
    rows: list[Row] = []
    for path in files:
        own = {} if chosen.file_tag is None else {chosen.file_tag: path.stem.removesuffix("_val")}
        place = f"{path.name}, " if len(files) > 1 else ""
        rows += [(place + where, text, own | tags) for where, text, tags in read_rows(path, chosen.prompt, chosen.tags)]
    return rows


def verified_rows(chosen: PromptSet, files: Sequence[Path]) -> list[Row]:
    """
    Raises:
        IntegrityError: if the files are not those of the set.
    """
    what = f"the prompt set {chosen.name} of {chosen.where}"
    if chosen.sha256 is not None and (digest := hash_of(files)) != chosen.sha256:
        raise IntegrityError(f"{what} has the sha256 {chosen.sha256}, and these files have {digest}")
    try:
        rows = set_rows(chosen, files)
    except UsageError as error:
        raise IntegrityError(f"the files of {what} cannot be read: {error}") from error
    n = sum(bool(text.strip()) for _, text, _ in rows)
    if n != chosen.n_prompts:
        raise IntegrityError(f"{what} has {chosen.n_prompts} prompts, and these files have {n}")
    return rows


def hash_of(files: Sequence[Path]) -> str:
    """sha256 of a file; of several, of the lines that `sha256sum` prints for them, sorted by name."""
    if len(files) == 1:
        return sha256(files[0])
    lines = [f"{sha256(path)}  {path.name}\n" for path in sorted(files, key=lambda path: path.name)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def revision_of(chosen: PromptSet, files: Sequence[Path]) -> str | None:
    """The revision of a set's files, as `find_files` gives them; None if the source has none."""
    if chosen.revision is None and chosen.on_hub:  # …/snapshots/COMMIT/FILE
        return files[0].parents[chosen.files[0].count("/")].name
    return chosen.revision


def cache_folder(chosen: PromptSet) -> Path:
    """Where the files of an https address are kept, in the cache of the hub."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    key = hashlib.sha256("\n".join((chosen.address, *chosen.files)).encode()).hexdigest()
    return Path(home).expanduser() / "prefloop" / "prompts" / f"{chosen.name}-{key[:12]}"


def _in_folder(chosen: PromptSet, folder: Path) -> list[Path] | None:
    """The files of a set below a folder, at their own paths or all in the folder itself; None if one is missing."""
    files: list[Path] = []
    for file in chosen.files:
        name = PurePosixPath(file).name
        if chosen.archive:
            found = sorted(folder.glob(name))
        else:
            found = [folder / file if (folder / file).is_file() else folder / name]
        if not found or not all(path.is_file() for path in found):
            return None
        files += found
    return files


def _removable(chosen: PromptSet, files: Sequence[Path]) -> str:
    return ", ".join(map(str, files)) if chosen.on_hub else str(cache_folder(chosen))


def _from_hub(chosen: PromptSet) -> list[Path]:
    from huggingface_hub import hf_hub_download

    if not hub_reachable():
        raise _unreachable(chosen, "the hub cannot be reached (offline), and it is not in the cache")
    _announce(chosen)
    kept = set(_hub_files(chosen))
    try:
        files = [
            Path(hf_hub_download(chosen.source, file, revision=chosen.revision, repo_type="dataset"))
            for file in chosen.files
        ]
    except Exception as error:  # the hub's client, the connection and the disk each raise their own
        raise _unreachable(chosen, _line(error)) from error
    try:
        verified_rows(chosen, files)
    except IntegrityError:
        for path in files:
            if path not in kept:
                _forget(path)
        raise
    return files


def _hub_files(chosen: PromptSet) -> list[Path]:
    """Those of the files that are in the cache of the hub."""
    from huggingface_hub import try_to_load_from_cache

    paths = (
        try_to_load_from_cache(chosen.source, file, revision=chosen.revision, repo_type="dataset")
        for file in chosen.files
    )
    return [Path(path) for path in paths if isinstance(path, str)]


def _forget(path: Path) -> None:
    """Remove a file from the cache of the hub: a link, and the content it leads to if no other link does."""
    content = path.resolve()
    snapshots = next(folder for folder in path.parents if folder.name == "snapshots")
    with suppress(OSError):
        path.unlink()
        if not any(other.resolve() == content for other in snapshots.rglob("*") if other.is_symlink()):
            content.unlink(missing_ok=True)


def _from_address(chosen: PromptSet) -> list[Path]:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise _unreachable(chosen, "HF_HUB_OFFLINE is set, and it is not in the cache")
    _announce(chosen)
    folder = cache_folder(chosen)
    contents = (
        _unpacked(chosen, _download(chosen, chosen.address))
        if chosen.archive
        else {
            PurePosixPath(file).name: _download(chosen, f"{chosen.address.rstrip('/')}/{file}") for file in chosen.files
        }
    )
    try:
        with atomic_folder(folder) as temporary:
            for name, data in contents.items():
                write_atomic(temporary / name, data, sync_name=False)
            verified_rows(chosen, _in_folder(chosen, temporary) or [])
    except (UsageError, WriteError):
        if not folder.is_dir():  # else another process was first
            raise
    return _in_folder(chosen, folder) or []


def _download(chosen: PromptSet, url: str) -> bytes:
    import requests

    data = bytearray()
    try:
        with requests.get(url, timeout=_TIMEOUT, stream=True) as response:
            response.raise_for_status()
            for piece in response.iter_content(1 << 20):
                data += piece
                if len(data) > MAX_BYTES:
                    raise _unreachable(chosen, f"{url} is larger than {MAX_BYTES >> 20} MiB")
    except requests.RequestException as error:
        raise _unreachable(chosen, _line(error)) from error
    return bytes(data)


def _unpacked(chosen: PromptSet, data: bytes) -> dict[str, bytes]:
    """The files of a zip file that the patterns name, by their names alone."""
    contents: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [
                member
                for member in archive.infolist()
                if not member.is_dir() and any(fnmatch.fnmatchcase(member.filename, file) for file in chosen.files)
            ]
            if sum(member.file_size for member in members) > MAX_BYTES:
                raise IntegrityError(f"{chosen.address} unpacks to more than {MAX_BYTES >> 20} MiB")
            for member in members:
                contents[PurePosixPath(member.filename).name] = archive.read(member)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise IntegrityError(f"{chosen.address} is not a zip file that can be read: {_line(error)}") from error
    return contents


def _announce(chosen: PromptSet) -> None:
    print(f"fetching the prompt set {chosen.name} from {chosen.where}", file=sys.stderr)


def _unreachable(chosen: PromptSet, reason: str) -> PrefloopError:
    if chosen.on_hub:
        revision = "" if chosen.revision is None else f" --revision {chosen.revision}"
        by_hand = (
            f"`hf download {chosen.source} {' '.join(chosen.files)} --repo-type dataset{revision} --local-dir DIR`"
        )
    else:
        by_hand = f"`prefloop prompts fetch {chosen.name}`"
    return PrefloopError(
        f"cannot fetch the prompt set {chosen.name} from {chosen.where}: {reason}; on a machine with network access run "
        f"{by_hand} and give the copy as --prompts {chosen.name}=PATH"
    )


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
