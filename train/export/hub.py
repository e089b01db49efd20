"""Upload a result to the hub: weights, settings and the card, but no checkpoints, logs or images."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from ...core.errors import PrefloopError, UsageError
from ...core.hashing import RESULT_FILE, digests
from ...core.hub import hub_reachable
from ...models.lineage import read_result, verify_files

_UPLOADED = ("README.md", RESULT_FILE, "*.csv")  # in addition to the files that prefloop.json lists
_UPLOADED_0_1 = ("README.md", "*.safetensors", "*.json", "*.txt", "*.csv")  # version 0.1 listed no files
_IGNORED = (".*", "*/.*", "checkpoint-*", "logs/*")


def refuse_bad_name(repo_id: str) -> None:
    """
    Raises:
        UsageError: if the hub does not allow the name.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f"{repo_id!r} is not a valid repository name; give one like owner/name") from error


def refuse_unpushable(repo_id: str, folder: str) -> None:
    """Check before training that its result could be pushed: the hub can be reached and accepts the login.

    Raises:
        PrefloopError: if nobody is logged in, or the hub cannot be reached or refuses.
    """
    later = f"leave out --push-to-hub, and later run `prefloop card {folder} --push-to-hub {repo_id}`"
    hub = _signed_in(f"{repo_id} cannot be pushed to; {later}")
    try:
        hub.whoami()
    except HTTPError as error:
        raise PrefloopError(
            f"the hub did not accept the login: {_reason(error)}; run `hf auth login`, or {later}"
        ) from error


def push(folder: Path, repo_id: str, *, private: bool) -> str:
    """Upload a finished result of `train` to a repository, which is created if needed, and return its address.

    Raises:
        UsageError: if the repository name is invalid, the folder has no finished result, or `private` is asked for and the
            repository is public.
        IntegrityError: if a file of the result is missing or has changed.
        PrefloopError: if nobody is logged in, or the hub cannot be reached or refuses.
    """
    refuse_bad_name(repo_id)
    if not (folder / RESULT_FILE).is_file():
        raise UsageError(f"{folder} has no finished result: {RESULT_FILE} is missing; name a folder that train wrote")
    files = (read_result(folder) or {}).get("files")
    if files is not None:
        verify_files(folder, files, digests(folder))
    hub = _signed_in(f"{folder} is complete: push it when the network is up and HF_HUB_OFFLINE is not set")
    try:
        repository = hub.create_repo(repo_id, private=private, exist_ok=True)
        if private and not hub.model_info(repository.repo_id).private:
            raise UsageError(f"{repository} exists and is public; name another repository, or push without --private")
        uploaded = _UPLOADED_0_1 if files is None else (*files, *_UPLOADED)
        hub.upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            allow_patterns=list(uploaded),
            ignore_patterns=list(_IGNORED),
        )
    except HTTPError as error:
        raise PrefloopError(
            f"the hub refused to store {folder} as {repo_id}: {_reason(error)}; fix that and push again"
        ) from error
    return str(repository)


def _signed_in(offline: str) -> HfApi:
    """The hub's client with a token. `offline` is the advice if the hub cannot be reached."""
    token = get_token()
    if token is None:
        raise PrefloopError("nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN")
    if not hub_reachable():
        raise PrefloopError(f"the hub cannot be reached; {offline}")
    return HfApi(token=token)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
