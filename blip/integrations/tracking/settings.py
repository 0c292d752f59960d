"""What `mlflow.yaml` says: where runs are tracked, which models are registered, by which gates."""

import os
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, ValidationError

from blip.config import Positive, Section, read_yaml
from blip.errors import ConfigError

SETTINGS = Path("mlflow.yaml")

Task = Literal["captioning", "retrieval"]

QUIET = {
    "DO_NOT_TRACK": "true",  # the word, not 1: MLflow compares
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # what fails is sent again later anyway
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Environment of whatever runs MLflow: no telemetry, no bars, no minutes of waiting."""


class Gate(Section):
    """What a candidate must reach to become champion; `mlflow.yaml` explains each."""

    metric: str
    floor: float
    min_difference: float
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)]
    resamples: Positive


class RegisteredModel(Section):
    """A name in the model registry and its gate."""

    name: Annotated[str, Field(pattern=r"^[^/:]+$")]
    gate: Gate


class TrackingSettings(Section):
    """The tracking server and the registry; URIs are absolute."""

    tracking_uri: str
    artifact_location: str | None
    experiment: Annotated[str, Field(min_length=1)]
    models: dict[Task, RegisteredModel]

    @property
    def shown_uri(self) -> str:
        """The tracking URI as it may be shown: without a password."""
        parts = urlsplit(self.tracking_uri)
        if parts.password is None:
            return self.tracking_uri
        host = f"{parts.username}:***@{parts.netloc.rpartition('@')[2]}"
        return urlunsplit(parts._replace(netloc=host))


def load_settings(path: Path = SETTINGS) -> TrackingSettings:
    """Read `mlflow.yaml`; MLFLOW_TRACKING_URI goes before its `tracking_uri`.

    Relative places are taken from the file's folder, wherever a command runs, and links are
    followed, so that workspaces that share a database agree on its name.

    Raises:
        ConfigError: The file cannot be read, a key is unknown or missing, a value breaks its rule.
    """
    document = read_yaml(path)
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        document["tracking_uri"] = uri
    try:
        settings = TrackingSettings.model_validate(document)
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    return settings.model_copy(
        update={
            "tracking_uri": _absolute_store(settings.tracking_uri, path.resolve().parent),
            "artifact_location": _artifacts(settings, path.resolve().parent),
        }
    )


def quiet_mlflow() -> None:
    """Arrange, before MLflow is first imported, that it neither phones home nor chatters."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def _absolute_store(uri: str, folder: Path) -> str:
    file = uri.removeprefix("sqlite:///")
    return uri if file == uri else f"sqlite:///{(folder / file).resolve()}"


def _artifacts(settings: TrackingSettings, folder: Path) -> str | None:
    place = settings.artifact_location
    if place is None or urlsplit(settings.tracking_uri).scheme in ("http", "https"):
        return None
    return place if "://" in place else (folder / place).resolve().as_uri()
