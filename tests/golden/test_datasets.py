"""Examples out of the benchmarks' annotation files against those of the reference's classes."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from blip.config import PRESETS, load_config
from blip.data import annotations
from blip.data.images import decode_image
from blip.data.sources import parse_blip
from blip.data.text import clean_caption, clean_question


@pytest.fixture
def recorded(shared):
    return json.loads((shared / "golden" / "datasets.json").read_text())


@pytest.fixture
def path(recorded, tmp_path):
    """Write an annotation file as it was recorded; give its path."""

    def write(name):
        file = tmp_path / name
        file.write_text(json.dumps(recorded["annotations"][name]))
        return file

    return write


@pytest.fixture
def official(recorded):
    """Give the output of the one case whose name begins so, and its arguments."""

    def find(name):
        ((key, output),) = (
            (key, output)
            for key, output in recorded["official_output"].items()
            if re.split(r"[(]", key)[0] == name
        )
        return output, re.findall(r"'(.*?)'", key)

    return find


@pytest.fixture
def max_words(monkeypatch):
    """How many words the paper's settings keep, stage by stage."""
    monkeypatch.setenv("BLIP_DATA", "unread")
    preset = load_config(PRESETS / "base_14m.yaml")
    stages = {name: stage.max_words for name, stage in preset.finetune}
    return stages | {"pretrain": preset.pretrain.max_words}


@pytest.fixture
def photos(tmp_path):
    """Draw grey photos, and tell the grey of one from what stands in its file."""

    class Photos:
        def draw(self, greys):
            for name, grey in greys.items():
                file = tmp_path / name
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(file)

        def grey(self, name):
            values = decode_image((tmp_path / name).read_bytes(), 64).unique()
            (value,) = values.tolist()
            return value

    return Photos()


def test_training_captions(recorded, path, official, max_words, photos):
    name = "coco_karpathy_train"
    expected, (prompt,) = official(name)
    given = recorded["annotations"][f"{name}.json"]
    photos.draw({row["image"]: grey for row, (grey, *_) in zip(given, expected, strict=True)})
    words = max_words["captioning"]
    ours = [
        [photos.grey(row.image), prompt + clean_caption(row.caption, words), row.number]
        for row in annotations.read_caption_rows(path(f"{name}.json"))
    ]
    assert ours == expected


def test_captioning_tests(path, official):
    found = annotations.read_retrieval_set(path("coco_karpathy_test.json"))
    ids = [annotations.coco_image_id(image) for image in found.images]
    assert ids == official("coco_karpathy_caption_eval")[0]
    nocaps = annotations.read_nocaps(path("nocaps_val.json"))
    assert [image.image_id for image in nocaps] == official("nocaps_eval")[0]


def test_retrieval_tests(path, official, max_words):
    expected, _ = official("coco_karpathy_retrieval_eval")
    found = annotations.read_retrieval_set(path("coco_karpathy_test.json"))
    words = max_words["retrieval"]
    assert [clean_caption(text, words) for text in found.texts] == expected["text"]
    assert list(found.images) == expected["image"]
    assert list(range(len(found.images))) == expected["items_index"]
    assert {str(text): image for text, image in enumerate(found.owner)} == expected["txt2img"]
    own = {str(image): texts for image, texts in enumerate(found.own_texts())}
    assert own == expected["img2txt"]


def test_questions(path, official, max_words):
    expected, _ = official("vqa_train_items")
    questions = [
        question
        for name in ("vqa_train.json", "vg_qa.json")
        for question in annotations.read_questions(path(name))
    ]
    words = max_words["vqa"]
    for ours, (question, answers, weights) in zip(questions, expected, strict=True):
        assert clean_question(ours.question, words) == question
        assert list(ours.answers) == answers
        assert list(ours.weights) == pytest.approx(weights, abs=1e-5)  # measured: 1.2e-16
    batch, _ = official("vqa_collate")
    assert [clean_question(ours.question, words) for ours in questions] == batch["questions"]
    assert [answer for ours in questions for answer in ours.answers] == batch["answers"]
    weights = [weight for ours in questions for weight in ours.weights]
    assert weights == pytest.approx(batch["weights"], abs=1e-5)  # measured: 1.2e-8
    assert [len(ours.answers) for ours in questions] == batch["n"]


def test_test_questions_and_answer_list(recorded, path, official, max_words):
    (ours,) = annotations.read_questions(path("vqa_test.json"))
    expected, _ = official("vqa_test_item")
    assert [clean_question(ours.question, max_words["vqa"]), ours.question_id] == expected
    assert ours.answers == ours.weights == ()
    answers = annotations.read_answer_list(path("answer_list.json"))
    assert answers == recorded["annotations"]["answer_list.json"]


def test_statements(recorded, path, max_words, photos):
    outputs = recorded["official_output"]
    expected = {coin: outputs[f"nlvr_test(random_{coin}_half)"] for coin in ("below", "above")}
    given = recorded["annotations"]["nlvr_test.json"]
    for row, (*greys, _, _) in zip(given, expected["below"], strict=True):
        photos.draw(dict(zip(row["images"], greys, strict=True)))
    read = list(annotations.read_statements(path("nlvr_test.json")))

    def example(statement):
        sentence = clean_caption(statement.sentence, max_words["nlvr"])
        return [*map(photos.grey, statement.images), sentence, int(statement.label)]

    assert [example(statement) for statement in read] == expected["below"]
    assert [example(annotations.swapped(statement)) for statement in read] == expected["above"]


def test_pretraining_captions(path, official, max_words):
    expected, _ = official("pretrain_item_caption")
    (record,) = parse_blip(path("pretrain.json"))
    assert clean_caption(record.captions[0], max_words["pretrain"]) == expected
