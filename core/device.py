"""The device that models run on; torch is imported when it is asked for."""

from .errors import UsageError


def best_device(wanted: str | None = None) -> str:
    """The device asked for, else the best there is.

    Raises:
        UsageError: where the one asked for is not there.
    """
    import torch

    if wanted is not None:
        try:
            torch.empty(0, device=wanted)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"there is no device {wanted!r} here; leave --device out to take the best there is"
            ) from error
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
