"""The tables of the catalogue: what the files of an experiment say, in a form that can be asked.

Rows are derived wholly from the files and never changed: a row names content by its digest. Shards
are shared between versions as they are on disk, so a version that only changes captions adds no
image. Whether a caption's image is there and its name unique is for the gate to find
(`blip.integrations.quality`), so the schema must be able to hold the faults of a bad version:
`captions.key` refers to no image, and a line of a caption table is named by its place.
"""

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, MetaData, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class Table(DeclarativeBase):
    """Base of the tables: unbounded text, and constraints with stable names for migrations."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {str: Text(), dict[str, Any]: JSON()}  # noqa: RUF012


class Image(Table):
    """An image, whichever collections it came from."""

    __tablename__ = "images"

    key: Mapped[str] = mapped_column(primary_key=True)  # sha256 of its bytes
    width: Mapped[int]
    height: Mapped[int]
    extension: Mapped[str]
    size: Mapped[int]  # in bytes


class ImageShard(Table):
    """A tar of images with the table of its records."""

    __tablename__ = "image_shards"

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)  # of the records table
    images_digest: Mapped[str]  # of the tar
    num_images: Mapped[int]


class Record(Table):
    """An image's place in a shard, and the name it had where it came from."""

    __tablename__ = "records"
    __table_args__ = (Index(None, "source", postgresql_using="hash"),)  # a B-tree refuses long URLs

    shard_id: Mapped[int] = mapped_column(ForeignKey(ImageShard.id), primary_key=True)
    row: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(ForeignKey(Image.key), index=True)
    source: Mapped[str]


class Caption(Table):
    """A text on an image by a writer; equal words on another image, or by another, are another."""

    __tablename__ = "captions"
    __table_args__ = (Index(None, "text", postgresql_using="hash"),)  # a B-tree refuses long texts

    caption_id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(index=True)  # of the image
    text: Mapped[str]
    origin: Mapped[str]
    generator: Mapped[str | None] = mapped_column(index=True)  # digest of the model that wrote it
    decoding: Mapped[str | None]  # how it was written, as JSON


class CaptionShard(Table):
    """A caption table."""

    __tablename__ = "caption_shards"

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    num_captions: Mapped[int]


class Entry(Table):
    """A line of a caption table: the text that stands there, and the verdict on it, if any."""

    __tablename__ = "entries"

    shard_id: Mapped[int] = mapped_column(ForeignKey(CaptionShard.id), primary_key=True)
    row: Mapped[int] = mapped_column(primary_key=True)
    caption_id: Mapped[str] = mapped_column(ForeignKey(Caption.caption_id), index=True)
    filter: Mapped[str | None]  # digest of the model that judged it
    itm_score: Mapped[float | None]  # match probability
    itc_score: Mapped[float | None]  # cosine
    kept: Mapped[bool | None]  # null: not judged, trained on
    reason: Mapped[str | None]


class Version(Table):
    """A dataset version.

    Two digests name it: that of its contents, which the manifest gives, and that of its folder,
    by which stages name what they read.
    """

    __tablename__ = "versions"

    id: Mapped[int] = mapped_column(primary_key=True)  # later versions have greater ones
    output: Mapped[str] = mapped_column(unique=True)  # digest of the folder
    digest: Mapped[str] = mapped_column(index=True)  # of the contents
    name: Mapped[str] = mapped_column(index=True)
    source: Mapped[dict[str, Any]]
    counts: Mapped[dict[str, Any]]
    num_images: Mapped[int]
    num_captions: Mapped[int]


class VersionShard(Table):
    """The shards of a version, in order: images and the captions beside them."""

    __tablename__ = "version_shards"

    version_id: Mapped[int] = mapped_column(ForeignKey(Version.id), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    image_shard_id: Mapped[int] = mapped_column(ForeignKey(ImageShard.id), index=True)
    caption_shard_id: Mapped[int] = mapped_column(ForeignKey(CaptionShard.id), index=True)


class Model(Table):
    """A trained checkpoint."""

    __tablename__ = "models"

    id: Mapped[int] = mapped_column(primary_key=True)  # later models have greater ones
    digest: Mapped[str] = mapped_column(unique=True)  # of its folder
    name: Mapped[str] = mapped_column(index=True)
    task: Mapped[str]  # pretrain, captioning or retrieval
    parent: Mapped[str | None]  # digest of the model it was fine-tuned from


class Run(Table):
    """A finished stage. A key that gave two outputs (forced, on other hardware) has two rows."""

    __tablename__ = "runs"
    __table_args__ = (UniqueConstraint("key", "output"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str]
    verb: Mapped[str]
    name: Mapped[str]
    config: Mapped[dict[str, Any]]
    output: Mapped[str] = mapped_column(index=True)  # digest of the folder it wrote


class RunInput(Table):
    """What a run read, by role: the output of another run, or the digest of a raw file."""

    __tablename__ = "run_inputs"

    run_id: Mapped[int] = mapped_column(ForeignKey(Run.id), primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(index=True)
