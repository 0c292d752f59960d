"""NLVR2: readers, a model against one statement at a time, and real predictions scored."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from blip.benchmarks.nlvr import (
    PER_SENTENCE,
    evaluate_nlvr,
    judge_statements,
    open_statements,
    score_nlvr,
)
from blip.data.tasks import read_photo
from blip.data.text import clean_caption
from blip.data.transforms import evaluation_resize, normalise
from blip.errors import CheckpointError, ConfigError, DataError
from blip.evaluate.network import open_network
from blip.files import read_json
from blip.tracker import NullTracker

SENTENCES = [
    "The left dog is red.",
    "There are two boats on the water, and no woman!",
    "A man.",
    "Both have three cats.",
]
EXAMPLES = [  # set, pair, sentence
    (4, 0, 0), (4, 1, 0), (4, 1, 1), (4, 2, 1), (5, 0, 0), (5, 0, 1), (5, 1, 0), (5, 2, 0), (6, 0, 0),
]  # fmt: skip
CATEGORIES = (
    f"{SENTENCES[0]}\r\n* spatial relation\r\n* presupposition\r\n\r\n"
    f"{SENTENCES[1]}\n* negation\n\nElse\n* negation\n* other\n"
)


def rows() -> list[dict[str, Any]]:
    return [
        {
            "identifier": f"dev-{group}-{pair}-{sentence}",
            "sentence": SENTENCES[(group + sentence) % 4],
            "label": str((group + pair) % 2 == 0),
        }
        for group, pair, sentence in EXAMPLES
    ]


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_files(folder: Path, draw_photos: Callable[..., None]) -> Path:
    write_lines(folder / "dev.json", rows())
    write_lines(folder / "balanced_dev.json", rows()[2:7])
    (folder / "categories.txt").write_text(CATEGORIES)
    names = [f"dev/dev-{g}-{p}-img{i}.png" for g, p, _ in EXAMPLES for i in range(2)]
    draw_photos(folder, dict.fromkeys(names))
    return folder


@pytest.fixture
def files(tmp_path: Path, draw_photos: Callable[..., None]) -> Path:
    return write_files(tmp_path, draw_photos)


@torch.inference_mode()
def judge_alone(network, folder: Path, statement) -> bool:
    model, tokenizer, _ = network
    pixels = [
        evaluation_resize(read_photo(folder / name), model.image_size) for name in statement.images
    ]
    memory = model.project_images(model.encode_images(normalise(torch.stack(pixels))[None]))
    ids, mask = tokenizer.encode([clean_caption(statement.sentence, 40)], 64)
    logits = model.classify(ids, mask, memory)[0]
    assert abs(logits[1] - logits[0]) > 1e-3  # far from what rounding decides
    return bool(logits[1] > logits[0])


def test_verdicts_are_those_of_each_statement_alone(files: Path, config, random_model) -> None:
    """Photos are shared by the statements about them, stay in their places, and nothing changes."""
    network = open_network(random_model("nlvr"), "nlvr", 1)
    statements = open_statements(files / "dev.json").statements
    found = judge_statements(network, config, statements, files)
    assert found == [judge_alone(network, files, statement) for statement in statements]
    assert len(set(found)) == 2


def test_a_pair_of_photos_is_encoded_once(files: Path, config, random_model, monkeypatch) -> None:
    network = open_network(random_model("nlvr"), "nlvr", 1)
    encode, seen = network.model.encode_image, []
    monkeypatch.setattr(
        network.model, "encode_image", lambda images: seen.append(len(images)) or encode(images)
    )
    judge_statements(network, config, open_statements(files / "dev.json").statements, files)
    assert seen == [6, 6, 2]  # seven pairs of nine statements


def test_a_model_is_scored_as_its_predictions_are(
    files: Path, config, random_model, keeper
) -> None:
    for name in ("model", "again", "blip"):
        (files / name).mkdir()
    statements = open_statements(
        files / "dev.json", files / "balanced_dev.json", files / "categories.txt"
    )
    checkpoint = random_model("nlvr")
    evaluate_nlvr(config, checkpoint, statements, files, files / "model", keeper)
    assert "predictions.csv" in keeper.artifacts
    predictions = files / "model/predictions.csv"
    score_nlvr(config, predictions, statements, files / "again", NullTracker())
    for name in ("metrics.json", "per_example.parquet"):
        assert (files / "model" / name).read_bytes() == (files / "again" / name).read_bytes()
    metrics = read_json(files / "model/metrics.json")["nlvr"]
    said = dict(line.split(",") for line in predictions.read_text().splitlines())
    right = {row["identifier"]: said[row["identifier"]] == row["label"] for row in rows()}
    share = 100 * sum(right.values()) / len(right)
    assert metrics["accuracy"]["value"] == pytest.approx(share)
    assert metrics["examples"] == 9
    assert metrics["sentences"] == 5
    balanced = [right[row["identifier"]] for row in rows()[2:7]]
    assert metrics["accuracy_balanced"]["value"] == pytest.approx(20 * sum(balanced))
    negation = [right[row["identifier"]] for row in rows() if row["sentence"] == SENTENCES[1]]
    expected = 100 * sum(negation) / len(negation)
    assert metrics["accuracy_negation"]["value"] == pytest.approx(expected)
    assert "accuracy_other" not in metrics
    assert pq.read_table(files / "model/per_example.parquet").schema.equals(PER_SENTENCE)

    theirs = [
        {"sentence": s.sentence, "label": str(s.label), "images": list(s.images)}
        for s in statements.statements
    ]
    (files / "nlvr_dev.json").write_text(json.dumps(theirs))
    own = open_statements(files / "nlvr_dev.json")
    evaluate_nlvr(config, checkpoint, own, files, files / "blip", NullTracker())
    same = read_json(files / "blip/metrics.json")["nlvr"]
    assert {name: same[name] for name in ("accuracy", "consistency", "examples", "sentences")} == {
        name: metrics[name] for name in ("accuracy", "consistency", "examples", "sentences")
    }
    assert not (files / "blip/predictions.csv").exists()
    with pytest.raises(ConfigError, match="no official identifiers, by which predictions go"):
        score_nlvr(config, predictions, own, files / "blip", NullTracker())
    with pytest.raises(ConfigError, match="no official identifiers, by which parts are told"):
        open_statements(files / "nlvr_dev.json", files / "balanced_dev.json")


def test_real_predictions_score_as_officially(shared: Path, config, tmp_path: Path) -> None:
    folder = shared / "data/nlvr2"
    official = read_json(folder / "official_scores.json")
    statements = open_statements(
        folder / "dev.json", folder / "balanced_dev.json", folder / "annotated_dev_examples.txt"
    )
    for predictions in sorted(folder.glob("predictions/dev*.csv")):
        out = tmp_path / predictions.stem
        out.mkdir()
        score_nlvr(config, predictions, statements, out, NullTracker())
        found = read_json(out / "metrics.json")["nlvr"]
        expected = official[predictions.stem]  # measured: 7.1e-15
        for name in ("accuracy", "consistency"):
            assert found[name]["value"] == pytest.approx(100 * expected[name], abs=1e-9)
        share = expected["balanced_accuracy_pct"]
        assert found["accuracy_balanced"]["value"] == pytest.approx(share, abs=1e-9)
        for category, values in expected["categories"].items():
            name = f"accuracy_{category.replace(' ', '_')}"
            assert round(found[name]["value"], 2) == values["acc_pct"]
            assert len(statements.subsets[category.replace(" ", "_")]) == values["n"]
        assert found["examples"] == expected["n"]


def test_the_two_forms_name_the_same_sentences(shared: Path, tmp_path: Path) -> None:
    """Of the real file: a sentence of a set is one, whatever its number."""
    official = open_statements(shared / "data/nlvr2/dev.json")
    theirs = [
        {"sentence": s.sentence, "label": str(s.label), "images": list(s.images)}
        for s in official.statements
    ]
    (tmp_path / "nlvr_dev.json").write_text(json.dumps(theirs))
    own = open_statements(tmp_path / "nlvr_dev.json")
    names = set(zip(official.sentences, own.sentences, strict=True))
    assert len(names) == len(set(official.sentences)) == len(set(own.sentences))


def test_what_is_neither_true_nor_false_is_wrong_and_told(files: Path, config, caplog) -> None:
    lines = [f"{row['identifier']},{row['label'].upper()}" for row in rows()]
    lines[3] = lines[3].partition(",")[0] + ",maybe"
    (files / "p.csv").write_text("\n".join([*lines, "", ""]))
    (files / "out").mkdir()
    statements = open_statements(files / "dev.json")
    score_nlvr(config, files / "p.csv", statements, files / "out", NullTracker())
    metrics = read_json(files / "out/metrics.json")["nlvr"]
    assert metrics["accuracy"]["value"] == pytest.approx(100 * 8 / 9)
    assert metrics["unreadable_predictions"] == 1
    assert "of dev-4-2-1 the prediction is neither true nor false" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[1].pop("label"), "line 2: label is None"),
        (lambda r: r[1].update(label="true"), 'line 2: label is .true., it must be "True" or'),
        (
            lambda r: r[1].update(identifier="dev-4-1"),
            "line 2: identifier is 'dev-4-1', it must be",
        ),
        (lambda r: r[1].update(identifier="../-4-1-0"), "identifier is '../-4-1-0', it must be"),
        (
            lambda r: r[1].update(sentence="..."),
            "line 2: sentence is '...', it must be a sentence with words",
        ),
        (lambda r: r.append(r[0]), "dev-4-0-0 stands more than once"),
        (lambda r: r.clear(), "holds no statement"),
        (lambda r: r.pop(4), r"balanced_dev\.json: dev-5-0-0 is not in .*/dev\.json"),
    ],
)
def test_what_is_wrong_is_named(files: Path, change: Callable[[Any], Any], message: str) -> None:
    records = rows()
    change(records)
    write_lines(files / "dev.json", records)
    with pytest.raises(DataError, match=message):
        open_statements(files / "dev.json", files / "balanced_dev.json")


def test_other_bad_files(files: Path, config) -> None:
    (files / "categories.txt").write_text("* negation\n")
    with pytest.raises(DataError, match=r"line 1: .* is not a category behind a sentence"):
        open_statements(files / "dev.json", None, files / "categories.txt")
    (files / "categories.txt").write_text("Else\n* negation\n")
    with pytest.raises(DataError, match="no sentence of it is in"):
        open_statements(files / "dev.json", None, files / "categories.txt")
    (files / "broken.json").write_text('{"identifier": "dev-1-')
    with pytest.raises(DataError, match=r"broken\.json, line 1: is not JSON"):
        open_statements(files / "broken.json")
    row = {"sentence": "A dog.", "label": "True", "images": ["a.png", "b.png"]}
    (files / "blip.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=r"record 1: image is 'a\.png', it must be named"):
        open_statements(files / "blip.json")
    (files / "p.csv").write_text("dev-4-0-0\n")
    with pytest.raises(DataError, match="line 1: 'dev-4-0-0' is not of the form"):
        score_nlvr(
            config, files / "p.csv", open_statements(files / "dev.json"), files, NullTracker()
        )
    (files / "dev/dev-4-0-img1.png").unlink()
    with pytest.raises(DataError, match=r"photos are missing: .*dev-4-0-img1\.png"):
        evaluate_nlvr(
            config, files / "none", open_statements(files / "dev.json"), files, files, NullTracker()
        )


def test_scores_that_are_no_numbers(files: Path, config, random_model) -> None:
    network = open_network(random_model("nlvr"), "nlvr", 1)
    network.model.classifier.output.bias.data[1] = float("nan")
    with pytest.raises(CheckpointError, match="scores of statements are not numbers"):
        judge_statements(network, config, open_statements(files / "dev.json").statements, files)
