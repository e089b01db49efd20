"""Datasets of the hub as local files, downloaded if they are not in the cache."""

from pathlib import Path

from ...core.errors import PrefloopError
from ...core.hub import hub_reachable

_PATTERNS = ["*.parquet", "*.arrow", "*.json", "*.jsonl", "*.tar", "*.jpg", "*.png", "*.webp"]


def fetch_dataset(name: str) -> Path:
    """The folder of a dataset's files.

    Raises:
        PrefloopError: if it is not in the cache, and the hub does not answer or does not have it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    folder = name.split("/")[1]
    by_hand = f"hf download {name} --repo-type dataset --local-dir {folder}"
    if not hub_reachable():
        raise PrefloopError(
            f"the hub does not answer and {name} is not in its cache; on a machine with network access run `{by_hand}`, "
            f"then import {folder}"
        )
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=_PATTERNS))
    except (HfHubHTTPError, OSError) as error:
        raise PrefloopError(f"{name} cannot be downloaded: {str(error).splitlines()[0]}; try `{by_hand}`") from error
