"""An export folder on the Hugging Face Hub (the extra `[hub]`)."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from mobilenet.configs.card import CARD, README
from mobilenet.errors import UsageError
from mobilenet.export import c_array
from mobilenet.runtime.classifier import LABELS, MODEL

PARAMETER = "push_to_hub"
_PACKAGE = "huggingface_hub"
# Nothing else that lies in the folder leaves the machine.
_FILES = (MODEL, CARD, LABELS, README, c_array.HEADER, c_array.DATA, c_array.RESOLVER)


def check(repository: str) -> None:
    """Refuses an upload that cannot succeed, before any work is done.

    Args:
        repository: `name`, or `user/name` or `organization/name`.

    Raises:
        UsageError: names `push_to_hub`: the package is not installed, the name is none of a
            repository, or there is no access token.
    """
    package = _load()
    try:
        package.utils.validate_repo_id(repository)
    except package.errors.HFValidationError:
        expected = "a repository as user/name, of letters, digits, -, _ and ."
        raise UsageError(PARAMETER, repository, expected) from None
    if package.get_token() is None:
        expected = "an access token of the Hugging Face Hub"
        remedy = "`hf auth login` stores one, or set HF_TOKEN"
        raise UsageError(PARAMETER, repository, expected, remedy)


def push(folder: str | os.PathLike[str], repository: str) -> str:
    """Uploads an export folder; a new repository is private.

    Args:
        folder: as the converter writes it; files of other names in it are left out.
        repository: see `check`.

    Returns:
        The address of the repository.

    Raises:
        UsageError: see `check`; or it is no export folder, or the Hub cannot be reached or refuses
            the upload. The folder is left as it is.
    """
    check(repository)
    if not (Path(folder) / MODEL).is_file():
        raise UsageError("folder", str(folder), f"an export folder, with {MODEL}")
    package = _load()
    hub = package.HfApi()
    try:
        address = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(
            repo_id=address.repo_id,
            folder_path=folder,
            allow_patterns=list(_FILES),
            commit_message="Upload of mobilenet.converter",
        )
    except package.errors.HfHubHTTPError as error:
        status = error.response.status_code
        reason = error.server_message or str(error).splitlines()[0]
        expected = f"an upload that the Hub accepts (status {status}: {reason.strip()})"
        remedy = f"a token that may write to it; the files are in {folder}"
        raise UsageError(PARAMETER, repository, expected, remedy) from None
    except (OSError, package.errors.HTTPError) as error:
        expected = f"a connection to {hub.endpoint} ({error or type(error).__name__})"
        raise UsageError(PARAMETER, repository, expected, f"the files are in {folder}") from None
    return str(address)


def _load() -> Any:
    """The package, imported.

    Raises:
        UsageError: it is not installed.
    """
    try:
        for name in ("errors", "utils"):
            importlib.import_module(f"{_PACKAGE}.{name}")
        return importlib.import_module(_PACKAGE)
    except ImportError:
        remedy = f"pip install {_PACKAGE}"
        raise UsageError(PARAMETER, None, f"{_PACKAGE}, which is not installed", remedy) from None
