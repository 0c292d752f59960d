"""Questions and statements in batches: each once an epoch, the same from any step on."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from blip.config import PRESETS, Training, load_config
from blip.data.annotations import Question, Statement
from blip.data.tasks import question_loader, statement_loader
from blip.data.text import Tokenizer, train_vocabulary
from blip.data.transforms import MEAN, STD
from blip.errors import ConfigError, DataError

CPU = torch.device("cpu")
LETTERS = "abcdefghijkl"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    texts = [
        "is the left dog red and the right one blue",
        "what colour is it ? yes no red blue green",
        "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9",
    ]
    train_vocabulary(texts * 2, 200, tmp_path)
    return Tokenizer(tmp_path / "vocab.txt")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photo i is grey of value 10 i."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (20, 16), (10 * number,) * 3).save(folder / f"{number}.png")
    return folder


def training(**changes: object) -> Training:
    settings = load_config(PRESETS / "demo.yaml").finetune.captioning
    plain = {"crop_scale": (1.0, 1.0), "flip": 0.0, "randaugment": False}
    augmentation = settings.augmentation.model_copy(update=plain)
    sizes = {"batch_size": 4, "image_size": 16, "max_tokens": 20, "augmentation": augmentation}
    return settings.model_copy(update=sizes | changes)


def grey(images: torch.Tensor) -> list[int]:
    """Give the number of the photo of each image."""
    red = images[:, 0].mean(dim=(1, 2)) * STD[0] + MEAN[0]
    return (red * 25.5).round().long().tolist()


def question(number: int, **changes: object) -> Question:
    answers = [("red",), ("red", "blue"), ("no", "yes", "green")][number % 3]
    weights = tuple(0.1 * (i + 1) for i in range(len(answers)))
    values = {"question_id": number, "question": f"what colour is {LETTERS[number % 12]}?"}
    values |= {"image": f"{number}.png", "dataset": "vqa", "answers": answers, "weights": weights}
    return Question(**(values | changes))


def test_every_question_once_an_epoch_with_its_photo_and_answers(tokenizer, photos):
    questions = [question(number) for number in range(12)]
    loader = question_loader(questions, {"vqa": photos}, tokenizer, training(), 1, CPU)
    assert (loader.num_examples, loader.steps_per_epoch) == (12, 3)
    seen = []
    for batch in loader.iterate(0, 3):
        for row, number in enumerate(grey(batch.images)):
            asked = tokenizer.decode(batch.question_ids[row].tolist())
            assert asked == f"what colour is {LETTERS[number]}?"
            own = batch.questions == row
            texts = [tokenizer.decode(ids.tolist()) for ids in batch.answer_ids[own]]
            assert texts == list(questions[number].answers)
            weights = batch.weights[own].tolist()
            assert weights == pytest.approx(questions[number].weights)
            seen.append(number)
    names = [str(photos / f"{number}.png") for number in seen]
    assert [name for step in range(3) for name in loader.keys_of(step)] == names
    assert sorted(seen) == list(range(12))
    later = list(loader.iterate(2, 5))[1]
    again = next(iter(loader.iterate(3, 4)))
    assert torch.equal(later.question_ids, again.question_ids)
    assert torch.equal(later.images, again.images)


def test_photos_of_a_statement_change_places_with_their_words(tokenizer, photos):
    statements = [
        Statement("Is the left dog red and the right one blue", (f"{i}.png", f"{i + 4}.png"), i > 1)
        for i in range(4)
    ]
    loader = statement_loader(statements, {"": photos}, tokenizer, training(), 1, CPU)
    assert set(loader.keys_of(0)) == {str(photos / f"{i}.png") for i in range(8)}
    orders = set()
    for batch in loader.iterate(0, 8):
        assert batch.images.shape == (4, 2, 3, 16, 16)
        for row in range(4):
            first, second = grey(batch.images[row])
            text = tokenizer.decode(batch.token_ids[row].tolist())
            sides = ("left", "right") if first < second else ("right", "left")
            assert text == "is the {} dog red and the {} one blue".format(*sides)
            assert abs(first - second) == 4
            assert batch.labels[row] == (min(first, second) > 1)
            orders.add(first < second)
    assert orders == {True, False}


def test_what_cannot_be_trained_on_is_named(tokenizer, photos):
    settings = training(batch_size=1)
    visual_genome = [question(1, dataset="vg")]
    with pytest.raises(ConfigError, match="photos of 'vg' is not named: --photos vg=FOLDER"):
        question_loader(visual_genome, {"vqa": photos}, tokenizer, settings, 1, CPU)
    with pytest.raises(DataError, match="question 1 has no answer"):
        question_loader(
            [question(1, answers=(), weights=())], {"": photos}, tokenizer, settings, 1, CPU
        )
    with pytest.raises(DataError, match="1 questions are fewer than batch_size 4"):
        question_loader([question(1)], {"": photos}, tokenizer, training(), 1, CPU)
    missing = question_loader([question(99)], {"": photos}, tokenizer, settings, 1, CPU)
    with pytest.raises(DataError, match=r"99\.png: cannot be read: No such file"):
        list(missing.iterate(0, 1))
    (photos / "3.png").write_bytes(b"no image")
    broken = question_loader([question(3)], {"": photos}, tokenizer, settings, 1, CPU)
    with pytest.raises(DataError, match=r"3\.png: "):
        list(broken.iterate(0, 1))
