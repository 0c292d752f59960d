"""The images and texts to measure on: a dataset version, or a benchmark's own annotation file."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from blip.data.annotations import read_retrieval_set
from blip.data.dataset import Dataset, open_dataset
from blip.data.shards import OpenImages
from blip.data.tasks import read_photo
from blip.data.transforms import evaluation_resize, normalise
from blip.errors import ConfigError, DataError
from blip.files import digest_file
from blip.metrics.ids import name_some

THREADS = 4  # that decode, while the model works on the batch before


@dataclass(frozen=True)
class Photos:
    """Image files in an order."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def digests(self, rows: range) -> list[str]:
        """Give the sha256 of the bytes of some images.

        Raises:
            DataError: An image is missing; it is named.
        """
        return [digest_file(photo) for photo in self.paths[rows.start : rows.stop]]

    def pixels(self, rows: range, size: int) -> Tensor:
        """Read some images, neighbours: (B, 3, S, S) float32. Threads may share them.

        Raises:
            DataError: An image is missing, was changed or cannot be decoded; it is named.
        """
        return stack([read_photo(photo) for photo in self.paths[rows.start : rows.stop]], size)


@dataclass(frozen=True)
class EvaluationSet:
    """Images with the texts that people gave them.

    Attributes:
        source: The dataset version or the annotation file, for messages.
        keys: Of the images, in order.
        texts: Of each image, as written; may be none.
        images: The dataset version, or the photos in the order of the keys.
    """

    source: Path
    keys: Sequence[str]
    texts: Sequence[Sequence[str]]
    images: Dataset | Sequence[Path]

    def __len__(self) -> int:
        return len(self.keys)

    def require_photos(self) -> None:
        """See that the photos are there: see `require_photos`. A dataset version has its own."""
        if not isinstance(self.images, Dataset):
            require_photos(self.images)

    def digests(self, rows: range) -> list[str]:
        """See `Photos.digests`."""
        if isinstance(self.images, Dataset):
            return list(self.keys[rows.start : rows.stop])
        return Photos(self.images).digests(rows)

    def pixels(self, rows: range, size: int) -> Tensor:
        """See `Photos.pixels`."""
        if isinstance(self.images, Dataset):
            return stack([i.read(row) for i, row in self._stored[rows.start : rows.stop]], size)
        return Photos(self.images).pixels(rows, size)

    @functools.cached_property
    def _stored(self) -> list[tuple[OpenImages, int]]:
        """The images of a dataset version: shard and row of each."""
        assert isinstance(self.images, Dataset)
        shards = {shard.images_digest: shard for shard in self.images.shards}
        opened = map(OpenImages, shards.values())
        return [(images, row) for images in opened for row in range(len(images))]


def stack(images: Sequence[Tensor], size: int) -> Tensor:
    """Make images (3, H, W) uint8 what a model reads: (B, 3, S, S) float32."""
    return normalise(torch.stack([evaluation_resize(image, size) for image in images]))


def open_evaluation_set(data: Path, photos: Path | None = None) -> EvaluationSet:
    """Read what to measure on.

    Args:
        data: A dataset version; or a JSON file of `{"image", "caption": [...]}` as COCO and
            Flickr30k are evaluated on (BLIP.md 5.1).
        photos: With a JSON file, the folder of its images.

    Raises:
        ConfigError: The folder of the photos is missing, or too much.
        DataError: The data cannot be read, or break a rule.
    """
    if data.suffix != ".json":
        if photos is not None:
            raise ConfigError(f"--photos goes with an annotation file: {data} has its own images")
        dataset = open_dataset(data)
        texts: dict[str, list[str]] = {key: [] for key in dataset.records()["key"].to_pylist()}
        for row in dataset.captions().to_pylist():
            if row["kept"] is not False:
                texts[row["key"]].append(row["text"])
        return EvaluationSet(data, list(texts), list(texts.values()), dataset)
    if photos is None:
        raise ConfigError(f"{data} names photos: say where they lie: --photos FOLDER")
    found = read_retrieval_set(data)
    own: list[list[str]] = [[] for _ in found.images]
    for text, owner in zip(found.texts, found.owner, strict=True):
        own[owner].append(text)
    return EvaluationSet(data, found.images, own, [photos / image for image in found.images])


def require_photos(photos: Iterable[Path]) -> None:
    """See that photos are there, before hours are spent on those that are.

    Raises:
        DataError: Some are not; they are named.
    """
    missing = [photo for photo in photos if not photo.is_file()]
    if missing:
        raise DataError(
            f"photos are missing: {name_some(missing)}: name the folder that they lie in by --photos"
        )
