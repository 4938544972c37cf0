"""Uploading what was exported to the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from prunecli.errors import RecipeError, ResourceError, first_line


def require(repository: str) -> None:
    """Checks, before any work, that there is somebody to upload as.

    Raises:
        RecipeError: The name is none of the hub's, nobody is logged in, or HF_HUB_OFFLINE forbids it.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise RecipeError(f"--push-to-hub {repository}: {first_line(error)}; write it as USER/NAME") from error
    if repository.count("/") != 1:
        raise RecipeError(f"--push-to-hub {repository}: write it as USER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise RecipeError("--push-to-hub: HF_HUB_OFFLINE is set; unset it, or upload the files later")
    if get_token() is None:
        raise RecipeError("--push-to-hub: nobody is logged in; set HF_TOKEN, or call `hf auth login`")


def push(repository: str, files: Sequence[Path], message: str) -> str:
    """Uploads files, or one folder, as one commit; the repository is made if there is none.

    Args:
        repository: USER/NAME.
        files: Files of one folder, or a folder.
        message: What the commit says.

    Returns:
        Where the commit is.

    Raises:
        ResourceError: It fails; the files stay where they are.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    folder = files[0] if files[0].is_dir() else files[0].parent
    names = None if files[0].is_dir() else [file.name for file in files]
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        api.create_repo(repository, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=names, commit_message=message)
    except Exception as error:  # of many types, of several libraries
        shown = ", ".join(str(file) for file in files)
        raise ResourceError(
            f"--push-to-hub {repository}: {first_line(error)}; {shown} stays here: upload it with "
            f"`hf upload {repository} {folder}`"
        ) from error
    return str(done.commit_url)
