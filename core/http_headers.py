"""Headers of requests and answers that several clients need."""

import email.utils
import math
import re
import time
from collections.abc import Callable
from typing import Any


def bearer(token: str | None) -> Callable[[Any], Any]:
    """What `requests` takes as auth. A function even without a token, so that no password in ~/.netrc is sent instead."""

    def authorize(request: Any) -> Any:
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorize


def retry_after(text: str | None) -> float | None:
    """Seconds, from the header Retry-After, which may also be a time; None if it says nothing, or a time that has passed."""
    text = (text or "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    try:
        seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
