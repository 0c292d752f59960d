"""A model is measured by each command, as a person types it."""

import base64
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from blip.cli import app
from blip.files import read_json, write_json, write_text
from blip.models.blip import Parts
from tests.cli.conftest import Project
from tests.data.videos import make_video

Draw = Callable[[Path, Iterable[str]], None]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw_photos: Draw) -> Path:
    """Make a project with photos, videos and the files of every benchmark, and work in it."""
    Project(tmp_path, {"evaluate.bootstrap_samples": 10, "evaluate.k": 2})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLIP_TRACKING", "off")
    draw_photos(tmp_path / "photos", ["a.png", "b.png"])
    (tmp_path / "videos").mkdir()
    for name, first in (("video1", 0), ("video2", 90)):
        make_video(tmp_path / f"videos/{name}.mp4", range(first, first + 60, 5))
    rows = [{"image": f"{name}.png", "caption": ["a dog", "two cats"]} for name in "ab"]
    write_json(Path("retrieval.json"), rows)
    clips = [f'{{"clip_name": "video{n}", "caption": "a dog"}}\n' for n in (1, 2)]
    write_text(Path("clips.jsonl"), "".join(clips))
    asked = [{"id": n, "video_id": n, "question": "what is it", "answer": "dog"} for n in (1, 2)]
    write_json(Path("qa.json"), asked)
    attribute = {"id": 0, "name": "color:red", "is_has_att": "has", "freq_set": "head"}
    box = {"id": 1, "image_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "att_vec": [1]}
    images = [{"id": 1, "file_name": "a.png"}]
    write_json(
        Path("ovad.json"), {"attributes": [attribute], "images": images, "annotations": [box]}
    )
    ads = [[name, "2", "a dog", *"tdusb", label, "c"] for name, label in (("a", "0"), ("b", "1"))]
    write_text(Path("ads.tsv"), "\n".join("\t".join(row) for row in ads))
    encoded = {name: base64.b64encode(Path(f"photos/{name}.png").read_bytes()) for name in "ab"}
    write_text(
        Path("images.tsv"), "".join(f"{name}\t{code.decode()}\n" for name, code in encoded.items())
    )
    pair = {"filename": "a.png", "caption": "a dog", "negative_caption": "two cats"}
    write_json(Path("swap_obj.json"), {"0": pair})
    texts = enumerate(("a dog", "two cats", "red boat"), 1)
    judged = [["a.png", f"b.png#{n}", caption, *str(n) * 3] for n, caption in texts]
    header = ["image", "caption_id", "caption", "expert1", "expert2", "expert3"]
    write_text(Path("expert.tsv"), "\n".join("\t".join(row) for row in [header, *judged]))
    return tmp_path


@pytest.mark.parametrize(
    ("line", "parts", "metric"),
    [
        ("retrieval --data retrieval.json --photos photos", "retrieval", "retrieval/tr_r1"),
        (
            "video-retrieval --data clips.jsonl --videos videos",
            "retrieval",
            "video_retrieval/vr_r1",
        ),
        ("video-qa --data qa.json --videos videos", "vqa", "video_qa/accuracy"),
        ("video-qa --data qa.json --videos videos --answers qa.json", "vqa", "video_qa/accuracy"),
        ("ovad --data ovad.json --photos photos", "matching", "ovad/map_all"),
        ("ads --data ads.tsv --photos images.tsv", "matching", "ads/itm_roc_auc"),
        ("sugarcrepe --data swap_obj.json --photos photos", "matching", "sugarcrepe/itc_swap_obj"),
        (
            "judgments --data expert.tsv --judges expert --photos photos",
            "matching",
            "judgments_expert/itm_tau_c",
        ),
    ],
)
def test_a_model_is_measured(
    project: Path, random_model: Callable[[Parts], Path], line: str, parts: Parts, metric: str
) -> None:
    command = f"evaluate {line} --checkpoint {random_model(parts)} --out results"
    done = CliRunner().invoke(app, command.split())
    assert done.exception is None, done.exception
    task, name = metric.split("/")
    assert 0 <= abs(read_json(project / "results/metrics.json")[task][name]["value"]) <= 100
    assert (project / "results/per_example.parquet").exists()
