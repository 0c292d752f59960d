"""Logging of the `blip` command, set up once: words to stderr; a level a user asked for."""

import logging


def setup_logging(verbose: bool = False) -> None:
    """Send the package's log to stderr: information by default, everything with `verbose`."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("blip")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
