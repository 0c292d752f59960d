"""Models in MLflow's registry: registered once, promoted only through the gate in `mlflow.yaml`.

A version carries its model's digest, the datasets it was trained on and the results it was judged
by. `candidate` is the latest one; `champion` moves only to a version that passes the gate.
"""

import contextlib
import importlib.metadata
import io
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blip.errors import ConfigError, DataError
from blip.files import atomic_directory, digest_directory, lock, read_json, write_json
from blip.integrations.tracking.server import MlflowServer, mlflow_errors
from blip.integrations.tracking.settings import Gate, Task, TrackingSettings, quiet_mlflow
from blip.stage import RECORD, input_digest
from blip.tracker import Tracker

log = logging.getLogger(__name__)

CANDIDATE, CHAMPION = "candidate", "champion"
FETCHED = Path("runs/models")  # models that were fetched
LOCKS = Path("runs/locks")  # which all workspaces of a checkout share

_URI = re.compile(r"models:/([^/:@]+)(?:@([\w-]+)|/(\d+))$")

_EXPERIMENT = "MLFLOW_EXPERIMENT_ID"
_CODE = Path(__file__).with_name("served_model.py")
_REQUIREMENTS = (
    "blip-platform",
    "mlflow",
    "torch",
    "safetensors",
    "tokenizers",
    "pillow",
    "pandas",
)


@dataclass(frozen=True)
class Decision:
    """Whether a version becomes champion, by which numbers.

    Attributes:
        promoted: The version is the champion now.
        reason: Why, in a sentence.
        candidate: Its metric.
        champion: The champion's metric, where there was one to compare with.
        difference: Candidate minus champion: `value`, and `low` and `high` of its interval.
    """

    promoted: bool
    reason: str
    candidate: float
    champion: float | None = None
    difference: dict[str, float] | None = None


def promote(
    settings: TrackingSettings, task: Task, model: Path, results: Path, out: Path, tracker: Tracker
) -> None:
    """Register a model as candidate and make it champion if it passes its gate.

    Writes `metrics.json`: the version, the decision, its numbers and the reason. A model that does
    not pass is no error. Doing it again registers nothing twice, and who comes while another
    candidate of a checkout is judged waits for the verdict.

    Args:
        settings: `mlflow.yaml`.
        task: Which registered model, by which gate.
        model: The output of `blip finetune`.
        results: The output of `blip evaluate` on it.
        out: The folder to write into.
        tracker: Told the numbers of the decision.

    Raises:
        IntegrationError: The tracking server is away or refuses.
        DataError: The results are of another model, or something is missing.
        ConfigError: `mlflow.yaml` has no gate for the task, or its metric is not in the results.
    """
    if task not in settings.models:
        raise ConfigError(f"mlflow.yaml: models has no {task!r}: add it with its gate")
    name, gate = settings.models[task].name, settings.models[task].gate
    value = _check_results(task, model, results, gate)
    quiet_mlflow()
    # Of two at once, each would be compared with the champion that the other replaces.
    turn = lock(LOCKS / f"promote-{name}", f"promoting another {name}", wait=True)
    with turn, _mlflow(settings) as client:
        version = _find_version(client, name, input_digest(model))
        if version is None:
            version = _register(client, settings, task, model, results)
        _attach_results(client, version, results)
        client.set_registered_model_alias(name, CANDIDATE, version.version)
        champion = _champion(client, name)
        decision = _judge(client, task, gate, version, champion, results, value)
        if decision.promoted:
            client.set_registered_model_alias(name, CHAMPION, version.version)
        for key, text in (
            ("decision", decision.reason),
            (f"results.{gate.metric}", f"{value:.6g}"),
        ):
            client.set_model_version_tag(name, version.version, f"blip.{key}", text)
    log.info("%s version %s: %s", name, version.version, decision.reason)
    report = {"model": name, "version": int(version.version), "metric": gate.metric}
    write_json(out / "metrics.json", {"promotion": {**report, **asdict(decision)}})
    numbers = {"promoted": float(decision.promoted), "candidate": value}
    if decision.difference is not None:
        numbers |= {f"difference_{name}": v for name, v in decision.difference.items()}
    tracker.metrics({f"promotion/{name}": number for name, number in numbers.items()})


