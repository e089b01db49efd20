"""Upload an exported folder to the hub, as a private dataset."""

from pathlib import Path

from ...core.errors import PrefloopError
from ...core.hub import hub_reachable


def refuse_without_hub(out: Path, repository: str) -> None:
    """Raise PrefloopError if the hub does not answer, before anything is written."""
    if not hub_reachable():
        raise PrefloopError(
            f"the hub does not answer, so nothing was exported; leave out --push-to-hub, and on a machine with network "
            f"access run `hf upload {repository} {out} --repo-type dataset`"
        )


def push(folder: Path, repository: str) -> str:
    """Upload, and return the dataset's address; a new one is made private."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        address = api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, repo_type="dataset")
    except (HfHubHTTPError, OSError) as error:
        raise PrefloopError(
            f"{folder} is written, but cannot be uploaded to {repository}: {str(error).splitlines()[0]}; "
            f"try `hf upload {repository} {folder} --repo-type dataset`"
        ) from error
    return str(address)
