"""Download one file whose hash is known; the next call continues what an interrupted one left."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from .errors import IntegrityError, PrefloopError, cannot_write
from .files import sync_folder

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 20.0  # seconds without a byte


def download(url: str, path: Path, sha256: str) -> None:
    """Download to `path`; its folder is created. Until the file is whole and has the hash it is named .NAME.part.

    Args:
        url: http or https.
        sha256: of the whole file, as hex.

    Raises:
        PrefloopError: if the server does not answer, refuses, or breaks off; the same call continues.
        IntegrityError: if the file has another hash; nothing is kept.
        WriteError: if it cannot be written.
    """
    if not url.startswith(("http://", "https://")):
        raise PrefloopError(f"cannot download {url}: not an http address")
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file:
            _append(url, file)
            file.flush()
            os.fsync(file.fileno())
        with open(part, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            part.unlink()
            raise IntegrityError(
                f"{url} is not the published file: sha256 {digest[:16]}…, expected {sha256[:16]}…; what was downloaded "
                "is removed"
            )
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def _append(url: str, file: BinaryIO) -> None:
    """Add to an open file what it lacks; from its beginning if the server does not continue."""
    start = file.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # it had every byte; the hash decides
            return
        raise PrefloopError(f"cannot download {url}: the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise PrefloopError(f"cannot download {url}: {reason}; check the network and HTTPS_PROXY") from error
    with response:
        if response.status != 206:
            file.truncate(0)
        while chunk := _read(url, response):
            file.write(chunk)
        if response.length:  # bytes that were announced and did not come
            raise _broken_off(url)


def _read(url: str, response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _broken_off(url) from error


def _broken_off(url: str) -> PrefloopError:
    return PrefloopError(f"the download of {url} broke off; the same command continues it")
