"""Pre-training and fine-tuning as stages: what they write; equal runs write equal bytes."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from blip.config import PRESETS, Config, Ingest, World, load_config, read_yaml
from blip.data.ingest import ingest
from blip.data.loader import PairLoader
from blip.data.world import draw_world
from blip.errors import CheckpointError, ConfigError, DataError
from blip.files import digest_directory, read_json
from blip.models.checkpoint import load_model, save_model
from blip.models.convert import new_momentum, official_names
from blip.models.vit import VisionTransformer
from blip.tracker import NullTracker
from blip.train.annotated import finetune_annotated
from blip.train.run import build_tokenizer, finetune, pretrain

PARAMS = Path(__file__).parents[2] / "blip/presets/demo.yaml"
SHORT = {"batch_size": 8, "checkpoint_every": 3, "log_every": 2, "image_size": 32}


def short_config(**overrides: Any) -> Config:
    changes: dict[str, Any] = {"pretrain.steps": 7}
    for section in ("pretrain", "finetune.captioning", "finetune.retrieval"):
        changes |= {f"{section}.{key}": value for key, value in SHORT.items()}
    for task in ("captioning", "retrieval"):
        changes[f"finetune.{task}.steps"] = 4
    changes["tokenizer.size"] = 150
    return load_config(PARAMS, changes | overrides)


class Stage:
    """A folder with ingested data and a tokenizer, and a place for what a run writes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = [root / "datasets/web", root / "datasets/human"]
        self.tokenizer = root / "tokenizer"

    def folders(self, name: str) -> tuple[Path, Path]:
        out, run_dir = self.root / "models" / name, self.root / "runs" / name
        out.mkdir(parents=True, exist_ok=True)
        return out, run_dir

    def pretrain(self, name: str, config: Config | None = None) -> Path:
        out, run_dir = self.folders(name)
        pretrain(config or short_config(), self.data, self.tokenizer, out, run_dir, NullTracker())
        return out


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    root = tmp_path_factory.mktemp("experiment")
    world = {
        **short_config().world.model_dump(),
        "image_size": 32,
        "web": 40,
        "human": 8,
        "test": 2,
    }
    (root / "data").mkdir()
    draw_world(World(**world), root / "data")
    section = short_config().ingest.model_dump()
    for source in section["sources"].values():
        for key in ("annotations", "images"):
            source[key] = str(root / source[key])
    stage = Stage(root)
    for path in stage.data:
        path.mkdir(parents=True)
        rules, run_dir = Ingest(**{**section, "shard_size": 16}), root / "runs" / path.name
        ingest(rules, path.name, path, run_dir, NullTracker())
    build_tokenizer(short_config(), stage.data, stage.tokenizer)
    return stage


@pytest.fixture(scope="module")
def pretrained(stage: Stage) -> Path:
    return stage.pretrain("pretrained")


def test_pretraining_writes_a_model_and_its_numbers(pretrained: Path) -> None:
    files = {"model.safetensors", "config.json", "vocab.txt", "metrics.json", "curves.csv"}
    assert {path.name for path in pretrained.iterdir()} == files
    model = load_model(pretrained)
    assert (model.parts, model.image_size) == ("pretrain", 32)
    metrics = read_json(pretrained / "metrics.json")["training"]
    assert metrics["steps"] == 7
    assert metrics["pairs_seen"] == 56
    assert metrics["pairs"] == 40 + 8 * 5
    with (pretrained / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 7]
    expected = {"loss", "loss_itc", "loss_itm", "loss_lm", "itm_accuracy", "alpha", "temperature"}
    assert expected | {"lr", "grad_norm"} <= rows[0].keys()
    parts = sum(float(rows[-1][f"loss_{part}"]) for part in ("itc", "itm", "lm"))
    assert float(rows[-1]["loss"]) == pytest.approx(parts, rel=1e-5)
    assert metrics["loss"] == float(rows[-1]["loss"])


def test_equal_runs_write_equal_bytes(stage: Stage, pretrained: Path) -> None:
    assert digest_directory(stage.pretrain("again")) == digest_directory(pretrained)
    other = stage.pretrain("other", short_config(seed=8))
    assert digest_directory(other) != digest_directory(pretrained)


