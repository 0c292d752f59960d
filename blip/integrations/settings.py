"""What the environment says about this installation, read where it is needed and nowhere else."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Engine

CATALOG_URL = "BLIP_CATALOG_URL"


def catalog() -> "Engine":
    """Open the catalogue that BLIP_CATALOG_URL names: by default `catalog.db` in the current directory."""
    from blip.integrations.catalog import open_catalog

    return open_catalog(os.environ.get(CATALOG_URL, "sqlite:///catalog.db"))
