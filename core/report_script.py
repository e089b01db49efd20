"""The script of reports, which is inline so that a report opens from disk, and is allowed by its hash and no other is."""

import base64
import hashlib
from importlib.resources import files

SCRIPT = (files("prefloop.core") / "report.js").read_text()
SCRIPT_SOURCE = f"'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
"""As a source of a content security policy."""
