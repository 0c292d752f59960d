"""MSRVTT: a model against every pair by itself, matrices of others, and files that break a rule."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from blip.benchmarks import video_retrieval
from blip.benchmarks.video_retrieval import (
    NUM_FRAMES,
    Clip,
    evaluate_video_retrieval,
    read_clips,
    score_video_retrieval,
)
from blip.data.transforms import normalise
from blip.data.video import read_frames
from blip.errors import DataError
from blip.evaluate.network import open_network
from blip.files import read_json
from blip.metrics.ranking import ranks
from blip.tracker import NullTracker
from tests.data.videos import make_video
from tests.metrics.official_recalls import median_rank, summary

CAPTIONS = ["A dog.", "two cats, on the table!", "no man is left", "red bird", "how many boats"]


def write_files(folder: Path) -> Path:
    """Write five videos, of 20 frames and less, and their texts."""
    (folder / "videos").mkdir()
    rows = []
    for number, caption in enumerate(CAPTIONS):
        greys = [(40 * number + 11 * frame) % 256 for frame in range(20 - 3 * number)]
        make_video(folder / f"videos/video{number}.mp4", greys)
        rows.append(json.dumps({"clip_name": f"video{number}", "caption": caption}))
    (folder / "test.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_files(tmp_path)


def official(v2t: np.ndarray, t2v: np.ndarray) -> dict[str, float]:
    """The reference's figures by our names."""
    order = np.arange(len(v2t))
    found = summary(ranks(v2t, order), ranks(t2v, order), "vid")
    found |= {"vid_median_rank": median_rank(ranks(t2v, order))}
    return {_ours(name): value for name, value in found.items()}


def _ours(name: str) -> str:
    """Our name of an official figure."""
    return name.replace("r_mean", "mean").replace("txt_", "tr_").replace("vid_", "vr_")


def values(out: Path) -> dict[str, float]:
    found = read_json(out / "metrics.json")["video_retrieval"]
    values = {name: one["value"] for name, one in found.items() if isinstance(one, dict)}
    return {"mean": values.pop("r_mean"), **values}


@torch.inference_mode()
def every_pair(model: Path, folder: Path, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Score every pair alone, then keep the candidates."""
    network, tokenizer, _ = open_network(model, "matching", 1)
    pairs = [tokenizer.encode([text.lower().strip(".!")], 35) for text in CAPTIONS]
    cosine, match = np.empty((5, 5)), np.empty((5, 5))
    for video in range(5):
        frames = read_frames(folder / f"videos/video{video}.mp4", NUM_FRAMES, network.image_size)
        tokens = [network.encode_image(normalise(frame[None])) for frame in frames]
        projected = torch.stack([network.image_projection(frame[0, 0]) for frame in tokens])
        embed = torch.nn.functional.normalize(projected.mean(dim=0), dim=0)
        memory = network.project_images(torch.cat(tokens, dim=1))
        for text, pair in enumerate(pairs):
            cosine[video, text] = float(network.embed_text(network.encode_text(*pair))[0] @ embed)
            match[video, text] = float(network.match(*pair, memory)[0, 1])

    def matrix(cosine: np.ndarray, total: np.ndarray) -> np.ndarray:
        kept = np.argsort(-cosine, axis=1)[:, :k]
        scores = np.full(total.shape, -100.0)
        np.put_along_axis(scores, kept, np.take_along_axis(total, kept, 1), 1)
        return scores

    return matrix(cosine, cosine + match), matrix(cosine.T, cosine.T + match.T)


@pytest.mark.parametrize("k", [3, 128])
def test_a_model_is_measured_as_pair_by_pair(
    config, random_model, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    monkeypatch.setattr(video_retrieval, "CANDIDATES", k)
    model, out = random_model("retrieval"), tmp_path / "out"
    arguments = files / "test.jsonl", files / "videos", out, NullTracker()
    evaluate_video_retrieval(config, model, *arguments)
    matrices = every_pair(model, files, k)
    assert values(out) == pytest.approx(official(*matrices))
    table = pq.read_table(out / "per_example.parquet")
    assert table["clip_name"].to_pylist() == [f"video{number}" for number in range(5)]
    order = np.arange(5)
    assert table["tr_rank"].to_pylist() == ranks(matrices[0], order).tolist()
    assert table["vr_rank"].to_pylist() == ranks(matrices[1], order).tolist()


def test_matrices_of_others_are_scored(config, files: Path, tmp_path: Path) -> None:
    scores = np.random.default_rng(0).integers(0, 9, (2, 5, 5)).astype(float)
    np.savez(tmp_path / "scores.npz", v2t=scores[0], t2v=scores[1])
    arguments = tmp_path / "scores.npz", files / "test.jsonl", tmp_path / "out", NullTracker()
    score_video_retrieval(config, *arguments)
    assert values(tmp_path / "out") == pytest.approx(official(*scores))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"v2t": np.zeros((5, 5))}, "holds no matrices"),
        ({"v2t": np.zeros((5, 5)), "t2v": np.zeros((5, 4))}, r"t2v is \(5, 4\), .* be \(5, 5\)"),
        ({"v2t": np.zeros((5, 5)), "t2v": np.full((5, 5), np.nan)}, "row 0: .* not a number"),
    ],
)
def test_bad_matrices(config, files: Path, tmp_path: Path, arrays, message: str) -> None:
    np.savez(tmp_path / "scores.npz", **arrays)
    arguments = tmp_path / "scores.npz", files / "test.jsonl", tmp_path / "out", NullTracker()
    with pytest.raises(DataError, match=rf"scores\.npz: .*{message}"):
        score_video_retrieval(config, *arguments)


def test_a_damaged_video_ends_the_evaluation(config, random_model, files: Path, tmp_path) -> None:
    video = files / "videos/video3.mp4"
    video.write_bytes(video.read_bytes()[:-200])
    arguments = files / "test.jsonl", files / "videos", tmp_path / "out", NullTracker()
    with pytest.raises(DataError, match=r"video3\.mp4: cannot be decoded"):
        evaluate_video_retrieval(config, random_model("retrieval"), *arguments)
    video.unlink()
    with pytest.raises(DataError, match="holds no video of the name video3"):
        evaluate_video_retrieval(config, random_model("retrieval"), *arguments)


def test_the_official_files(shared: Path) -> None:
    folder = shared / "data/video"
    clips = read_clips(folder / "msrvtt_test_blip_form.jsonl")
    assert clips[1] == Clip("video9771", "a little girl does gymnastics")
    assert len(clips) == 1000
    assert read_clips(folder / "MSRVTT_JSFUSION_test.csv") == clips


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"clip_name": "a", "caption": "x"}\n{"clip_name": "a", "caption": "y"}', "a stands more"),
        ('{"clip_name": "../a", "caption": "x"}', "line 1: clip_name is '../a'"),
        ('{"clip_name": "a", "caption": " "}', "line 1: caption is ' '"),
        ('{"clip_name": "a"}', "line 1: caption is None"),
        ("{", "line 1: is not JSON"),
        ("", "holds no clip"),
    ],
)
def test_a_file_that_breaks_a_rule(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "test.jsonl").write_text(line)
    with pytest.raises(DataError, match=rf"test\.jsonl.*{message}"):
        read_clips(tmp_path / "test.jsonl")
