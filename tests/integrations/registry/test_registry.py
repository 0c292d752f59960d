"""Real models of a few thousand weights, a real registry, real results: who becomes champion."""

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

from blip import config
from blip.config import PRESETS, load_config
from blip.data.dataset import write_table
from blip.data.text import VOCABULARY, Tokenizer, train_vocabulary
from blip.errors import ConfigError, DataError, IntegrationError
from blip.evaluate import captioning, retrieval
from blip.evaluate.bootstrap import intervals, plain
from blip.files import digest_path, lock, read_json, write_json
from blip.inference import load_predictor
from blip.integrations.registry import LOCKS, fetch_model, promote
from blip.integrations.tracking.settings import Task, TrackingSettings, load_settings
from blip.integrations.tracking.shipping import ship
from blip.models.blip import Blip
from blip.models.checkpoint import save_model
from blip.stage import Job, run_stage
from blip.tracker import NullTracker

ROOT = Path(__file__).parents[3]
CONFIG = load_config(PRESETS / "demo.yaml")
IMAGES = 200


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackingSettings:
    """The project's settings over an empty store, in the current folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    shutil.copy(ROOT / "mlflow.yaml", tmp_path)
    return load_settings()


def train(task: Task, name: str, seed: int) -> Path:
    """Make a model as `blip finetune` would leave it, with random weights."""
    out = Path("models") / name
    with run_stage(Job("finetune", out, {}, {"task": task, "seed": seed})) as stage:
        assert stage
        torch.manual_seed(seed)
        train_vocabulary(["a red square beside a blue ring", "two bars"], 60, stage.out)
        tokenizer = Tokenizer(stage.out / VOCABULARY)
        sizes = {"width": 16, "num_layers": 1, "num_heads": 2}
        model = config.Model(
            vision=config.Vision(**sizes, patch_size=16, drop_path=0.0, checkpoint_layers=0),
            text=config.Text(**sizes, intermediate=32, max_positions=40, dropout=0.0),
            embed_size=8,
            init_std=0.3,
            vision_weights=None,
            text_weights=None,
        )
        save_model(Blip(model, 32, tokenizer.vocab_size, tokenizer.special, task), stage.out)
    return out


def measure(task: Task, model: Path, quality: float, test_set: str = "test") -> Path:
    """Write results as `blip evaluate` would: the better, the higher `quality` from 0 to 1."""
    out = Path("results") / model.name / task
    section: dict[str, Any] = {"task": task, "evaluate": CONFIG.evaluate.model_dump(mode="json")}
    section |= {"text": [35, 30]} if task == "retrieval" else {"prompt": "a picture of "}
    Path(test_set).write_text(test_set)
    inputs = {"model": (model,), "data": (Path(test_set),)}
    with run_stage(Job("evaluate", out, inputs, section)) as stage:
        assert stage
        rng = np.random.default_rng(zlib.crc32(model.name.encode()))
        keys = [f"{test_set}{i:03d}" for i in range(IMAGES)]
        right = rng.random(IMAGES) < quality
        module = retrieval if task == "retrieval" else captioning
        if task == "retrieval":
            columns = [keys, np.where(right, 0, 20), [[0 if r else 20] for r in right]]
        else:
            ones = np.ones(IMAGES, dtype=np.int64)
            columns = [keys, 2.0 * right, 1.0 * right, [[1, 0, 0, 0]] * IMAGES, 5 * ones, 5 * ones]
        schema = module.PER_IMAGE
        arrays = [pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)]
        table = pa.table(arrays, schema=schema)
        write_table(stage.out / "per_example.parquet", table)
        found = intervals(module.statistics(table), IMAGES, 100, 0.95, 0)
        write_json(stage.out / "metrics.json", {task: {n: plain(i) for n, i in found.items()}})
    return out


def decide(settings: TrackingSettings, task: Task, model: Path, results: Path) -> dict[str, Any]:
    """Promote and give what was written."""
    out = Path("promotion")
    out.mkdir(exist_ok=True)
    promote(settings, task, model, results, out, NullTracker())
    decision: dict[str, Any] = read_json(out / "metrics.json")["promotion"]
    return decision


def registered(settings: TrackingSettings) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(settings.tracking_uri, settings.tracking_uri)


def aliases(settings: TrackingSettings) -> dict[str, int]:
    model = registered(settings).get_registered_model("blip-retrieval")
    return {alias: int(version) for alias, version in model.aliases.items()}


def picture(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    return file.getvalue()


def test_weights_go_where_the_artifacts_of_the_run_go(settings: TrackingSettings) -> None:
    model = train("captioning", "first", 1)
    decide(settings, "captioning", model, measure("captioning", model, 0.9))
    client = registered(settings)
    (version,) = client.search_model_versions("name = 'blip-captioner'")
    stored = [path.relative_to(Path.cwd()) for path in Path.cwd().rglob("model.safetensors")]
    assert {path.parts[0] for path in stored} == {"models", "mlartifacts"}
    assert not Path("mlruns").exists()
    run = client.get_run(version.run_id)
    assert "MLFLOW_EXPERIMENT_ID" not in os.environ
    assert run.info.experiment_id != "0"


def test_only_who_passes_the_gate_becomes_champion(settings: TrackingSettings) -> None:
    task: Task = "retrieval"
    first, better, equal, poor = (train(task, f"model{seed}", seed) for seed in range(4))
    ship(Path("runs"), settings)

    refused = decide(settings, task, poor, measure(task, poor, 0.01))
    assert (refused["promoted"], refused["version"]) == (False, 1)
    assert "below the floor of 2.0" in refused["reason"]
    assert aliases(settings) == {"candidate": 1}

    accepted = decide(settings, task, first, measure(task, first, 0.5))
    assert (accepted["promoted"], accepted["version"], accepted["champion"]) == (True, 2, None)
    assert aliases(settings) == {"candidate": 2, "champion": 2}

    again = decide(settings, task, first, Path("results/model0/retrieval"))
    assert (again["promoted"], again["version"]) == (True, 2)
    assert "already" in again["reason"]

    unproven = decide(settings, task, equal, measure(task, equal, 0.51))
    assert (unproven["promoted"], unproven["version"]) == (False, 3)
    assert unproven["difference"]["low"] <= 0.0 <= unproven["difference"]["value"]
    assert "must be above +0.00" in unproven["reason"]

    proven = decide(settings, task, better, measure(task, better, 0.7))
    assert (proven["promoted"], proven["version"]) == (True, 4)
    assert proven["difference"]["low"] > 0.0
    assert proven["candidate"] - proven["champion"] == pytest.approx(proven["difference"]["value"])
    assert aliases(settings) == {"candidate": 4, "champion": 4}

    client = registered(settings)
    version = client.get_model_version_by_alias("blip-retrieval", "champion")
    assert version.tags["blip.model"] == read_json(better / "stage.json")["output"]
    assert version.tags["blip.decision"] == proven["reason"]
    trained = client.get_run(version.run_id)
    assert trained.data.tags["blip.key"] == read_json(better / "stage.json")["key"]
    assert trained.info.run_name == "finetune-model1"
    assert trained.info.status == "FINISHED"


def test_candidates_take_turns(settings: TrackingSettings) -> None:
    model = train("retrieval", "one", 0)
    arguments = (settings, "retrieval", model, measure("retrieval", model, 0.5))
    waiting = threading.Thread(target=decide, args=arguments)
    with lock(LOCKS / "promote-blip-retrieval", "judging another candidate"):
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        assert not Path("promotion/metrics.json").exists()
    waiting.join()
    assert aliases(settings) == {"candidate": 1, "champion": 1}


def test_another_test_set_decides_nothing_until_the_champion_is_measured_on_it(
    settings: TrackingSettings,
) -> None:
    task: Task = "captioning"
    old, new = train(task, "old", 0), train(task, "new", 1)
    assert decide(settings, task, old, measure(task, old, 0.4))["promoted"]
    refused = decide(settings, task, new, measure(task, new, 0.9, "other"))
    assert not refused["promoted"]
    assert "another test set" in refused["reason"]
    assert decide(settings, task, old, measure(task, old, 0.4, "other"))["version"] == 1
    accepted = decide(settings, task, new, Path("results/new/captioning"))
    assert (accepted["promoted"], accepted["version"]) == (True, 2)


def test_results_of_another_model_are_refused(settings: TrackingSettings) -> None:
    one, other = train("retrieval", "one", 0), train("retrieval", "other", 1)
    results = measure("retrieval", one, 0.5)
    with pytest.raises(
        DataError, match=r"was not measured on models/other.*blip evaluate retrieval"
    ):
        decide(settings, "retrieval", other, results)


def test_a_metric_that_was_not_measured_is_named(settings: TrackingSettings) -> None:
    text = Path("mlflow.yaml").read_text().replace("metric: ir_r1", "metric: ir_r2")
    Path("mlflow.yaml").write_text(text)
    model = train("retrieval", "one", 0)
    results = measure("retrieval", model, 0.5)
    with pytest.raises(ConfigError, match=r"gate\.metric 'ir_r2' is not in .*it has .*ir_r1"):
        decide(load_settings(), "retrieval", model, results)


def test_a_server_that_is_away_is_named(settings: TrackingSettings) -> None:
    model = train("retrieval", "one", 0)
    results = measure("retrieval", model, 0.5)
    away = settings.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    with pytest.raises(IntegrationError, match=r"127\.0\.0\.1:9 is away or refuses"):
        decide(away, "retrieval", model, results)
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_registered_matcher_answers_as_the_model_does(settings: TrackingSettings) -> None:
    model = train("retrieval", "one", 0)
    decide(settings, "retrieval", model, measure("retrieval", model, 0.5))
    loaded = load_from_registry(settings, "models:/blip-retrieval@champion")
    rows = [(picture((255, 0, 0)), "a red square"), (picture((0, 0, 255)), "Two BARS!")] * 40
    answer = loaded.predict(pd.DataFrame(rows, columns=["image", "text"]))
    assert list(answer.columns) == ["match_probability", "cosine"]
    assert len(answer) == 80  # more than a batch
    expected = match_by_hand(model, [rows[0], rows[1]])
    # Measured worst case: 6e-8, from padding in the larger batch.
    np.testing.assert_allclose(answer.iloc[[0, 1]].to_numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(answer.iloc[[78, 79]].to_numpy(), expected, atol=1e-6)


def match_by_hand(model: Path, rows: list[tuple[bytes, str]]) -> np.ndarray:
    from blip.data.images import decode_image
    from blip.data.text import clean_caption
    from blip.data.transforms import evaluation_transform
    from blip.models.checkpoint import load_model

    network, tokenizer = load_model(model).eval(), Tokenizer(model / VOCABULARY)
    found = []
    with torch.inference_mode():
        for image, text in rows:
            pixels = evaluation_transform(decode_image(image, 10_000), network.image_size)
            tokens = network.encode_image(pixels[None])
            ids, mask = tokenizer.encode([clean_caption(text, 30)], 35)
            logits = network.match(ids, mask, network.project_images(tokens))
            words = network.embed_text(network.encode_text(ids, mask))
            cosine = (network.embed_image(tokens) * words).sum()
            found.append([float(logits.softmax(-1)[0, 1]), float(cosine)])
    return np.array(found)


def load_from_registry(settings: TrackingSettings, uri: str) -> Any:
    import mlflow

    mlflow.set_tracking_uri(settings.tracking_uri)
    try:
        return mlflow.pyfunc.load_model(uri)
    finally:
        mlflow.set_tracking_uri(None)
        os.environ.pop("MLFLOW_TRACKING_URI", None)


def test_a_bad_image_is_named(settings: TrackingSettings) -> None:
    model = train("captioning", "one", 0)
    decide(settings, "captioning", model, measure("captioning", model, 0.5))
    loaded = load_from_registry(settings, "models:/blip-captioner@champion")
    assert list(loaded.predict(pd.DataFrame({"image": [picture((9, 9, 9))]})).columns) == [
        "caption"
    ]
    with pytest.raises(DataError, match=r"row 1: image: .*no image of a known format"):
        loaded.predict(pd.DataFrame({"image": [picture((9, 9, 9)), b"no image"]}))


@pytest.mark.slow
def test_the_registry_model_is_served_over_http(settings: TrackingSettings) -> None:
    model = train("captioning", "one", 0)
    decide(settings, "captioning", model, measure("captioning", model, 0.5))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["-m", "models:/blip-captioner@champion", "-h", "127.0.0.1", "-p", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # as in an active venv
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": settings.tracking_uri}
    with Path("serve.log").open("wb") as words:
        server = subprocess.Popen(
            command, env=environment, stdout=words, stderr=words, start_new_session=True
        )
    try:
        image = base64.b64encode(picture((255, 0, 0))).decode()
        body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[image]]}}).encode()
        address = f"http://127.0.0.1:{port}/invocations"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        answer = ask(request, server)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    loaded = load_from_registry(settings, "models:/blip-captioner@champion")
    expected = loaded.predict(pd.DataFrame({"image": [picture((255, 0, 0))]}))
    assert answer == {"predictions": expected.to_dict("records")}


def ask(request: urllib.request.Request, server: subprocess.Popen[bytes]) -> Any:
    """Ask until the server is up."""
    deadline = time.monotonic() + 300.0
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30.0) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except OSError:
            assert server.poll() is None, Path("serve.log").read_text()
            assert time.monotonic() < deadline, "does not answer"
            time.sleep(0.5)


def test_a_registered_model_is_fetched_once(
    settings: TrackingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = train("captioning", "one", 0)
    decide(settings, "captioning", model, measure("captioning", model, 0.5))
    fetched = fetch_model(settings, "models:/blip-captioner@champion")
    assert digest_path(fetched) == digest_path(model)
    assert load_predictor(fetched, "captioning").model.parts == "captioning"
    shutil.rmtree("mlartifacts")  # what is here already needs no server's files
    assert fetch_model(settings, "models:/blip-captioner/1") == fetched
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_registered_model_that_was_changed_is_refused(settings: TrackingSettings) -> None:
    model = train("retrieval", "one", 0)
    decide(settings, "retrieval", model, measure("retrieval", model, 0.5))
    (vocabulary,) = Path("mlartifacts").rglob(VOCABULARY)
    vocabulary.write_text(vocabulary.read_text() + "more\n")
    for _ in range(2):
        with pytest.raises(DataError, match="blip-retrieval@champion: is not what was registered"):
            fetch_model(settings, "models:/blip-retrieval@champion")


def test_a_model_that_is_not_registered(settings: TrackingSettings) -> None:
    model = train("retrieval", "one", 0)
    decide(settings, "retrieval", model, measure("retrieval", model, 0.5))
    for name in ("blip-retrieval@nobody", "blip-nothing@champion", "blip-retrieval/7"):
        with pytest.raises(ConfigError, match=f"models:/{name}: is not in the registry at sqlite"):
            fetch_model(settings, f"models:/{name}")
    for name in ("blip-retrieval", "blip-retrieval/", "a/b/1", "@champion"):
        with pytest.raises(ConfigError, match=f"models:/{name}: must be models:/NAME@ALIAS or"):
            fetch_model(settings, f"models:/{name}")
