"""The model hub: asked once before a model is fetched, and what its refusals mean for the user."""

import json
import logging
import os
from pathlib import Path

from gemma_alignment.errors import UserError, brief, chain

logger = logging.getLogger(__name__)

ANSWER = 10.0
"""Seconds that the hub has to answer."""
TOKENS = "https://huggingface.co/settings/tokens"
UNAUTHORIZED = 401


def spare_a_silent_hub() -> None:
    """Ask the hub once; where it does not answer, let its libraries use only what was downloaded before.

    Left alone they ask five times for every file, each time for ten seconds.
    """
    import requests
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    try:
        requests.head(constants.ENDPOINT, timeout=ANSWER)
    except requests.RequestException as error:
        constants.HF_HUB_OFFLINE = True
        logger.warning(
            "%s does not answer (%s): only what was downloaded before is used", constants.ENDPOINT, type(error).__name__
        )


def check_access(repository: str, revision: str) -> None:
    """Refuse a model that the hub will not hand out, before anything is loaded; one that is in the cache needs no hub.

    Raises:
        UserError: gated, missing, no network, or a wrong token: what to do about it.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if is_downloaded(repository, revision):
        return
    spare_a_silent_hub()
    if constants.HF_HUB_OFFLINE:
        raise UserError(_no_network(repository))
    try:
        get_hf_file_metadata(hf_hub_url(repository, "config.json", revision=revision), timeout=ANSWER)
    except Exception as error:
        raise refused(repository, revision, error) from error


def in_cache(repository: str, revision: str) -> Path | None:
    """The folder of the cache that what was downloaded of a model is in, if its configuration was."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def is_downloaded(repository: str, revision: str) -> bool:
    """Whether configuration and every file of weights are in the cache: a tokenizer alone has the first, too."""
    folder = in_cache(repository, revision)
    if folder is None:
        return False
    index = folder / "model.safetensors.index.json"
    parts = json.loads(index.read_text())["weight_map"].values() if index.exists() else ["model.safetensors"]
    return all((folder / name).exists() for name in parts)


def refused(repository: str, revision: str, error: BaseException) -> UserError:
    """What an error of the hub's library, or of one above it, means for the user."""
    from huggingface_hub import errors

    for cause in chain(error):
        if isinstance(cause, errors.GatedRepoError):
            return UserError(_gated(repository))
        if isinstance(cause, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
            return UserError(
                f"The hub has no {repository} at revision {revision}, or does not show it to this account. Check "
                "modeling.base_model and modeling.revision; a private model needs a token of an account that may see "
                f"it, in HF_TOKEN ({TOKENS})."
            )
        if isinstance(cause, errors.HfHubHTTPError) and cause.response.status_code == UNAUTHORIZED:
            return UserError(
                f"The hub refuses the token in HF_TOKEN, so {repository} cannot be fetched: it is mistyped, expired or "
                f"revoked. Make a new one with read access at {TOKENS} and export it, or unset HF_TOKEN for a model "
                "that is open to everyone."
            )
        if isinstance(cause, UnicodeEncodeError):  # of the header that carries it
            return UserError(
                f"HF_TOKEN holds a character that no token has, so {repository} cannot be fetched: copy it again from "
                f"{TOKENS}."
            )
        if isinstance(cause, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError | ConnectionError):
            return UserError(_no_network(repository))
    return UserError(f"Cannot fetch {repository} at revision {revision} from the hub: {brief(error)}")


def _gated(repository: str) -> str:
    page = f"https://huggingface.co/{repository}"
    if os.environ.get("HF_TOKEN"):
        return (
            f"{repository} is gated, and the account of HF_TOKEN has no access to it. Accept its licence at {page} "
            "with that account, and see that the token may read gated repositories."
        )
    return (
        f"{repository} is gated, and HF_TOKEN is not set. Accept its licence at {page}, make a token with read access "
        f"at {TOKENS}, and run again with it: export HF_TOKEN=..."
    )


def _no_network(repository: str) -> str:
    return (
        f"{repository} was never downloaded whole to this machine, and the hub does not answer. Connect to the "
        "network, unset HF_HUB_OFFLINE if it is set, or copy the cache of a machine that has the model and point "
        "HF_HOME to it."
    )
