"""The outside systems: MLflow, the catalogue, Great Expectations, DVC; the only importers of them."""
