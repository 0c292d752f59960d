"""The catalogue: the queryable index of versions, images, captions, verdicts, models and runs.

Truth is in the files; `rebuild` makes the catalogue anew, and losing it loses nothing. Training
never reads it.
"""

from blip.integrations.catalog.add import add, count_rows, rebuild, stage_outputs
from blip.integrations.catalog.database import open_catalog, reading

__all__ = ["add", "count_rows", "open_catalog", "reading", "rebuild", "stage_outputs"]
