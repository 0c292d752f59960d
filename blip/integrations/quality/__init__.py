"""The gate between ingestion and training: Great Expectations on the catalogue, in the database."""

from blip.integrations.quality.gate import validate

__all__ = ["validate"]
