"""VisDial: the reader, a model against one candidate at a time, and what a server is handed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from blip.benchmarks.visdial import (
    PER_DIALOG,
    candidate_texts,
    evaluate_visdial,
    score_answers,
    score_visdial,
)
from blip.config import load_config
from blip.data.dialogs import OPTIONS, Round, open_dialogs
from blip.data.tasks import read_photo
from blip.data.text import Tokenizer, clean_caption
from blip.data.transforms import evaluation_resize, normalise
from blip.errors import CheckpointError, DataError
from blip.evaluate.network import open_network
from blip.files import read_json
from blip.metrics.visdial import to_ranks
from blip.models.blip import Blip
from blip.models.checkpoint import read_checkpoint, save_model
from blip.tracker import NullTracker

NOUNS = ["dog", "cat", "man", "woman", "bird", "boat", "water", "table", "red", "blue", "green"]
ANSWERS = [f"{a} {b}" if a != b else a for a in NOUNS for b in NOUNS]
QUESTIONS = ["what color is the dog", "How many cats are there?", "is the boat on the water"]


def dialogs(rounds: int = 3, test: bool = False) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    rows = []
    for image_id in (5, 9, 7, 11):
        options = [rng.permutation(len(ANSWERS))[:OPTIONS].tolist() for _ in range(rounds)]
        rights = rng.integers(OPTIONS, size=rounds).tolist()
        told = [
            {
                "question": number % len(QUESTIONS),
                "answer": options[number][rights[number]],
                "answer_options": options[number],
                "gt_index": rights[number],
            }
            for number in range(rounds)
        ]
        if test:
            told = [{k: row[k] for k in ("question", "answer")} for row in told[:-1]] + [
                {k: told[-1][k] for k in ("question", "answer_options")}
            ]
        caption = "a red boat" if image_id == 9 else "A man and a woman, on a table."
        rows.append({"image_id": image_id, "caption": caption, "dialog": told})
    content = {"dialogs": rows, "questions": list(QUESTIONS), "answers": list(ANSWERS)}
    return {"version": "1.0", "split": "test2018" if test else "val2018", "data": content}


def dense() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    relevance = rng.choice([0.0, 0.0, 0.2, 1.0], size=(2, OPTIONS)).tolist()
    return [
        {"image_id": 9, "round_id": 2, "gt_relevance": relevance[0]},
        {"image_id": 5, "round_id": 3, "gt_relevance": relevance[1]},
    ]


def write_files(folder: Path, draw_photos: Callable[..., None]) -> Path:
    (folder / "val.json").write_text(json.dumps(dialogs()))
    (folder / "test.json").write_text(json.dumps(dialogs(test=True)))
    (folder / "dense.json").write_text(json.dumps(dense()))
    for split in ("val2018", "test2018"):
        subset = f"VisualDialog_{split}"
        names = [f"{subset}/{subset}_{image_id:012d}.jpg" for image_id in (5, 7, 9, 11)]
        draw_photos(folder, names)
    return folder


@pytest.fixture
def files(tmp_path: Path, draw_photos: Callable[..., None]) -> Path:
    return write_files(tmp_path, draw_photos)


@torch.inference_mode()
def score_alone(network, photo: Path, caption: str, text: str) -> float:
    """Score one candidate of one dialog by itself, as BLIP.md 5.5 says."""
    model, tokenizer, _ = network
    image = normalise(evaluation_resize(read_photo(photo), model.image_size)[None])
    ids, mask = tokenizer.encode([clean_caption(caption, 99)], 99)
    both = torch.cat([model.encode_image(image), model.encode_text(ids, mask)], dim=1)
    logits = model.match(*tokenizer.encode([text], 99), model.project_images(both))
    return float(logits[0, 1])


def test_scores_are_those_of_each_candidate_alone(files: Path, config, random_model) -> None:
    network = open_network(random_model("matching"), "matching", 1)
    found = open_dialogs(files / "val.json")
    found_scores = score_answers(network, config, found, files)
    assert list(found_scores) == [
        (image_id, number) for image_id in (5, 9, 7, 11) for number in (1, 2, 3)
    ]
    for dialog in found.dialogs[:2]:
        said = ""
        for number, each in enumerate(dialog.rounds, 1):
            asked = f"{said}{each.question.lower().removesuffix('?')}?"
            photo = files / found.photo(dialog)
            scores = [
                score_alone(network, photo, dialog.caption, f"{asked} {option}")
                for option in each.options[::9]
            ]
            ours = found_scores[dialog.image_id, number][::9]
            assert ours == pytest.approx(scores, abs=1e-4)  # measured: 1.4e-5
            assert np.ptp(ours) > 0.1
            said = f"{asked} {each.answer} "


def test_a_model_is_scored_as_its_submission_is(files: Path, config, random_model, keeper) -> None:
    for name in ("model", "again"):
        (files / name).mkdir()
    found = open_dialogs(files / "val.json", files / "dense.json")
    evaluate_visdial(config, random_model("pretrain"), found, files, files / "model", keeper)
    assert "submission.json" in keeper.artifacts
    rows = read_json(files / "model/submission.json")
    assert [set(row) for row in rows] == [{"image_id", "round_id", "ranks"}] * 12
    assert all(sorted(row["ranks"]) == list(range(1, 101)) for row in rows)
    score_visdial(config, files / "model/submission.json", found, files / "again", NullTracker())
    for name in ("metrics.json", "per_example.parquet"):
        assert (files / "model" / name).read_bytes() == (files / "again" / name).read_bytes()
    metrics = read_json(files / "model/metrics.json")["visdial"]
    counts = {name: value for name, value in metrics.items() if not isinstance(value, dict)}
    assert counts == {
        "dialogs": 4, "rounds": 12, "rounds_with_answer": 12, "rounds_with_relevance": 2,
    }  # fmt: skip
    right = [row["ranks"][found.dialogs[i // 3].rounds[i % 3].right] for i, row in enumerate(rows)]
    assert metrics["mean_rank"]["value"] == pytest.approx(np.mean(right))
    assert metrics["mrr"]["value"] == pytest.approx(100 * np.mean(1 / np.array(right)))
    assert metrics["r10"]["value"] == pytest.approx(100 * np.mean(np.array(right) <= 10))
    assert 0 < metrics["ndcg"]["value"] < 100
    assert pq.read_table(files / "model/per_example.parquet").schema.equals(PER_DIALOG)


def test_the_best_ranks_score_best(files: Path, config) -> None:
    found = open_dialogs(files / "val.json", files / "dense.json")
    rows = []
    for dialog in found.dialogs:
        for number, each in enumerate(dialog.rounds, 1):
            relevance = np.array(found.relevance.get((dialog.image_id, number), [0.0] * OPTIONS))
            if not relevance.any():
                relevance[each.right] = 1.0
            row = {"image_id": dialog.image_id, "round_id": number}
            rows.append(row | {"ranks": to_ranks(relevance).tolist()})
    (files / "ranks.json").write_text(json.dumps(rows[::-1]))
    (files / "out").mkdir()
    score_visdial(config, files / "ranks.json", found, files / "out", NullTracker())
    metrics = read_json(files / "out/metrics.json")["visdial"]
    assert metrics["ndcg"]["value"] == pytest.approx(100)
    assert metrics["r1"]["value"] >= 100 * 10 / 12


def test_a_test_ranks_its_last_rounds_and_has_no_score(
    files: Path, config, random_model, caplog
) -> None:
    (files / "out").mkdir()
    found = open_dialogs(files / "test.json")
    evaluate_visdial(config, random_model("matching"), found, files, files / "out", NullTracker())
    rows = read_json(files / "out/submission.json")
    assert [(row["image_id"], row["round_id"]) for row in rows] == [(5, 3), (9, 3), (7, 3), (11, 3)]
    metrics = read_json(files / "out/metrics.json")["visdial"]
    assert metrics["rounds"] == 4
    assert "mrr" not in metrics
    assert "tells no right answers: there are ranks and no score" in caplog.text


ROUNDS = [
    Round("what color is the dog", "a red dog", (), None),
    Round("how many cats?", "two", (), None),
    Round("is it a boat", "", ("yes", "no, it is a bird"), None),
]


def decode(tokenizer: Tokenizer, max_tokens: int) -> list[str]:
    texts = candidate_texts(tokenizer, ROUNDS, max_tokens)
    assert int(texts.mask.sum(dim=1).max()) <= max_tokens
    assert (texts.token_ids[:, 0] == tokenizer.special.cls).all()
    assert ((texts.token_ids == tokenizer.special.sep).sum(dim=1) == 1).all()
    return [tokenizer.decode(ids) for ids in texts.token_ids.tolist()]


def test_a_text_is_the_dialog_until_then_and_loses_its_oldest_rounds(random_model) -> None:
    tokenizer = Tokenizer(random_model("matching") / "vocab.txt")
    whole = "what color is the dog? a red dog how many cats? two is it a boat? "
    ids, mask = tokenizer.encode([f"{whole}yes", f"{whole}no, it is a bird"], 99)
    longest = ids.shape[1]
    texts = candidate_texts(tokenizer, ROUNDS, longest)
    assert torch.equal(texts.token_ids, ids)
    assert torch.equal(texts.mask, mask)
    shorter = "how many cats? two is it a boat? "
    assert decode(tokenizer, longest - 1) == [f"{shorter}yes", f"{shorter}no, it is a bird"]
    question = "is it a boat? "
    length = tokenizer.encode([f"{question}no, it is a bird"], 99)[0].shape[1]
    assert decode(tokenizer, length) == [f"{question}yes", f"{question}no, it is a bird"]
    assert decode(tokenizer, length - 1) == ["is it a boat yes", "is it a boat no, it is a bird"]
    decode(tokenizer, 4)


def test_image_and_text_tokens_must_be_equally_wide(files: Path, config, random_model) -> None:
    read = read_checkpoint(random_model("matching"), None)
    wide = load_config(Path("params.yaml"), {"model.vision.width": 48}).model
    out = files / "narrow"
    out.mkdir()
    vocabulary = Tokenizer(read.vocabulary)
    model = Blip(wide, 64, vocabulary.vocab_size, vocabulary.special, "matching")
    (out / "vocab.txt").write_bytes(Path(read.vocabulary).read_bytes())
    save_model(model, out)
    with pytest.raises(CheckpointError, match="image tokens are 48 wide and text tokens 96"):
        evaluate_visdial(config, out, open_dialogs(files / "val.json"), files, files, NullTracker())


def test_scores_that_are_no_numbers(files: Path, config, random_model) -> None:
    network = open_network(random_model("matching"), "matching", 1)
    network.model.match_head.bias.data[1] = float("nan")
    with pytest.raises(CheckpointError, match="scores of image 5, round 1, are not numbers"):
        score_answers(network, config, open_dialogs(files / "val.json"), files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, r: d["data"].pop("answers"), "data: answers is None"),
        (lambda d, r: d["data"]["questions"].append(4), "questions, record 4: is 4, it must be str"),
        (lambda d, r: d["data"].update(dialogs=[]), "holds no dialog"),
        (lambda d, r: d["data"]["dialogs"][1].update(image_id=5), "5 stands more than once"),
        (lambda d, r: d["data"]["dialogs"][1].update(dialog=[]), "record 2: dialog is empty"),
        (lambda d, r: last(d).update(question=3), "round 3: question has 3, it must be a place"),
        (lambda d, r: last(d).update(gt_index=100), "round 3: gt_index is 100"),
        (lambda d, r: last(d)["answer_options"].pop(), "answer_options are 99, it must be 100"),
        (lambda d, r: last(d).pop("answer_options"), "round 3: answer_options is None"),
        (lambda d, r: d["data"]["questions"].__setitem__(0, "?!"[1:]), "question is '!', it must say"),
        (lambda d, r: r[0].update(round_id=4), "image 9, round 4 stands twice or is no round of"),
        (lambda d, r: r.append(r[0]), "record 3: image 9, round 2 stands twice"),
        (lambda d, r: r[0]["gt_relevance"].pop(), "gt_relevance is .*, it must be 100 shares"),
        (lambda d, r: r[0].update(gt_relevance=[0.0] * 100), "one above 0 at least"),
        (lambda d, r: r[0]["gt_relevance"].__setitem__(0, float("nan")), "shares from 0 to 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    files: Path, change: Callable[[Any, Any], Any], message: str
) -> None:
    document, relevance = dialogs(), dense()
    change(document, relevance)
    (files / "val.json").write_text(json.dumps(document))
    (files / "dense.json").write_text(json.dumps(relevance))
    with pytest.raises(DataError, match=message):
        open_dialogs(files / "val.json", files / "dense.json")


def last(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["data"]["dialogs"][2]["dialog"][2]
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(), r"\(11, 3\) has no prediction"),
        (lambda rows: rows.append(rows[0]), r"\(5, 1\) stands more than once"),
        (lambda rows: rows[3].update(image_id=4), r"\(4, 1\) is not in .*val\.json"),
        (lambda rows: rows[3]["ranks"].__setitem__(0, 2), "record 4: ranks are 100 numbers"),
        (lambda rows: rows[3]["ranks"].__setitem__(0, 1.0), "record 4: ranks are .* must be int"),
    ],
)
def test_wrong_ranks_are_named(
    files: Path, config, change: Callable[[Any], Any], message: str
) -> None:
    rows = [
        {"image_id": image_id, "round_id": number, "ranks": list(range(1, 101))}
        for image_id in (5, 9, 7, 11)
        for number in (1, 2, 3)
    ]
    change(rows)
    (files / "ranks.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=message):
        score_visdial(
            config, files / "ranks.json", open_dialogs(files / "val.json"), files, NullTracker()
        )
