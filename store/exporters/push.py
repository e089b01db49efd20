"""An exported folder to the hub, as a private data set."""

from pathlib import Path

from ...core.errors import PrefloopError
from ...core.hub import hub_reachable


def refuse_without_hub(out: Path, repository: str) -> None:
    """Raise before anything is written where the hub does not answer."""
    if not hub_reachable():
        raise PrefloopError(
            f"the hub does not answer, so nothing was exported; leave out --push-to-hub, and where there is a network "
            f"run `hf upload {repository} {out} --repo-type dataset`"
        )


def push(folder: Path, repository: str) -> str:
    """The address of the data set; made private where it is new."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        address = api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, repo_type="dataset")
    except (HfHubHTTPError, OSError) as error:
        raise PrefloopError(
            f"{folder} is written, but cannot be sent to {repository}: {str(error).splitlines()[0]}; "
            f"try `hf upload {repository} {folder} --repo-type dataset`"
        ) from error
    return str(address)
