"""A small finished experiment on disk: drawn images, real tables, made-up scores and curves."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from blip.config import PRESETS, Config, load_config
from blip.data.dataset import CAPTIONS, RECORDS, Shard, caption_id, write_manifest, write_table
from blip.data.statements import describes
from blip.data.tar import TarWriter, index_tar
from blip.data.truth import Truth, read_truth
from blip.data.world import draw_world
from blip.evaluate import captioning, retrieval
from blip.evaluate.bootstrap import intervals, plain
from blip.evaluate.compare import compare
from blip.evaluate.filter import evaluate_filter
from blip.files import digest_file, digest_json, read_json, write_json, write_text
from blip.stage import RECORD
from blip.tracker import NullTracker

SIZES = {"web": 120, "human": 12, "test": 40}
SKILLS = {"unfiltered": 0.15, "human": 0.5, "bootstrapped": 0.52}
SCRIPT = ' <script>alert("caption")</script> & co'


class Experiment:
    """Writes a finished experiment under a root; `suffix` ends its synthetic texts."""

    def __init__(self, root: Path, sizes: dict[str, int] = SIZES, suffix: str = "") -> None:
        self.root, self.suffix = root, suffix
        overrides: dict[str, Any] = {f"world.{name}": count for name, count in sizes.items()}
        overrides |= {
            "evaluate.bootstrap_samples": 100,
            "evaluate.truth": str(root / "data/truth.jsonl"),
        }
        self.config: Config = load_config(PRESETS / "demo.yaml", overrides)
        self.random = np.random.default_rng(5)
        self.outputs: dict[str, str] = {}
        self.clock = 1_700_000_000.0

    def write(self) -> "Experiment":
        """Write the whole experiment."""
        (self.root / "data").mkdir(parents=True)
        assert self.config.world is not None
        draw_world(self.config.world, self.root / "data")
        for name in SIZES:
            self.write_source(name)
        for arm in ("unfiltered", "human"):
            self.write_arm(arm)
        for name, task in (("captioner", "captioning"), ("filter", "retrieval")):
            self.write_model(name, "finetune", {"model": ["models/unfiltered"]}, {"task": task})
        self.write_bootstrapped()
        self.write_arm("bootstrapped")
        for baseline in ("unfiltered", "human"):
            out = self.root / "results/comparison" / baseline
            out.mkdir(parents=True)
            results = self.root / "results"
            compare(self.config, results / baseline, results / "bootstrapped", out, NullTracker())
            self.finish(f"results/comparison/{baseline}", "compare", {}, 1.0)
        out = self.root / "results/filter"
        out.mkdir(parents=True)
        evaluate_filter(self.config, self.root / "datasets/bootstrapped", out, NullTracker())
        self.finish("results/filter", "evaluate", {}, 2.0)
        return self

    def finish(
        self, path: str, verb: str, inputs: dict[str, list[str]], seconds: float, **speeds: float
    ) -> None:
        """Write a stage's record and its journal."""
        key = digest_json([path, verb])
        digests = {role: [self.outputs[name] for name in names] for role, names in inputs.items()}
        self.outputs[path] = digest_json([path])
        record = {
            "stage": verb,
            "key": key,
            "inputs": digests,
            "config": {},
            "output": self.outputs[path],
        }
        write_json(self.root / path / RECORD, record)
        events = [
            {"event": "start", "time": self.clock, "stage": verb},
            {"event": "metrics", "time": self.clock + 1, "step": 1, "values": speeds},
            {"event": "end", "time": self.clock + seconds, "status": "FINISHED"},
        ]
        lines = "".join(json.dumps(event) + "\n" for event in events)
        write_text(self.root / "runs" / f"{verb}-{key[:16]}" / "journal.jsonl", lines)
        self.clock += seconds

    def write_source(self, name: str) -> None:
        """Write a dataset version of what the world has drawn."""
        folder, raw = self.root / "datasets" / name, self.root / "data" / f"{name}.tar"
        places = index_tar(raw)
        pairs = read_json(raw.with_suffix(".json"))
        images = {
            n: raw.read_bytes()[offset : offset + size] for n, (offset, size) in places.items()
        }
        keys = {n: digest_json(data.hex()) for n, data in images.items()}
        (folder / "images").mkdir(parents=True)
        with TarWriter(folder / "images/0.tar") as tar:
            rows = [
                {
                    "key": keys[n], "source": n, "width": 64, "height": 64, "extension": "png",
                    "offset": tar.add(f"{keys[n]}.png", data), "size": len(data),
                }
                for n, data in images.items()
            ]  # fmt: skip
        origin = "web" if name == "web" else "human"
        texts = [(pair["image"], t) for pair in pairs for t in _as_list(pair["caption"])]
        captions = [caption_row(keys[n], origin, text) for n, text in texts]
        self.write_version(
            name, pa.Table.from_pylist(rows, RECORDS), captions, folder / "images/0.tar"
        )
        self.finish(f"datasets/{name}", "ingest", {}, 3.0, **{"perf/images_per_second": 812.0})

    def write_version(
        self, name: str, records: pa.Table, captions: list[dict[str, Any]], images: Path
    ) -> None:
        """Write the tables and the manifest of a version with one shard."""
        folder = self.root / "datasets" / name
        tables = folder / "records/0.parquet", folder / "captions/0.parquet"
        shard = Shard(
            images=images,
            records=tables[0],
            captions=tables[1],
            images_digest=digest_file(images),
            records_digest=write_table(tables[0], records),
            captions_digest=write_table(tables[1], pa.Table.from_pylist(captions, CAPTIONS)),
            num_images=len(records),
            num_captions=len(captions),
        )
        write_manifest(folder, [shard], {"name": name}, {"images": len(records)})

    def write_bootstrapped(self) -> None:
        """Write web and synthetic texts with verdicts: mostly right ones."""
        truths = [
            t for t in read_truth(self.root / "data/truth.jsonl") if t.source.startswith("web")
        ]
        records = pa.parquet.read_table(self.root / "datasets/web/records/0.parquet")
        keys = dict(zip(records["source"].to_pylist(), records["key"].to_pylist(), strict=True))
        rows = []
        for i, truth in enumerate(truths):
            assert truth.scene is not None
            text = self._synthetic(truths, i) + self.suffix
            for origin, words in (("web", truth.text), ("synthetic", text)):
                true = truth.kind == "clean" if origin == "web" else describes(truth.scene, words)
                rows.append(
                    self._judged(keys[truth.source], origin, words, self._score(true, truth.kind))
                )
        self.write_version("bootstrapped", records, rows, self.root / "datasets/web/images/0.tar")
        self.finish("datasets/bootstrapped", "select", {"data": ["datasets/web"]}, 0.5)

    def _synthetic(self, truths: list[Truth], i: int) -> str:
        scene = truths[i].scene
        assert scene is not None
        true = [t.text for t in truths if t.kind == "clean" and describes(scene, t.text)]
        return (
            true[0]
            if true and self.random.random() < 0.4
            else truths[(i * 7 + 1) % len(truths)].text
        )

    def _score(self, true: bool, kind: str) -> float:
        centre = 1.2 if true else -0.4 if kind in ("count", "relation", "shape") else -3.0
        return float(1 / (1 + math.exp(-self.random.normal(centre, 1.6))))

    def _judged(self, key: str, origin: str, text: str, score: float) -> dict[str, Any]:
        kept = score > self.config.capfilt.threshold
        row = caption_row(key, origin, text)
        if origin == "synthetic":
            row["generator"] = self.outputs["models/captioner"]
            row["decoding"] = json.dumps({"method": "nucleus", "top_p": 0.9})
        reason = f"match probability {'above' if kept else 'not above'} 0.5"
        return {
            **row,
            "filter": self.outputs["models/filter"],
            "itm_score": score,
            "itc_score": 0.3,
            "kept": kept,
            "reason": reason,
        }

    def write_model(
        self, name: str, verb: str, inputs: dict[str, list[str]], metrics: dict[str, Any]
    ) -> None:
        """Write a model's folder with weights that are only a header."""
        folder = self.root / "models" / name
        folder.mkdir(parents=True)
        save_file({"w": np.zeros((96, 80), np.float32)}, folder / "model.safetensors")
        write_json(folder / "metrics.json", metrics)
        self.finish(
            f"models/{name}",
            verb,
            inputs,
            71.0 if verb == "pretrain" else 18.0,
            **{"perf/images_per_second": 380.0},
        )

    def write_arm(self, name: str) -> None:
        """Write an arm's pre-trained model with its curves, and its results."""
        corpus = {
            "unfiltered": ["datasets/web"],
            "human": [],
            "bootstrapped": ["datasets/bootstrapped"],
        }[name]
        inputs = {"data": [*corpus, "datasets/human"]}
        self.write_model(name, "pretrain", inputs, {})
        write_text(self.root / "models" / name / "curves.csv", self._curves(SKILLS[name]))
        keys = [f"{i:03}" for i in range(SIZES["test"])]
        ranks = (np.random.default_rng(0).geometric(SKILLS[name], (len(keys), 3)) - 1).tolist()
        rows = [
            {"key": k, "tr_rank": min(r), "ir_ranks": r} for k, r in zip(keys, ranks, strict=True)
        ]
        tables = {"retrieval": (retrieval, pa.Table.from_pylist(rows, retrieval.PER_IMAGE))}
        texts = read_json(self.root / "data/test.json")[: len(keys)]
        references = {k: _as_list(t["caption"]) for k, t in zip(keys, texts, strict=True)}
        right = np.random.default_rng(1).random(len(keys)) < SKILLS[name]
        captions = {
            k: references[k if r else keys[0]][-1] for k, r in zip(keys, right, strict=True)
        }
        tables["captioning"] = (captioning, captioning.score_captions(captions, references))
        for task, (module, table) in tables.items():
            folder = self.root / "results" / name / task
            write_table(folder / "per_example.parquet", table)
            found = intervals(module.statistics(table), len(keys), 100, 0.95, 0)
            write_json(folder / "metrics.json", {task: {n: plain(i) for n, i in found.items()}})
            self.finish(f"results/{name}/{task}", "evaluate", {"model": [f"models/{name}"]}, 4.0)

    def _curves(self, skill: float) -> str:
        lines = ["step,loss,loss_itc,loss_itm,loss_lm,itm_accuracy,temperature,lr"]
        for step in range(10, 601, 10):
            progress = 1 - math.exp(-step * skill / 120)
            noise = self.random.normal(0, 0.05, 4)
            itc, itm, lm = 5.5 - 3.5 * progress, 0.64 - 0.3 * progress * skill, 4.5 - 2.5 * progress
            values = [
                itc + itm + lm,
                itc + noise[0],
                itm + noise[1] / 3,
                lm + noise[2],
                0.66 + 0.2 * progress * skill + noise[3] / 3,
            ]
            lines.append(",".join([str(step), *(f"{v:.4f}" for v in values), "0.07", "0.001"]))
        return "\n".join(lines) + "\n"


def caption_row(key: str, origin: str, text: str) -> dict[str, Any]:
    """Give the row of a text that nobody has judged."""
    return {"caption_id": caption_id(key, origin, text), "key": key, "text": text, "origin": origin}


def _as_list(caption: Any) -> list[str]:
    return caption if isinstance(caption, list) else [caption]


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The whole experiment, whose synthetic texts end in a script."""
    return Experiment(tmp_path_factory.mktemp("experiment") / "root", suffix=SCRIPT).write()


@pytest.fixture(scope="session")
def config(experiment: Experiment) -> Config:
    """Its configuration."""
    return experiment.config


@pytest.fixture(scope="session")
def finished(experiment: Experiment) -> Path:
    """Its root, to be read only."""
    return experiment.root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of its root, to be changed."""
    return shutil.copytree(finished, tmp_path / "root")
