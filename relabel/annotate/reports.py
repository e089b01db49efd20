"""Serves the files of a run's report or plot: the names that such a folder has, and no others."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import Response

from ...core.report_script import SCRIPT_SOURCE

_IMAGE = r"[0-9a-f]{32}"
_EVALUATION = rf"report\.html|results\.json|(win_rates|win_rates-dark|samples)\.png|images/{_IMAGE}\.png"
_NAMES = {
    "eval": re.compile(_EVALUATION),
    # with the reports of its evaluations, to which its page links
    "round": re.compile(
        rf"report\.html|report-images/({_IMAGE}|win_rates|win_rates-dark|rounds)\.png"
        rf"|reports/round-\d+-against-[\w.-]+/({_EVALUATION})",
        re.ASCII,
    ),
    "train": re.compile(r"training\.png"),
}
_TYPES = {".html": "text/html", ".json": "application/json", ".png": "image/png"}
_STYLE = re.compile(rb"<style>(.*?)</style>", re.S)
_MAX_BYTES = 64_000_000


def report_file(folder: Path, kind: str, name: str) -> Response:
    """One file.

    Args:
        kind: of the run, a key of PAGES.

    Raises:
        HTTPException: 404 if such a run writes no such file, or it is a link out of the folder.
    """
    if not _NAMES[kind].fullmatch(name):
        raise HTTPException(404)
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise HTTPException(404)
    data = path.read_bytes()
    headers = {}
    if path.suffix == ".html":
        # the report also opens from disk, so its style and its script are inline. The style is allowed by the hash of the one
        # that is in the file; of scripts, which could read other pages, only the one that this prefloop writes into reports.
        digests = [base64.b64encode(hashlib.sha256(style).digest()).decode() for style in _STYLE.findall(data)[:1]]
        allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
        headers["content-security-policy"] = (
            f"default-src 'none'; img-src 'self'; style-src {allowed}; script-src {SCRIPT_SOURCE}; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'"
        )
    return Response(data, media_type=_TYPES[path.suffix], headers=headers)
