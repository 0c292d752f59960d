"""Questions about videos: a model against one question at a time, official scores, bad files."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from blip.benchmarks.video_qa import (
    NUM_FRAMES,
    evaluate_video_qa,
    read_answers,
    read_video_questions,
    score_video_qa,
)
from blip.data.text import clean_question
from blip.data.transforms import normalise
from blip.data.video import read_frames
from blip.errors import DataError
from blip.evaluate.network import open_network
from blip.evaluate.vqa import ANSWER, encode_questions, rank_answers
from blip.files import read_json
from blip.metrics.video_qa import TYPES
from blip.models.generation import generate
from blip.models.matching import Texts
from blip.tracker import NullTracker
from tests.data.videos import make_video

QUESTIONS = [
    (0, 2, "what color is the dog?", "red"),
    (1, 1, "how many cats are there", "two"),
    (2, 2, "is there water?", "yes"),
    (3, 2, "what is the bird on?", "table"),
    (4, 1, "who is left?", "man"),
    (5, 2, "how many men are there on the boat?", "two"),
]
ANSWERS = ["red", "two", "yes", "table", "man", "woman", "no", "a left dog"]


def write_files(folder: Path) -> Path:
    (folder / "videos").mkdir()
    make_video(folder / "videos/video1.mp4", range(0, 200, 10))
    make_video(folder / "videos/video2.avi", range(200, 0, -7), "mpeg4")
    names = ("id", "video_id", "question", "answer")
    rows = [dict(zip(names, row, strict=True)) for row in QUESTIONS]
    (folder / "test_qa.json").write_text(json.dumps(rows))
    (folder / "train_qa.json").write_text(json.dumps([{"answer": a} for a in ANSWERS]))
    return folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_files(tmp_path)


@torch.inference_mode()
def one_by_one(model: Path, folder: Path, ranked: bool) -> list[str]:
    network, tokenizer, _ = open_network(model, "vqa", 1)
    found = []
    for _, video, question, _ in QUESTIONS:
        path = folder / f"videos/video{video}.{'mp4' if video == 1 else 'avi'}"
        frames = normalise(read_frames(path, NUM_FRAMES, network.image_size))
        tokens = torch.cat([network.encode_image(frame[None]) for frame in frames], dim=1)
        asked = Texts(*tokenizer.encode([clean_question(question, 50)], 35))
        memory = encode_questions(network, tokens, asked)
        if ranked:
            answers = Texts(*tokenizer.encode(ANSWERS, 512))
            found.append(ANSWERS[int(rank_answers(network, memory, answers, len(ANSWERS)).best)])
        else:
            (ids,) = generate(network, memory, tokenizer.prompt(""), ANSWER)
            found.append(tokenizer.decode(ids))
    return found


@pytest.mark.parametrize("ranked", [False, True])
def test_a_model_answers_as_one_question_at_a_time(
    config, random_model, files: Path, tmp_path: Path, ranked: bool
) -> None:
    model, out = random_model("vqa"), tmp_path / "out"
    answers = files / "train_qa.json" if ranked else None
    given = files / "test_qa.json", None, None, answers, files / "videos"
    evaluate_video_qa(config, model, *given, out, NullTracker())
    expected = one_by_one(model, files, ranked)
    predictions = read_json(out / "predictions.json")
    assert [row["answer"] for row in predictions] == expected
    table = pq.read_table(out / "per_example.parquet")
    right = [a == b for a, (*_, b) in zip(expected, QUESTIONS, strict=True)]
    assert table["right"].to_pylist() == right
    metrics = read_json(out / "metrics.json")["video_qa"]
    assert metrics["accuracy"]["value"] == pytest.approx(100 * sum(right) / len(right))
    (tmp_path / "again").mkdir()
    score_video_qa(
        config, out / "predictions.json", given[0], None, tmp_path / "again", NullTracker()
    )
    assert read_json(tmp_path / "again/metrics.json") == read_json(out / "metrics.json")


def test_activitynet_as_the_official_tool_scores_it(config, shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/video"
    official = json.loads((folder / "activitynetqa_official_scores.json").read_text())
    predictions = folder / "activitynetqa_pred_val_example.json"
    question, answer = (folder / f"activitynetqa_val_{kind}.json" for kind in "qa")
    score_video_qa(config, predictions, question, answer, tmp_path, NullTracker())
    metrics = read_json(tmp_path / "metrics.json")["video_qa"]
    values = {name: one["value"] / 100 for name, one in metrics.items() if isinstance(one, dict)}
    for theirs, value in official["official_script_output"].items():
        ours = theirs.lower().replace(" ", "_").replace("/", "_")
        assert round(values[f"accuracy_{ours}"], 4) == value, theirs
    exact = official["recomputed_by_type_index"]
    for kind, value in exact["per_type"].items():
        assert values[f"accuracy_{TYPES[int(kind)]}"] == pytest.approx(value, abs=1e-12)
    # Measured 1e-16.
    free = exact["free_types_3_to_8"]
    assert values["accuracy_free_questions"] == pytest.approx(free, abs=1e-12)
    assert values["accuracy_all"] == pytest.approx(exact["all"], abs=1e-12)


def test_the_official_files(shared: Path) -> None:
    folder = shared / "data/video"
    mapping = folder / "msvd_youtube_mapping.txt"
    questions = read_video_questions(folder / "msvd_val_qa.json", mapping=mapping)
    assert len(questions) == 6415
    assert questions[0].answer == "someone"
    assert questions[0].video[0].count("_") >= 2
    assert read_video_questions(folder / "msvd_val_qa.json")[0].video == ("video1201", "vid1201")
    answers = read_answers(folder / "msvd_train_qa.json")
    assert len(answers) == len(set(answers)) == 1852


def test_predictions_belong_to_the_questions(config, files: Path, tmp_path: Path) -> None:
    rows = [{"question_id": number, "answer": "two"} for number, *_ in QUESTIONS]
    for wrong, message in (
        (rows[:-1], "5 has no prediction"),
        ([*rows, {"question_id": 77, "answer": "x"}], "77 is not in"),
        ([*rows, rows[0]], "0 stands more than once"),
        ([{"question_id": 0, "answer": 3}], "record 1: answer is 3"),
    ):
        (tmp_path / "predictions.json").write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=message):
            score_video_qa(
                config,
                tmp_path / "predictions.json",
                files / "test_qa.json",
                None,
                tmp_path / "out",
                NullTracker(),
            )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": " .. "}, "question is ' .. ', it must be a question with words"),
        ({"video_id": "1"}, "video_id is '1'"),
        ({"id": 1}, "1 stands more than once"),
        ({"answer": None}, "answer is None"),
    ],
)
def test_a_question_that_breaks_a_rule(files: Path, change: dict[str, object], message) -> None:
    rows = json.loads((files / "test_qa.json").read_text())
    rows[0] |= change
    (files / "test_qa.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=rf"test_qa\.json.*{message}"):
        read_video_questions(files / "test_qa.json")


def test_a_question_of_no_type(tmp_path: Path) -> None:
    question = {"question_id": "v_a_1", "video_name": "a", "question": "what is it"}
    (tmp_path / "q.json").write_text(json.dumps([question]))
    (tmp_path / "a.json").write_text('[{"question_id": "v_a_1", "answer": "x", "type": 9}]')
    with pytest.raises(DataError, match="type is 9, it must be below 9"):
        read_video_questions(tmp_path / "q.json", tmp_path / "a.json")
    (tmp_path / "a.json").write_text('[{"question_id": "v_b_1", "answer": "x", "type": 3}]')
    with pytest.raises(DataError, match="v_a_1 is not in"):
        read_video_questions(tmp_path / "q.json", tmp_path / "a.json")
