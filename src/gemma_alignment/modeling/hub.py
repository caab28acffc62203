"""The model hub, where it does not answer."""

import logging

logger = logging.getLogger(__name__)

ANSWER = 10.0
"""Seconds that the hub has to answer."""


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
