"""The device a scorer runs on."""


def device_for(wanted: str | None) -> str:
    """The device asked for, else the best there is."""
    import torch

    if wanted is not None:
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
