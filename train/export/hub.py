"""Put a result on the hub: weights, settings and the card; no checkpoints, no logs, no pictures."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from ...core.errors import PrefloopError, UsageError
from ...core.hashing import RESULT_FILE, digests
from ...core.hub import hub_reachable
from ...models.lineage import read_result, verify_files

_KEPT = ("README.md", RESULT_FILE, "*.csv")  # beside the files that prefloop.json names
_FIRST_KEPT = ("README.md", "*.safetensors", "*.json", "*.txt", "*.csv")  # where it is of version 0.1 and names none
_LEFT = (".*", "*/.*", "checkpoint-*", "logs/*")


def refuse_bad_name(repo_id: str) -> None:
    """
    Raises:
        UsageError: where the hub has no repositories of such a name.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f"{repo_id!r} cannot be the name of a repository; give one like owner/name") from error


def refuse_unpushable(repo_id: str, folder: str) -> None:
    """Find out before training whether its result could be pushed: is anybody logged in, does the hub answer and know them?

    Raises:
        PrefloopError: where nobody is logged in, or the hub cannot be reached or refuses.
    """
    later = f"leave --push-to-hub out, and later run `prefloop card {folder} --push-to-hub {repo_id}`"
    hub = _signed_in(f"{repo_id} cannot be pushed to; {later}")
    try:
        hub.whoami()
    except HTTPError as error:
        raise PrefloopError(
            f"the hub did not accept the login: {_reason(error)}; run `hf auth login`, or {later}"
        ) from error


def push(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload a finished result of `train`; the address of its repository, which is made where there is none.

    Raises:
        UsageError: where the name is none for a repository, the folder holds no finished result, or what shall be private
            would go into a public repository.
        IntegrityError: where a file of the result is missing or has changed.
        PrefloopError: where nobody is logged in, or the hub cannot be reached or refuses.
    """
    refuse_bad_name(repo_id)
    if not (folder / RESULT_FILE).is_file():
        raise UsageError(
            f"{folder} holds no finished result: {RESULT_FILE} is not there; name the folder that train wrote"
        )
    files = (read_result(folder) or {}).get("files")
    if files is not None:
        verify_files(folder, files, digests(folder))
    hub = _signed_in(f"{folder} is whole: push it when there is network and HF_HUB_OFFLINE is not set")
    try:
        repository = hub.create_repo(repo_id, private=private, exist_ok=True)
        if private and not hub.model_info(repository.repo_id).private:
            raise UsageError(f"{repository} is there and public; name another repository, or push without --private")
        kept = _FIRST_KEPT if files is None else (*files, *_KEPT)
        hub.upload_folder(
            repo_id=repository.repo_id, folder_path=folder, allow_patterns=list(kept), ignore_patterns=list(_LEFT)
        )
    except HTTPError as error:
        raise PrefloopError(
            f"the hub did not take {folder} as {repo_id}: {_reason(error)}; push it again when that is mended"
        ) from error
    return str(repository)


def _signed_in(offline: str) -> HfApi:
    """The hub's client with a token. `offline` is what to say where the hub cannot be reached."""
    token = get_token()
    if token is None:
        raise PrefloopError("nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN")
    if not hub_reachable():
        raise PrefloopError(f"the hub cannot be reached; {offline}")
    return HfApi(token=token)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
