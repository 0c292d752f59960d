"""The outside systems: MLflow, the catalogue, Great Expectations, DVC; nothing else imports them."""
