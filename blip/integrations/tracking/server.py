"""The tracking server as far as shipping needs it: runs, their points, artifacts, inputs and ends.

Every call may be repeated: a run is found again by what names it, and of equal params, tags and
points one is kept.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from blip.errors import DataError, IntegrationError
from blip.files import digest_json, read_json
from blip.integrations.tracking.settings import TrackingSettings, quiet_mlflow

_POINTS, _PARAMS = 1000, 100  # in one request: MLflow's limits
_DIGEST = 32  # characters of a dataset's digest that MLflow has room for


class Point(NamedTuple):
    """One value of a curve; the time in milliseconds since the epoch."""

    name: str
    value: float
    time: int
    step: int


class RunGoneError(Exception):
    """A run that somebody deleted from MLflow; the caller begins a new one."""


class MlflowServer:
    """The runs of one MLflow experiment.

    Raises:
        IntegrationError: From every method: the server is away, refused, or cannot be used.
        RunGoneError: From those that take a run: it was deleted.
    """

    def __init__(self, settings: TrackingSettings) -> None:
        quiet_mlflow()
        from mlflow import MlflowClient

        self._settings = settings
        with self._asking():
            self._client = MlflowClient(settings.tracking_uri, settings.tracking_uri)
            self._experiment_id = self._find_or_create_experiment()

    def answers(self) -> bool:
        """Tell whether the server is there at all."""
        try:
            with self._asking():
                self._client.get_experiment(self._experiment_id)
        except IntegrationError:
            return False
        return True

    def open_experiment(
        self, name: str, config: Mapping[str, Any], start: Mapping[str, Any]
    ) -> str:
        """Find or begin the run of an experiment, which its stages nest in; give its id.

        Args:
            name: The experiment's name and digest.
            config: Its whole configuration.
            start: The start event of the stage that opens it.
        """
        tags = {"blip.kind": "experiment", "blip.experiment": name}
        with self._asking():
            run_id = self._find_run(tags) or self._create_run(name, start, tags)
            self._log_params(run_id, config)
            self._client.update_run(run_id, status="RUNNING")
        return run_id

    def open_stage(self, start: Mapping[str, Any], experiment_run_id: str) -> str:
        """Find or begin the run of a stage that began with this event; give its id."""
        tags = {"blip.kind": "stage", "blip.key": start["key"], "blip.begun": repr(start["time"])}
        with self._asking():
            run_id = self._find_run(tags) or self._create_run(start["name"], start, tags)
            self._log_tags(run_id, start, experiment_run_id)
            self._log_params(run_id, start["params"])
            self._log_datasets(run_id, start)
        return run_id

    def find_stage(self, key: str) -> str | None:
        """Find the latest run of the stage with this key."""
        with self._asking():
            return self._find_run({"blip.kind": "stage", "blip.key": key}, order="DESC")

    def reopen_run(self, run_id: str, start: Mapping[str, Any]) -> None:
        """Say that a run goes on, by which start of its stage."""
        from mlflow.entities import RunTag

        with self._asking(run_id):
            self._client.update_run(run_id, status="RUNNING")
            tags = manifest_tags(start.get("manifest", {}))
            self._client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])

    def end_run(self, run_id: str, status: str, time: float, output: str | None = None) -> None:
        """Say how a run ended, when (seconds since the epoch), with which digest of its output."""
        with self._asking(run_id):
            if output is not None:
                self._client.set_tag(run_id, "blip.output", output)
            self._client.set_terminated(run_id, status, int(time * 1000))

    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        """Log points with their own times and steps."""
        from mlflow.entities import Metric

        with self._asking(run_id):
            for chunk in _chunks(points, _POINTS):
                self._client.log_batch(
                    run_id, metrics=[Metric(p.name, p.value, p.time, p.step) for p in chunk]
                )

    def log_captions(self, run_id: str, dataset: Path, folder: str) -> None:
        """Log some captions of a dataset version as a table with their images.

        Raises:
            DataError: It cannot be read.
        """
        from blip.integrations.tracking.caption_table import TABLE, write_caption_table

        with tempfile.TemporaryDirectory() as files:
            write_caption_table(dataset, folder, Path(files))
            self._log_table(run_id, Path(files), TABLE, folder)

    def log_examples(self, run_id: str, source: Path, folder: str) -> None:
        """Log what an evaluation found example by example as a table.

        Raises:
            DataError: It cannot be read.
        """
        from blip.integrations.tracking.example_table import TABLE, write_example_table

        with tempfile.TemporaryDirectory() as files:
            write_example_table(source, Path(files))
            self._log_table(run_id, Path(files), TABLE, folder)

    def _log_table(self, run_id: str, files: Path, table: str, folder: str) -> None:
        """Log a table and what it shows; a run has one."""
        place = f"{folder}/{table}" if folder else table
        tables = json.dumps([{"path": place, "type": "table"}])
        with self._asking(run_id):
            self._client.log_artifacts(run_id, str(files), folder or None)
            self._client.set_tag(run_id, "mlflow.loggedArtifacts", tables)

    def log_artifact(self, run_id: str, path: Path, folder: str) -> None:
        """Log a file or a folder's content under a folder of the run's artifacts."""
        with self._asking(run_id):
            if path.is_dir():
                self._client.log_artifacts(run_id, str(path), folder or None)
            else:
                self._client.log_artifact(run_id, str(path), folder or None)

    def _find_or_create_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._settings.experiment)
        if found is not None:
            return str(found.experiment_id)
        return self._client.create_experiment(
            self._settings.experiment,
            artifact_location=self._settings.artifact_location,
            tags={
                "mlflow.experimentKind": "custom_model_development"
            },  # else the UI takes it for an LLM application
        )

    def _find_run(self, tags: Mapping[str, str], order: str = "ASC") -> str | None:
        condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        by = [f"attributes.start_time {order}"]
        found = self._client.search_runs(
            [self._experiment_id], condition, max_results=1, order_by=by
        )
        return found[0].info.run_id if found else None

    def _create_run(self, name: str, start: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        tags = {
            **manifest_tags(start.get("manifest", {})),
            **tags,
            "mlflow.source.name": f"blip {start['stage']}",
        }
        run = self._client.create_run(self._experiment_id, int(start["time"] * 1000), tags, name)
        return str(run.info.run_id)

    def _log_tags(self, run_id: str, start: Mapping[str, Any], experiment_run_id: str) -> None:
        from mlflow.entities import RunTag

        tags = {"blip.stage": start["stage"], "blip.experiment": start["experiment"]}
        if experiment_run_id:
            tags["mlflow.parentRunId"] = experiment_run_id
        for role, entries in start.get("inputs", {}).items():
            tags[f"blip.input.{role}"] = ", ".join(
                f"{path}@{digest[:12]}" for path, digest in entries
            )
        self._client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def _log_params(self, run_id: str, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        for chunk in _chunks(list(flatten(config).items()), _PARAMS):
            self._client.log_batch(run_id, params=[Param(name, value) for name, value in chunk])

    def _log_datasets(self, run_id: str, start: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for path, digest in (
            entry for entries in start.get("inputs", {}).values() for entry in entries
        ):
            version = _dataset_version(Path(path), digest)
            if version is None:
                continue
            source = json.dumps({"uri": str(path), "digest": version["digest"]})
            profile = json.dumps(version["counts"])
            entity = Dataset(
                Path(path).name, version["digest"][:_DIGEST], "local", source, profile=profile
            )
            inputs.append(DatasetInput(entity, [InputTag("mlflow.data.context", start["stage"])]))
        if inputs:
            self._client.log_inputs(run_id, inputs)

    @contextlib.contextmanager
    def _asking(self, run_id: str = "") -> Iterator[None]:
        try:
            with mlflow_errors(self._settings):
                yield
        except IntegrationError:
            if run_id and self._gone(run_id):
                raise RunGoneError(run_id) from None
            raise

    def _gone(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "deleted")
        except MlflowException as error:
            return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")
        except OSError:
            return False


@contextlib.contextmanager
def mlflow_errors(settings: TrackingSettings) -> Iterator[None]:
    """Turn what MLflow may raise into one error with the remedy.

    Raises:
        IntegrationError: The server is away, refused, or cannot be used.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise IntegrationError(
            f"MLflow at {settings.shown_uri} is away or refuses: {reason}: "
            "start it, or name another in mlflow.yaml or MLFLOW_TRACKING_URI"
        ) from error


def manifest_tags(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Give what of a manifest runs are searched by; all of it is an artifact of the run."""
    code, lock = manifest.get("code") or {}, manifest.get("lock")
    tags = {
        "mlflow.source.git.commit": code.get("commit"),
        "blip.dirty": str(bool(code["changes"])).lower() if code else None,
        "blip.changes": code.get("changes"),
        "blip.lock": lock,
        "blip.config": manifest.get("config"),
        "blip.manifest": digest_json(manifest) if manifest else None,
    }
    return {name: value for name, value in tags.items() if value}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Give a nested document as dotted names and short texts, as MLflow shows params."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _dataset_version(path: Path, digest: str) -> dict[str, Any] | None:
    """Read an input's manifest, if it is a dataset version and still the one the stage read."""
    try:
        if read_json(path / "stage.json")["output"] != digest:
            return None
        manifest = read_json(path / "manifest.json")
    except DataError:
        return None
    return {"digest": manifest["digest"], "counts": manifest["counts"]}


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
