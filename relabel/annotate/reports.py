"""Serves the files of an evaluation's report: the names that a report has, and no others."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import Response

_NAMES = re.compile(r"report\.html|results\.json|win_rates\.png|samples\.png|images/[0-9a-f]{32}\.png")
_TYPES = {".html": "text/html", ".json": "application/json", ".png": "image/png"}
_STYLE = re.compile(rb"<style>(.*?)</style>", re.S)
_MAX_BYTES = 64_000_000


def report_file(folder: Path, name: str) -> Response:
    """One file.

    Raises:
        HTTPException: 404 if a report has no such file, or it is a link out of the folder.
    """
    if not _NAMES.fullmatch(name):
        raise HTTPException(404)
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise HTTPException(404)
    data = path.read_bytes()
    headers = {}
    if path.suffix == ".html":
        # the report also opens from disk, so its style is inline: this one block is allowed, by its hash
        digests = [base64.b64encode(hashlib.sha256(style).digest()).decode() for style in _STYLE.findall(data)[:1]]
        allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
        headers["content-security-policy"] = (
            f"default-src 'none'; img-src 'self'; style-src {allowed}; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
    return Response(data, media_type=_TYPES[path.suffix], headers=headers)
