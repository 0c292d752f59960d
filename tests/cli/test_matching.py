"""The evaluations of matching and of videos as a person types them."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from blip.cli import app
from blip.errors import BlipError
from blip.files import read_json, write_json, write_text
from tests.cli.conftest import Project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Project(tmp_path, {"evaluate.bootstrap_samples": 10})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLIP_TRACKING", "off")
    return tmp_path


def evaluate(line: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", *line.split()])


def write_inputs(task: str) -> str:
    """Write predictions and what they are scored against; give the rest of the command."""
    match task:
        case "retrieval":
            write_json(Path("data.json"), [{"image": "a.jpg", "caption": ["x", "y"]}])
            np.savez("predictions.npz", i2t=np.zeros((1, 2)), t2i=np.zeros((2, 1)))
            return "--data data.json --predictions predictions.npz"
        case "video-retrieval":
            write_text(Path("data.jsonl"), '{"clip_name": "a", "caption": "x"}\n')
            np.savez("predictions.npz", v2t=np.zeros((1, 1)), t2v=np.zeros((1, 1)))
            return "--data data.jsonl --predictions predictions.npz"
        case "video-qa":
            row = {"id": 1, "video_id": 2, "question": "what is it", "answer": "dog"}
            write_json(Path("data.json"), [row])
            write_json(Path("predictions.json"), [{"question_id": 1, "answer": "dog"}])
        case "ovad":
            attribute = {"id": 0, "name": "a:b", "is_has_att": "is", "freq_set": "head"}
            box = {"id": 1, "image_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "att_vec": [1]}
            images = [{"id": 1, "file_name": "a.jpg"}]
            document = {"attributes": [attribute], "images": images, "annotations": [box]}
            write_json(Path("data.json"), document)
            write_json(Path("predictions.json"), [{"id": 1, "scores": [0.5]}])
        case "ads":
            rows = [["1", "2", "q", "t", "d", "u", "s", "b", label, "c"] for label in "01"]
            write_text(Path("data.json"), "\n".join("\t".join(row) for row in rows))
            scores = [{"row": row, "score": row} for row in (1, 2)]
            write_json(Path("predictions.json"), scores)
        case "sugarcrepe":
            pair = {"filename": "a.jpg", "caption": "a", "negative_caption": "b"}
            write_json(Path("data.json"), {"0": pair})
            score = {"category": "data", "id": "0", "positive": 1, "negative": 0}
            write_json(Path("predictions.json"), [score])
        case "judgments":
            rows = [["a.jpg", f"b.jpg#{n}", str(n), str(n), str(n)] for n in (1, 2, 3)]
            write_text(Path("data.json"), "\n".join("\t".join(row) for row in rows))
            captions = "".join(f"b.jpg#{n}\ttext {n}\n" for n in (1, 2, 3))
            write_text(Path("captions.txt"), captions)
            scores = [{"image": row[0], "caption_id": row[1], "score": int(row[2])} for row in rows]
            write_json(Path("predictions.json"), scores)
            return (
                "--data data.json --predictions predictions.json --judges expert "
                "--annotations captions.txt"
            )
    return "--data data.json --predictions predictions.json"


PERFECT = {
    "retrieval": ("retrieval", "tr_r1"),
    "video-retrieval": ("video_retrieval", "vr_r1"),
    "video-qa": ("video_qa", "accuracy"),
    "ovad": ("ovad", "map_all"),
    "ads": ("ads", "predicted_roc_auc"),
    "sugarcrepe": ("sugarcrepe", "predicted_mean"),
    "judgments": ("judgments_expert", "predicted_tau_b"),
}


@pytest.mark.parametrize("task", PERFECT)
def test_predictions_are_scored(project: Path, task: str) -> None:
    line = f"{task} {write_inputs(task)} --out results/{task}"
    assert evaluate(line).exit_code == 0
    name, metric = PERFECT[task]
    assert read_json(project / f"results/{task}/metrics.json")[name][metric]["value"] == 100
    assert (project / f"results/{task}/per_example.parquet").exists()
    before = (project / f"results/{task}/metrics.json").stat().st_mtime_ns
    assert evaluate(line).exit_code == 0  # it is there already
    assert (project / f"results/{task}/metrics.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("task", PERFECT)
def test_a_model_or_predictions(project: Path, task: str) -> None:
    line = f"{task} {write_inputs(task)} --out results"
    both = evaluate(f"{line} --checkpoint models/a")
    assert isinstance(both.exception, BlipError)
    assert "give --checkpoint" in str(both.exception)
    suffix = line.split("--predictions ")[1].split()[0]
    neither = evaluate(line.replace(f"--predictions {suffix}", ""))
    assert "give --checkpoint" in str(neither.exception)
    assert not (project / "results").exists()


def test_a_model_needs_what_it_looks_at(project: Path) -> None:
    line = write_inputs("sugarcrepe").replace("--predictions", "--checkpoint")
    found = evaluate(f"sugarcrepe {line} --out results")
    assert "say where they lie: --photos PLACE" in str(found.exception)
    assert not (project / "results").exists()