def fetch_model(settings: TrackingSettings, uri: str, cache: Path = FETCHED) -> Path:
    """Give the folder of a registered model, fetched once: a version never changes.

    Args:
        settings: `mlflow.yaml`.
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        cache: Keeps what was fetched, by digest.

    Raises:
        ConfigError: The URI is malformed, or the registry has no such model.
        IntegrationError: The tracking server is away or refuses.
        DataError: What came is not what was registered.
    """
    parsed = _URI.match(uri)
    if parsed is None:
        raise ConfigError(f"{uri}: must be models:/NAME@ALIAS or models:/NAME/VERSION")
    quiet_mlflow()
    with _mlflow(settings) as client:
        version = _named_version(client, settings, uri, *parsed.groups())
        digest = version.tags.get("blip.model")
        if digest is None:
            raise ConfigError(f"{uri}: was not registered by blip promote: name another version")
        out = cache / digest[:16]
        with lock(cache / f"{digest[:16]}.lock", f"fetching {uri}", wait=True):
            if not out.is_dir():
                _download(version, digest, uri, out)
    return out


def _named_version(
    client: Any, settings: TrackingSettings, uri: str, name: str, alias: str | None, number: str
) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        if alias is not None:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise ConfigError(f"{uri}: is not in the registry at {settings.shown_uri}") from None


def _download(version: Any, digest: str, uri: str, out: Path) -> None:
    """Fetch a version's model, out of all that MLflow logged with it."""
    import mlflow.artifacts
    from mlflow.models import Model

    with tempfile.TemporaryDirectory() as folder, atomic_directory(out) as fetched:
        place = f"models:/{version.name}/{version.version}"
        logged = Path(mlflow.artifacts.download_artifacts(place, dst_path=folder))
        artifacts = Model.load(str(logged)).flavors["python_function"]["artifacts"]
        shutil.copytree(logged / artifacts["model"]["path"], fetched, dirs_exist_ok=True)
        if digest_directory(fetched, without=frozenset({RECORD})) != digest:
            raise DataError(
                f"{uri}: is not what was registered: its artifacts were changed or cut short"
            )


def _check_results(task: Task, model: Path, results: Path, gate: Gate) -> float:
    """Give the metric that decides, after making sure that it was measured on this very model."""
    measured = read_json(results / RECORD)["inputs"].get("model")
    if measured != [input_digest(model)]:
        raise DataError(
            f"{results}: was not measured on {model} as it is now: "
            f"run blip evaluate {task} --checkpoint {model} again"
        )
    metrics = read_json(results / "metrics.json").get(task, {})
    if gate.metric not in metrics:
        known = ", ".join(sorted(metrics)) or f"no {task} results"
        raise ConfigError(
            f"mlflow.yaml: models.{task}.gate.metric {gate.metric!r} is not in {results}: "
            f"it has {known}"
        )
    return float(metrics[gate.metric]["value"])


@contextlib.contextmanager
def _mlflow(settings: TrackingSettings) -> Iterator[Any]:
    """Give a client, with MLflow's own idea of where to log set to the same place meanwhile."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    with mlflow_errors(settings):
        mlflow.set_tracking_uri(settings.tracking_uri)  # logging a model knows no other way
        mlflow.set_registry_uri(settings.tracking_uri)
        try:
            yield mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)
        finally:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # back to its default
            mlflow.set_registry_uri(None)  # type: ignore[arg-type]
            if before is not None:
                os.environ["MLFLOW_TRACKING_URI"] = before


def _find_version(client: Any, name: str, digest: str) -> Any | None:
    found = client.search_model_versions(f"name = '{name}'")
    return next((version for version in found if version.tags.get("blip.model") == digest), None)


def _champion(client: Any, name: str) -> Any | None:
    model = client.get_registered_model(name)
    number = model.aliases.get(CHAMPION)
    return None if number is None else client.get_model_version(name, number)


def _register(
    client: Any, settings: TrackingSettings, task: Task, model: Path, results: Path
) -> Any:
    """Log the model on the run that trained it, and register a version of it."""
    import mlflow.pyfunc
    from mlflow.models import Model

    name, record = settings.models[task].name, read_json(model / RECORD)
    run_id = _training_run(settings, model, record)
    with tempfile.TemporaryDirectory() as folder, _experiment_of(client, run_id):
        serving = Path(folder) / "serving.json"
        write_json(serving, _serving(task, results))
        info = Model.log(
            artifact_path=None,
            name=name,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(_CODE),
            artifacts={"model": str(model), "serving": str(serving)},
            pip_requirements=[f"{p}=={importlib.metadata.version(p)}" for p in _REQUIREMENTS],
            input_example=_example(task),
            signature=_signature(task),
            registered_model_name=name,
        )
    version = client.get_model_version(name, info.registered_model_version)
    tags = {"model": input_digest(model), "key": record["key"]}
    tags |= {f"input.{role}": ", ".join(digests) for role, digests in record["inputs"].items()}
    for key, value in tags.items():
        client.set_model_version_tag(name, version.version, f"blip.{key}", value)
    return version


@contextlib.contextmanager
def _experiment_of(client: Any, run_id: str) -> Iterator[None]:
    """Log models where a run's artifacts go: MLflow takes the first experiment, whatever the run."""
    before = os.environ.get(_EXPERIMENT)
    os.environ[_EXPERIMENT] = client.get_run(run_id).info.experiment_id
    try:
        yield
    finally:
        os.environ.pop(_EXPERIMENT)
        if before is not None:
            os.environ[_EXPERIMENT] = before


