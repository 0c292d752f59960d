"""What an answer about lineage holds: trees from image to trained model, a model's yield."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VersionRef:
    """A dataset version: its name and the digest of its contents."""

    name: str
    digest: str


@dataclass(frozen=True)
class Checkpoint:
    """A model, what it was trained on, and the model it was fine-tuned from, with its own."""

    digest: str
    name: str
    task: str
    data: tuple[VersionRef, ...]
    parent: "Checkpoint | None"


@dataclass(frozen=True)
class Training:
    """A run that trained a model, and the versions through which it saw the text."""

    run: str
    key: str
    model: str
    digest: str
    data: tuple[VersionRef, ...]


@dataclass(frozen=True)
class Holding:
    """A version that holds a text, with the verdict there; `kept` is None where none was passed."""

    version: VersionRef
    kept: bool | None
    reason: str | None
    filter: str | None  # digest of the model that judged
    itm_score: float | None
    itc_score: float | None
    threshold: float | None


@dataclass(frozen=True)
class TextTree:
    """A text: who wrote it and how, who judged it, where it stands, who was trained on it."""

    caption_id: str
    text: str
    origin: str
    writer: Checkpoint | None
    decoding: dict[str, Any] | None
    judges: tuple[Checkpoint, ...]
    holdings: tuple[Holding, ...]
    trained: tuple[Training, ...]


@dataclass(frozen=True)
class ImageTree:
    """An image, where it lies, and its texts."""

    key: str
    sources: tuple[str, ...]
    width: int
    height: int
    extension: str
    size: int
    shards: tuple[str, ...]  # digests of the tars
    versions: tuple[VersionRef, ...]
    texts: tuple[TextTree, ...]


@dataclass(frozen=True)
class Tree:
    """The answer to a question about an image or a text."""

    query: str
    matches: int  # images that the query names; `images` holds the first ones
    images: tuple[ImageTree, ...]


@dataclass(frozen=True)
class Share:
    """How many of a model's texts stand in a version, and how many may be trained on there."""

    version: VersionRef
    texts: int
    kept: int


@dataclass(frozen=True)
class Written:
    """What a model wrote and judged, and who was trained on what it wrote."""

    model: Checkpoint
    written: int
    holdings: tuple[Share, ...]
    judged: tuple[Share, ...]
    trained: tuple[Training, ...]
    first: tuple[tuple[str, str], ...]  # caption_id and text of the first ones


def to_json(answer: Tree | Written) -> str:
    """Give an answer as JSON."""
    return json.dumps(dataclasses.asdict(answer), indent=2, ensure_ascii=False)
