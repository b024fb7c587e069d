"""Upload of a folder to a model repository of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inat_ft.crash import redact
from inat_ft.errors import InatFtError, UsageError

_FORMAT = "hub-folder"
_LOG_IN = "log in with: hf auth login, or set HF_TOKEN to a token with write access"
_UNREACHABLE = (
    "check the connection, HF_ENDPOINT and HF_HUB_OFFLINE; the exported folder is complete and can be uploaded later"
)
_HINTS = {401: _LOG_IN, 403: "the token needs write access to the repository or organization"}


def prepare_upload(repository: str, format: str | None) -> Callable[[Path], str]:
    """Return a function that uploads a folder and returns the address of the repository.

    A new repository is private. Checks the name, the format and the token first. Raises UsageError if one of them cannot
    be used; the returned function raises InatFtError if the upload fails. The token is in none of the messages.
    """
    if format not in (None, _FORMAT):
        raise UsageError(f"the Hub needs the format {_FORMAT}, not {format}", "omit --format, or omit --push-to-hub")
    if find_spec("huggingface_hub") is None:
        raise UsageError(
            "uploads require the package huggingface_hub, which is not installed", "pip install 'inat-ft[hub]'"
        )
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    example = "use ORG/NAME, such as --push-to-hub my-name/leaf-classifier"
    if repository.count("/") != 1:
        raise UsageError(f"'{repository}' is not a repository name of the Hub", example)
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UsageError(f"'{repository}' is not a repository name of the Hub: {error}", example) from None
    if not get_token():
        raise UsageError("there is no token for the Hugging Face Hub", _LOG_IN)
    return lambda folder: _upload(folder, repository)


def _upload(folder: Path, repository: str) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    files = sorted(path for path in folder.iterdir() if path.is_file())
    try:
        url = api.create_repo(repository, private=True, exist_ok=True)
        added = [CommitOperationAdd(path.name, path) for path in files]
        api.create_commit(repository, added, commit_message="Upload a classifier trained with inat-ft")
    except Exception as error:  # the HTTP library, and so its exceptions, depend on the version of huggingface_hub
        raise _upload_error(error, folder, repository) from None  # the cause may contain the token
    return str(url)


def _upload_error(error: Any, folder: Path, repository: str) -> InatFtError:
    from huggingface_hub import get_token

    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    message = redact(f"cannot upload {folder} to the repository {repository}: {reason}")
    if token := get_token():
        message = message.replace(token, "***")
    return InatFtError(message, _HINTS.get(status or 0, _UNREACHABLE))
