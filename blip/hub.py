"""Files of models on the Hugging Face hub: out of its cache on this machine, else fetched into it."""

import os
from pathlib import Path

from blip.errors import ConfigError


def hub_file(setting: str, repository: str, *names: str) -> Path:
    """Give the path of a model's file; once fetched, it stays the same and needs no network.

    Args:
        setting: The key and value of the configuration that asks for it, for the error.
        repository: E.g. `bert-base-uncased`.
        names: The file; or several, of which the first is taken that the model has.

    Raises:
        ConfigError: There is no such model or file, or no network.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read at the library's first import
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    reason = ""
    try:
        for name in names:
            if isinstance(cached := try_to_load_from_cache(repository, name), str):
                return Path(cached)
        for name in names:
            try:
                return Path(hf_hub_download(repository, name))
            except RemoteEntryNotFoundError as error:
                reason = str(error)
    except (OSError, ValueError) as error:  # what the library's errors for network and names are
        reason = str(error)
    raise ConfigError(
        f"{setting}: is no file here, and the hub does not give {' or '.join(names)} of "
        f"{repository!r}: {' '.join(reason.split())[:200]}: name a file"
    )