@pytest.mark.parametrize("stop", [0, 4])
def test_stopped_run_goes_on_to_the_same_bytes(
    stage: Stage, pretrained: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    iterate = PairLoader.iterate

    def interrupted(self: PairLoader, start: int, end: int) -> Any:
        for step, batch in enumerate(iterate(self, start, end), start):
            if step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    name = f"stopped{stop}"
    with monkeypatch.context() as patch:
        patch.setattr(PairLoader, "iterate", interrupted)
        with pytest.raises(SystemExit):
            stage.pretrain(name)
    assert not list((stage.root / "models" / name).iterdir())
    assert digest_directory(stage.pretrain(name)) == digest_directory(pretrained)


def test_workers_change_nothing(stage: Stage, pretrained: Path) -> None:
    config = short_config(**{"pretrain.num_workers": 2})
    assert digest_directory(stage.pretrain("workers", config)) == digest_directory(pretrained)


@pytest.mark.parametrize("task", ["captioning", "retrieval"])
def test_finetuning_takes_its_parts(stage: Stage, pretrained: Path, task: Any) -> None:
    out, run_dir = stage.folders(task)
    # Another size than in pre-training: the position embedding is resampled.
    config = short_config(**{f"finetune.{task}.image_size": 48})
    finetune(config, task, pretrained, [stage.data[1]], out, run_dir, NullTracker())
    model = load_model(out)
    assert (model.parts, model.image_size) == (task, 48)
    assert (out / "vocab.txt").read_bytes() == (pretrained / "vocab.txt").read_bytes()
    metrics = read_json(out / "metrics.json")["training"]
    assert metrics["steps"] == 4
    assert ("loss_lm" in metrics) == (task == "captioning")
    assert ("loss_itm" in metrics) == (task == "retrieval")


@pytest.mark.parametrize("task", ["vqa", "nlvr"])
def test_finetuning_on_annotated_photos(
    stage: Stage, pretrained: Path, tmp_path: Path, task: Any
) -> None:
    for number in range(8):
        Image.new("RGB", (40, 32), (30 * number, 7, 90)).save(tmp_path / f"{number}.png")
    names = [f"{number}.png" for number in range(8)]
    rows: list[dict[str, Any]] = [
        {"question_id": i, "question": "what?", "answer": ["a", "b"], "image": n, "dataset": "vqa"}
        for i, n in enumerate(names)
    ]
    if task == "nlvr":
        pairs = zip(names, reversed(names), strict=True)
        rows = [{"sentence": "the left", "label": "True", "images": pair} for pair in pairs]
    annotations = tmp_path / "rows.json"
    annotations.write_text(json.dumps(rows))
    section = read_yaml(PRESETS / "base_14m.yaml")["finetune"][task]
    section |= SHORT | {
        "held_out": HELD_OUT,
        "steps": 4,
        "epochs": None,
        "image_size": 48,
        "max_tokens": 20,
    }
    config = short_config(**{f"finetune.{task}": section})
    out, run_dir = stage.folders(task)
    places = {"": tmp_path}, out, run_dir, NullTracker()
    finetune_annotated(config, task, pretrained, [annotations], *places, [annotations])
    model = load_model(out)
    assert (model.parts, model.image_size, model.config.vision.drop_path) == (task, 48, 0.1)
    metrics = read_json(out / "metrics.json")["training"]
    assert metrics["steps"] == 4
    assert ("loss_lm" in metrics) == (task == "vqa")
    columns = (out / "curves.csv").read_text().splitlines()[0].split(",")
    assert ("accuracy" in columns) == (task == "nlvr")
    with pytest.raises(ConfigError, match=rf"finetune\.{task} is null"):
        finetune_annotated(
            short_config(), task, pretrained, [annotations], {}, out, run_dir, NullTracker()
        )


HELD_OUT = {"every": 2, "batches": 2, "metric": "loss", "best": "lowest", "patience": 0}


@pytest.mark.parametrize("task", ["captioning", "retrieval"])
def test_held_out_data_choose_the_model(stage: Stage, pretrained: Path, task: Any) -> None:
    config = short_config(**{f"finetune.{task}.held_out": HELD_OUT})
    out, run_dir = stage.folders(f"held_out_{task}")
    points: list[dict[str, float]] = []

    class Told(NullTracker):
        def metrics(self, values: Any, step: int = 0) -> None:
            points.append({"step": step, **values})

    data = stage.data[1]
    finetune(config, task, pretrained, [data], out, run_dir, Told(), [data])
    told = [point for point in points if "held_out/loss" in point]
    assert [point["step"] for point in told] == [2, 4]
    assert told[0]["held_out/loss"] > told[1]["held_out/loss"]
    with pytest.raises(ConfigError, match="no held-out data are named: --validation"):
        finetune(config, task, pretrained, [data], out, run_dir, Told())
    with pytest.raises(ConfigError, match="held_out is null: set it"):
        finetune(short_config(), task, pretrained, [data], out, run_dir, Told(), [data])


def test_retrieval_goes_on_from_the_momentum_of_its_model(
    stage: Stage, pretrained: Path, tmp_path: Path
) -> None:
    config = short_config()
    folder = tmp_path / "model"
    shutil.copytree(pretrained, folder)
    model = load_model(folder)
    momentum = new_momentum(model, config.finetune.retrieval.contrast.queue_size)
    momentum["twin.vision.norm.weight"] = momentum["twin.vision.norm.weight"] + 1
    save_model(model, folder, momentum)
    results = {}
    for start in (pretrained, folder):
        out, run_dir = tmp_path / f"out_{start.name}", tmp_path / f"run_{start.name}"
        out.mkdir()
        finetune(config, "retrieval", start, [stage.data[1]], out, run_dir, NullTracker())
        results[start] = read_json(out / "metrics.json")["training"]["loss_itc"]
    assert results[pretrained] != results[folder]


def test_vocabulary_may_be_a_file(stage: Stage, tmp_path: Path) -> None:
    vocabulary = stage.tokenizer / "vocab.txt"
    config = short_config(**{"tokenizer.vocabulary": str(vocabulary)})
    build_tokenizer(config, stage.data, tmp_path)
    assert (tmp_path / "vocab.txt").read_bytes() == vocabulary.read_bytes()
    size = len(vocabulary.read_text().split()) + 2
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"tokenizer": {"size": size}}


