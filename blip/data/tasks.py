"""Batches for fine-tuning on annotated photos: questions with answers (VQA), statements (NLVR2).

The annotations are the benchmarks' own files, the photos plain files. As in the loader of pairs,
the batch of a step is a function of the seed and the step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from blip.batch import QuestionBatch, StatementBatch
from blip.config import Training
from blip.data.annotations import Question, Statement, swapped
from blip.data.images import decode_image
from blip.data.loader import ahead
from blip.data.order import EpochOrder
from blip.data.text import Tokenizer, clean_caption, clean_question
from blip.data.transforms import TrainTransform, normalise
from blip.errors import ConfigError, DataError

MAX_PIXELS = 180_000_000
MAX_ANSWER_TOKENS = 512  # what BERT has positions for; the reference cuts no answer
SWAP = 0.5  # probability that two photos change places
NLVR = "nlvr"

B = TypeVar("B", QuestionBatch, StatementBatch)


class TaskLoader(Generic[B]):
    """Batches of a task, from any step on; made by `question_loader` and `statement_loader`.

    Args:
        order: Which examples a step sees.
        read: Gives the tensors of a batch, images first and still uint8, for an epoch and the
            numbers of its examples.
        batch: What the tensors make.
        name: Gives the photos of an example.
        num_workers: Threads that prepare batches ahead.
        device: Where the batches go.
    """

    def __init__(
        self,
        order: EpochOrder,
        read: Callable[[int, list[int]], tuple[Tensor, ...]],
        batch: type[B],
        name: Callable[[int], Sequence[Path]],
        num_workers: int,
        device: torch.device,
    ) -> None:
        self._order, self._read, self._name = order, read, name
        self._batch: type[B] = batch
        self._num_workers, self._device = num_workers, device

    @property
    def num_examples(self) -> int:
        """Examples of an epoch, before the rest is cut off."""
        return self._order.count

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches of an epoch."""
        return self._order.steps_per_epoch

    def keys_of(self, step: int) -> list[str]:
        """Give the photos that this process sees at a step."""
        _, numbers = self._order.of(step)
        return [str(photo) for number in numbers for photo in self._name(number)]

    def iterate(self, start: int, stop: int) -> Iterator[B]:
        """Give the batches of the steps from `start` to `stop`, prepared ahead by the workers.

        Raises:
            DataError: A photo is missing or cannot be decoded; it is named.
        """

        def load(step: int) -> tuple[Tensor, ...]:
            return self._read(*self._order.of(step))

        for images, *rest in ahead(load, range(start, stop), self._num_workers):
            on_device = normalise(images.to(self._device, non_blocking=True))
            yield self._batch(on_device, *rest).to(self._device)


def question_loader(
    questions: Sequence[Question],
    folders: Mapping[str, Path],
    tokenizer: Tokenizer,
    training: Training,
    seed: int,
    device: torch.device,
) -> TaskLoader[QuestionBatch]:
    """Load questions with all the answers that people gave (BLIP.md 5.3).

    Args:
        questions: With answers.
        folders: Where the photos lie, by the name of their collection.
        tokenizer: Makes the tokens; answers are taken whole.
        training: Batch, image size, text lengths, augmentation, number of worker threads.
        seed: Decides order and augmentation.
        device: Where the batches go.

    Raises:
        ConfigError: The folder of a collection is not named.
        DataError: There are fewer questions than a batch.
    """
    transform = TrainTransform(training.augmentation, training.image_size)
    photos = [_folder(folders, question.dataset) / question.image for question in questions]

    def read(epoch: int, numbers: list[int]) -> tuple[Tensor, ...]:
        asked = [questions[number] for number in numbers]
        images = [
            transform(read_photo(photos[number]), np.random.default_rng((seed, epoch, number)))
            for number in numbers
        ]
        texts = [clean_question(question.question, training.max_words) for question in asked]
        answers = [answer for question in asked for answer in question.answers]
        counts = torch.tensor([len(question.answers) for question in asked])
        return (
            torch.stack(images),
            *tokenizer.encode(texts, training.max_tokens),
            *tokenizer.encode(answers, MAX_ANSWER_TOKENS),
            torch.tensor([weight for question in asked for weight in question.weights]),
            torch.repeat_interleave(torch.arange(len(asked)), counts),
        )

    for question in questions:
        if not question.answers:
            raise DataError(
                f"question {question.question_id} has no answer, as in a test set: train on others"
            )
    order = EpochOrder(len(questions), training.batch_size, seed, "--data", "questions")

    def name(number: int) -> Sequence[Path]:
        return [photos[number]]

    return TaskLoader(order, read, QuestionBatch, name, training.num_workers, device)


def statement_loader(
    statements: Sequence[Statement],
    folders: Mapping[str, Path],
    tokenizer: Tokenizer,
    training: Training,
    seed: int,
    device: torch.device,
) -> TaskLoader[StatementBatch]:
    """Load statements about two photos, which change places at random (BLIP.md 5.4).

    The arguments and errors are those of `question_loader`; the photos are of one collection.
    """
    transform = TrainTransform(training.augmentation, training.image_size)
    folder = _folder(folders, NLVR)

    def read(epoch: int, numbers: list[int]) -> tuple[Tensor, ...]:
        images, texts = [], []
        for number in numbers:
            rng = np.random.default_rng((seed, epoch, number))
            statement = statements[number]
            if rng.random() < SWAP:
                statement = swapped(statement)
            pair = [transform(read_photo(folder / name), rng) for name in statement.images]
            images.append(torch.stack(pair))
            texts.append(clean_caption(statement.sentence, training.max_words))
        labels = torch.tensor([int(statements[number].label) for number in numbers])
        return (torch.stack(images), *tokenizer.encode(texts, training.max_tokens), labels)

    order = EpochOrder(len(statements), training.batch_size, seed, "--data", "statements")

    def name(number: int) -> Sequence[Path]:
        return [folder / image for image in statements[number].images]

    return TaskLoader(order, read, StatementBatch, name, training.num_workers, device)


def _folder(folders: Mapping[str, Path], collection: str) -> Path:
    """Find the photos of a collection; where one folder is named without a name, it is that."""
    folder = folders.get(collection, folders.get(""))
    if folder is None:
        raise ConfigError(
            f"the folder of the photos of {collection!r} is not named: --photos {collection}=FOLDER"
        )
    return folder


def read_photo(photo: Path) -> Tensor:
    """Read a photo as (3, H, W) uint8.

    Raises:
        DataError: It is missing or cannot be decoded; it is named.
    """
    try:
        return decode_image(photo.read_bytes(), MAX_PIXELS)
    except OSError as error:
        raise DataError(f"{photo}: cannot be read: {error.strerror}") from None
    except DataError as error:
        raise DataError(f"{photo}: {error}") from None
