"""The benchmarks of answers by their commands: a model, then its predictions, give the same scores."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip.__main__ import main
from blip.config import PRESETS
from blip.files import read_json
from tests.test_inference import make_model

SETTINGS = ["--params", str(PRESETS / "demo.yaml"), "--set", "evaluate.bootstrap_samples=5"]


@pytest.fixture
def blip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run `blip evaluate TASK` in a folder of its own; give its exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLIP_TRACKING", "off")

    def run(task: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["blip", "evaluate", task, *SETTINGS, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capfd.readouterr().err

    return run


def write(path: str, document: object) -> None:
    Path(path).write_text(json.dumps(document))


def draw(*names: str) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(name)


def check(blip: Callable[..., tuple[int, str]], task: str, predictions: str, *data: str) -> None:
    """Measure a model and its predictions, which must agree; do nothing the second time."""
    code, said = blip(task, "--checkpoint", "model", "--photos", ".", "--out", "one", *data)
    assert code == 0, said
    code, said = blip(task, "--predictions", f"one/{predictions}", "--out", "two", *data)
    assert code == 0, said
    assert read_json(Path("one/metrics.json")) == read_json(Path("two/metrics.json"))
    before = Path("two/metrics.json").stat().st_mtime_ns
    assert blip(task, "--predictions", f"one/{predictions}", "--out", "two", *data)[0] == 0
    assert Path("two/metrics.json").stat().st_mtime_ns == before


def test_vqa(blip: Callable[..., tuple[int, str]]) -> None:
    make_model(Path("model"), "vqa")
    draw("val2014/COCO_val2014_000000000003.jpg")
    rows = [{"question_id": n, "image_id": 3, "question": "what is it?"} for n in (1, 2)]
    write("questions.json", {"data_subtype": "val2014", "questions": rows})
    answers = [{"answer": word, "answer_id": n} for n, word in enumerate(["a", "b", "a"])]
    told = [
        {"question_id": n, "question_type": "what", "answer_type": "other", "answers": answers}
        for n in (1, 2)
    ]
    write("annotations.json", {"annotations": told})
    write("answers.json", ["a", "b", "c"])
    files = ["--data", "questions.json", "--annotations", "annotations.json"]
    check(blip, "vqa", "submission.json", *files)
    one = ["--predictions", "one/submission.json"]
    code, _ = blip("vqa", *one, "--data", "annotations.json", "--out", "three")
    assert code == 0
    assert read_json(Path("two/accuracy.json")) == read_json(Path("three/accuracy.json"))
    model = ["--checkpoint", "model", "--photos", "."]
    code, _ = blip("vqa", *model, "--answers", "answers.json", *files, "--out", "ranked")
    assert code == 0
    assert {row["answer"] for row in read_json(Path("ranked/submission.json"))} <= set("abc")
    code, said = blip("vqa", *one, "--data", "questions.json", "--out", "four")
    assert code == 2
    assert "questions.json: has no 'annotations'" in said


def test_nlvr(blip: Callable[..., tuple[int, str]]) -> None:
    make_model(Path("model"), "nlvr")
    draw("dev/dev-1-0-img0.png", "dev/dev-1-0-img1.png")
    rows = [
        {"identifier": f"dev-1-0-{n}", "sentence": f"{n} dogs", "label": "True"} for n in range(2)
    ]
    Path("dev.json").write_text("\n".join(map(json.dumps, rows)))
    Path("balanced.json").write_text(json.dumps(rows[0]))
    files = ["--data", "dev.json", "--balanced", "balanced.json"]
    check(blip, "nlvr", "predictions.csv", *files)
    assert "accuracy_unbalanced" in read_json(Path("one/metrics.json"))["nlvr"]


def test_visdial(blip: Callable[..., tuple[int, str]]) -> None:
    make_model(Path("model"), "pretrain")
    folder = "VisualDialog_val2018"
    draw(f"{folder}/{folder}_000000000003.jpg")
    told = {"question": 0, "answer": 2, "answer_options": list(range(100)), "gt_index": 2}
    dialog = {"image_id": 3, "caption": "a dog", "dialog": [told]}
    content = {"dialogs": [dialog], "questions": ["why"], "answers": [f"{n}" for n in range(100)]}
    write("val.json", {"split": "val", "data": content})
    relevance = [float(n == 2) for n in range(100)]
    write("dense.json", [{"image_id": 3, "round_id": 1, "gt_relevance": relevance}])
    check(blip, "visdial", "submission.json", "--data", "val.json", "--annotations", "dense.json")
    assert "ndcg" in read_json(Path("one/metrics.json"))["visdial"]


@pytest.mark.parametrize("task", ["vqa", "nlvr", "visdial"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --checkpoint, a model to measure, or --predictions"),
        (["--checkpoint", "m", "--predictions", "p"], "give --checkpoint"),
        (["--checkpoint", "m"], "say where they lie: --photos PLACE"),
    ],
)
def test_what_is_measured_must_be_clear(
    blip: Callable[..., tuple[int, str]], task: str, arguments: list[str], message: str
) -> None:
    code, said = blip(task, "--data", "d.json", "--out", "out", *arguments)
    assert (code, message in said) == (2, True), said