def test_missing_vocabulary_is_one_message(stage: Stage, tmp_path: Path) -> None:
    config = short_config(**{"tokenizer.vocabulary": "no/such/vocab.txt"})
    with pytest.raises(ConfigError, match="no file here"):
        build_tokenizer(config, stage.data, tmp_path)


def test_a_run_from_other_weights_is_another_run(stage: Stage, tmp_path: Path) -> None:
    weights = tmp_path / "vit.pth"
    config = short_config(**{"model.vision_weights": str(weights)})
    for seed in (0, 1):
        torch.manual_seed(seed)
        vision = VisionTransformer(config.model.vision, 32)
        names = {name: official_names(f"vision.{name}")[0] for name in vision.state_dict()}
        tensors = {names[n].split(".", 1)[1]: t for n, t in vision.state_dict().items()}
        torch.save(tensors, weights)
        if seed == 0:
            stage.pretrain("from_weights", config)
        else:
            with pytest.raises(CheckpointError, match="another"):
                stage.pretrain("from_weights", config)


def test_bad_combinations_are_refused_before_training(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_tokens 65 is more than"):
        stage.pretrain("refused", short_config(**{"pretrain.max_tokens": 65}))
    with pytest.raises(ConfigError, match=r"model\.vision_weights 'deit\.pth': no such file"):
        stage.pretrain("refused", short_config(**{"model.vision_weights": "deit.pth"}))
    with pytest.raises(ConfigError, match=r"let tokenizer\.vocabulary name it"):
        stage.pretrain("refused", short_config(**{"model.text_weights": "bert"}))
    with pytest.raises(DataError, match=r"nowhere: no such dataset version"):
        pretrain(
            short_config(),
            [tmp_path / "nowhere"],
            stage.tokenizer,
            tmp_path,
            tmp_path,
            NullTracker(),
        )
