"""The errors a user can cause: each says what was wrong, by which rule, and the remedy."""

import signal

# The exit code of a process that was told to leave, which is no error.
TERMINATED = 128 + signal.SIGTERM


class BlipError(Exception):
    """Base of every error that is the user's to mend: printed as one message, exit code 2."""

    exit_code = 2


class ConfigError(BlipError):
    """A configuration key, value or combination that cannot be used."""


class DataError(BlipError):
    """A file, record or dataset that is missing, malformed or not what its manifest says."""


class CheckpointError(BlipError):
    """Weights that are missing, damaged or of another shape than the model."""


class LostPeerError(BlipError):
    """Another process of the same run ended or hangs; to try again is right (EX_TEMPFAIL)."""

    exit_code = 75


class IntegrationError(BlipError):
    """An outside system (MLflow, DVC, Prefect, a database, Kubernetes) that refused or is away."""