def _training_run(settings: TrackingSettings, model: Path, record: dict[str, Any]) -> str:
    """Find the run of the stage that made the model, or describe it in a new one."""
    server = MlflowServer(settings)
    run_id = server.find_stage(record["key"])
    if run_id is None:
        start = {"stage": record["stage"], "name": f"{record['stage']}-{model.name}"}
        start |= {"key": record["key"], "params": record["config"]}
        run_id = server.open_stage({**start, "experiment": "", "time": time.time()}, "")
        server.end_run(run_id, "FINISHED", time.time(), record["output"])
    return run_id


def _serving(task: Task, results: Path) -> dict[str, Any]:
    """Say how the model reads and writes when served: as it did when it was evaluated."""
    config = read_json(results / RECORD)["config"]
    if task == "captioning":
        return {
            "task": task,
            "prompt": config["prompt"],
            "decoding": config["evaluate"]["decoding"],
        }
    max_tokens, max_words = config["text"]
    return {"task": task, "max_tokens": max_tokens, "max_words": max_words}


def _example(task: Task) -> Any:
    """Give one row as a client would send it: a grey image, and a text where texts are judged."""
    import pandas as pd
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(file, "PNG")
    row = {"image": file.getvalue()}
    return pd.DataFrame([row if task == "captioning" else {**row, "text": "a grey square"}])


def _signature(task: Task) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    image, text = ColSpec("binary", "image"), ColSpec("string", "text")
    if task == "captioning":
        return ModelSignature(Schema([image]), Schema([ColSpec("string", "caption")]))
    probability, cosine = ColSpec("double", "match_probability"), ColSpec("double", "cosine")
    return ModelSignature(Schema([image, text]), Schema([probability, cosine]))


def _attach_results(client: Any, version: Any, results: Path) -> None:
    """Keep the results with the version, for the comparisons to come."""
    digest = input_digest(results)
    if version.tags.get("blip.results") != digest:
        client.log_artifacts(version.run_id, str(results), _results_folder(digest))
        client.set_model_version_tag(version.name, version.version, "blip.results", digest)


def _results_folder(digest: str) -> str:
    return f"results/{digest[:12]}"


def _judge(
    client: Any,
    task: Task,
    gate: Gate,
    version: Any,
    champion: Any | None,
    results: Path,
    value: float,
) -> Decision:
    """Decide by the gate; see `mlflow.yaml`."""
    if champion is not None and str(champion.version) == str(version.version):
        return Decision(True, "is the champion already", value)
    if value < gate.floor:
        reason = f"stays candidate: {gate.metric} {value:.2f} is below the floor of {gate.floor}"
        return Decision(False, reason, value)
    if champion is None:
        return Decision(True, f"is the first champion: {gate.metric} {value:.2f}", value)
    with tempfile.TemporaryDirectory() as folder:
        digest = champion.tags["blip.results"]
        theirs = client.download_artifacts(champion.run_id, _results_folder(digest), folder)
        return _compare(task, gate, Path(theirs), results, value)


def _compare(task: Task, gate: Gate, champion: Path, candidate: Path, value: float) -> Decision:
    """Compare image by image with the champion's results on the same test set."""
    from blip.evaluate.bootstrap import differences
    from blip.evaluate.compare import TASKS

    before, after = _per_image(champion), _per_image(candidate)
    if before["key"] != after["key"]:
        reason = (
            "stays candidate: the champion was measured on another test set: "
            "evaluate and promote the champion on this one first"
        )
        return Decision(False, reason, value)
    found = differences(
        {gate.metric: TASKS[task].statistics(before)[gate.metric]},
        {gate.metric: TASKS[task].statistics(after)[gate.metric]},
        len(after),
        gate.resamples,
        gate.confidence,
        seed=0,
    )[gate.metric]
    promoted = found.low > gate.min_difference
    reason = (
        f"{'is the new champion' if promoted else 'stays candidate'}: {gate.metric} "
        f"{found.candidate:.2f} against the champion's {found.baseline:.2f}, a difference of "
        f"{found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}]; "
        f"its lower end must be above {gate.min_difference:+.2f}"
    )
    interval = {"value": found.difference, "low": found.low, "high": found.high}
    return Decision(promoted, reason, value, found.baseline, interval)


def _per_image(folder: Path) -> Any:
    """Read the values of every test image, in the order of their keys."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "per_example.parquet"
    try:
        return pq.read_table(path).sort_by("key")
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read: {reason}: evaluate the model again") from None
