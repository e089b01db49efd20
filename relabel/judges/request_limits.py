"""Settings of requests to endpoints, which the stages that use scorers share."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from ...core.errors import UsageError
from ...core.validate import positive


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    concurrency: int = 8
    """Requests at once to a judge behind an endpoint."""
    max_requests: int | None = None
    """Stop after this many requests, keeping what is done; the same command continues (exit code 75)."""
    requests_per_minute: float | None = None
    """Send requests to an endpoint no faster than this."""
    request_timeout: float = 120.0
    """Seconds to wait for an endpoint's answer."""

    def __post_init__(self) -> None:
        positive("concurrency", self.concurrency, 1024)
        if self.max_requests is not None:
            positive("max-requests", self.max_requests)
        if self.requests_per_minute is not None:
            positive("requests-per-minute", self.requests_per_minute)
        positive("request-timeout", self.request_timeout, 86_400)


LIMITS = tuple(field.name for field in fields(RequestLimits))


def usage_of(scorers: Sequence[Any]) -> dict[str, dict[str, float]]:
    """What the scorers that send requests have used, by name; empty if none does."""
    limited = [scorer for scorer in scorers if callable(getattr(scorer, "requests_used", None))]
    return {scorer.name: scorer.requests_used() for scorer in limited}


@contextmanager
def recording_usage(scorers: Sequence[Any], summary: dict[str, Any]) -> Iterator[None]:
    """Put what the scorers' requests have used into a run's summary, however the block ends."""
    try:
        yield
    finally:
        if usage := usage_of(scorers):
            summary["usage"] = usage


def describe_usage(usage: Mapping[str, float]) -> str:
    """Requests, tokens and cost in words; what the endpoint does not tell is left out."""
    parts = [f"{usage['requests']:.0f} requests"]
    if "prompt_tokens" in usage or "completion_tokens" in usage:
        read, written = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        parts.append(f"{read:.0f} tokens read and {written:.0f} written")
    if "cost" in usage:
        parts.append(f"{usage['cost']:.4f} credits")
    return ", ".join(parts)


def limit_requests(scorers: Sequence[Any], limits: RequestLimits) -> None:
    """Tell the scorers that send requests their limits.

    Raises:
        UsageError: if there are limits, and no scorer sends requests.
    """
    limited = [scorer for scorer in scorers if callable(getattr(scorer, "limit_requests", None))]
    for scorer in limited:
        scorer.limit_requests(limits)
    changed = [field.name for field in fields(RequestLimits) if getattr(limits, field.name) != field.default]
    if changed and not limited:
        raise UsageError(
            f"--{changed[0].replace('_', '-')} is for scorers behind an endpoint, such as vlm; leave it out"
        )
