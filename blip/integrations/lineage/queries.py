"""The questions about lineage, asked of the catalogue: by image, by text, by model."""

import difflib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from sqlalchemy import ColumnElement, Select, case, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from blip.errors import DataError
from blip.files import digest_file
from blip.integrations.catalog.tables import (
    Caption,
    Entry,
    Image,
    ImageShard,
    Model,
    Record,
    Run,
    RunInput,
    Version,
    VersionShard,
)
from blip.integrations.lineage.trees import (
    Checkpoint,
    Holding,
    ImageTree,
    Share,
    TextTree,
    Training,
    Tree,
    VersionRef,
    Written,
)
from blip.stage import RECORD, input_digest

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MATCHES = 20  # trees shown for a text that stands on many images
PREFIX = 6  # fewest digits that may stand for a digest
SUGGESTIONS = 1000  # names looked at for a close one


def lineage(session: Session, query: str) -> Tree:
    """Give the tree of an image or a text.

    Args:
        session: On an open catalogue.
        query: An image: a path to its file, its key or the beginning of it, or the name it had at
            its source. Or a text: its `caption_id` or the beginning of it, or its exact words,
            which may stand on several images.

    Raises:
        DataError: Nothing is known by that name, or too short a beginning of a key names several.
    """
    keys, only = _find(session, query)
    images = tuple(_image(session, key, only) for key in keys[:MATCHES])
    return Tree(query, len(keys), images)


def texts_by_model(session: Session, model: str, first: int = 10) -> Written:
    """Give what a model wrote and judged, and which runs trained on what it wrote.

    Args:
        session: On an open catalogue.
        model: Its folder, its digest or the beginning of it, or its name: then the newest of that
            name.
        first: Number of texts to give.

    Raises:
        DataError: No such model is known.
    """
    checkpoint = _checkpoint(session, _find_model(session, model))
    by = Caption.generator == checkpoint.digest
    texts = select(Caption.caption_id, Caption.text).where(by).order_by(Caption.caption_id)
    used = (
        _entries(select(Version.id))
        .join(Caption, Caption.caption_id == Entry.caption_id)
        .where(by, Entry.kept.isnot(False))
        .group_by(Version.id)
    )
    return Written(
        model=checkpoint,
        written=session.scalar(select(func.count()).select_from(Caption).where(by)) or 0,
        holdings=_shares(session, by),
        judged=_shares(session, Entry.filter == checkpoint.digest),
        trained=_trained(session, session.scalars(used).all()),
        first=tuple((row.caption_id, row.text) for row in session.execute(texts.limit(first))),
    )


def _find(session: Session, query: str) -> tuple[list[str], frozenset[str] | None]:
    """Give the keys of the images that a query names, and the texts it means: None for all."""
    if os.path.isfile(query):  # noqa: PTH113  # unlike Path, takes any text
        key = digest_file(Path(query))
        if session.get(Image, key) is None:
            raise DataError(f"{query}: not in the catalogue (sha256 {key[:12]}): ingest it first")
        return [key], None
    if image := _by_prefix(session, Image.key, query, "images"):
        return [image], None
    if name := _by_prefix(session, Caption.caption_id, query, "texts"):
        return [session.get_one(Caption, name).key], frozenset([name])
    by_source = select(Record.key).where(Record.source == query).distinct().order_by(Record.key)
    if keys := session.scalars(by_source).all():
        return list(keys), None
    same = select(Caption.caption_id, Caption.key).where(Caption.text == query)
    if rows := session.execute(same.order_by(Caption.key)).all():
        return list(dict.fromkeys(row.key for row in rows)), frozenset(r.caption_id for r in rows)
    close = _close(session, query, Record.source, Caption.text)
    remedy = close or "; blip catalog rebuild indexes the results that are here"
    raise DataError(f"{query!r}: no image or text of that name in the catalogue{remedy}")


def _find_model(session: Session, query: str) -> str:
    if (Path(query) / RECORD).is_file():
        digest = input_digest(Path(query))
        if session.scalar(select(Model.id).where(Model.digest == digest)) is None:
            raise DataError(f"{query}: this model is not in the catalogue: run `blip catalog add`")
        return digest
    named = select(Model.digest).where(Model.name == query).order_by(Model.id.desc()).limit(1)
    digest_ = session.scalar(named) or _by_prefix(session, Model.digest, query, "models")
    if digest_ is None:
        close = _close(session, query, Model.name)
        raise DataError(f"{query!r}: no model of that name in the catalogue{close}")
    return digest_


def _by_prefix(
    session: Session, column: InstrumentedAttribute[str], query: str, what: str
) -> str | None:
    """Give the one digest that begins so; a range, unlike LIKE, is answered from the index."""
    if not re.fullmatch(f"[0-9a-f]{{{PREFIX},64}}", query):
        return None
    found = session.scalars(select(column).where(column >= query, column < query + "g").limit(2))
    match found.all():
        case []:
            return None
        case [digest]:
            return digest
        case _:
            raise DataError(f"{query!r}: begins the names of several {what}: give more digits")


def _close(session: Session, query: str, *columns: InstrumentedAttribute[str]) -> str:
    """Give the names most like the query, to end a message.

    They are looked for among those that share a word with it, so that the database finds them, and
    where there are none among the first ones.
    """
    close: list[str] = []
    for column in columns:
        names = select(column).distinct().limit(SUGGESTIONS)
        words = sorted(re.findall(r"\w+", query), key=len, reverse=True)[:4]
        alike = [names.where(column.icontains(word, autoescape=True)) for word in words]
        for statement in [*alike, names]:
            known = session.scalars(statement).all()
            if found := difflib.get_close_matches(query, known, n=2, cutoff=0.5):
                close += found
                break
    return "; did you mean " + " or ".join(map(repr, close)) + "?" if close else ""


def _image(session: Session, key: str, only: frozenset[str] | None) -> ImageTree:
    image = session.get(Image, key)
    placed = (
        select(Record.source, ImageShard.images_digest, Version.name, Version.digest)
        .join(ImageShard, ImageShard.id == Record.shard_id)
        .outerjoin(VersionShard, VersionShard.image_shard_id == ImageShard.id)
        .outerjoin(Version, Version.id == VersionShard.version_id)
        .where(Record.key == key)
        .order_by(Version.id, Record.row)
    )
    places = session.execute(placed).all()
    captions = session.scalars(
        select(Caption).where(Caption.key == key).order_by(Caption.origin, Caption.caption_id)
    )
    return ImageTree(
        key=key,
        sources=tuple(dict.fromkeys(place.source for place in places)),
        width=image.width if image else 0,
        height=image.height if image else 0,
        extension=image.extension if image else "",
        size=image.size if image else 0,
        shards=tuple(dict.fromkeys(place.images_digest for place in places)),
        versions=_unique(VersionRef(p.name, p.digest) for p in places if p.digest),
        texts=tuple(_text(session, c) for c in captions if only is None or c.caption_id in only),
    )


def _text(session: Session, caption: Caption) -> TextTree:
    rows = session.execute(
        _entries(select(Entry, Version)).where(Entry.caption_id == caption.caption_id)
    ).all()
    holdings = _unique(
        Holding(
            version=VersionRef(version.name, version.digest),
            kept=entry.kept,
            reason=entry.reason,
            filter=entry.filter,
            itm_score=entry.itm_score,
            itc_score=entry.itc_score,
            threshold=_threshold(session, version.output) if entry.kept is not None else None,
        )
        for entry, version in rows
    )
    judges = dict.fromkeys(holding.filter for holding in holdings if holding.filter)
    return TextTree(
        caption_id=caption.caption_id,
        text=caption.text,
        origin=caption.origin,
        writer=_checkpoint(session, caption.generator) if caption.generator else None,
        decoding=json.loads(caption.decoding) if caption.decoding else None,
        judges=tuple(_checkpoint(session, judge) for judge in judges),
        holdings=holdings,
        trained=_trained(session, [v.id for e, v in rows if e.kept is not False]),
    )


def _entries(statement: Select[*Ts]) -> Select[*Ts]:
    """Join the lines of caption tables to the versions they stand in, oldest first."""
    return (
        statement.select_from(Entry)
        .join(VersionShard, VersionShard.caption_shard_id == Entry.shard_id)
        .join(Version, Version.id == VersionShard.version_id)
        .order_by(Version.id)
    )


def _threshold(session: Session, output: str) -> float | None:
    """Give the threshold of the run that kept or dropped the texts of a version."""
    configs = session.scalars(select(Run.config).where(Run.output == output))
    return next((config["threshold"] for config in configs if "threshold" in config), None)


def _trained(session: Session, versions: Iterable[int]) -> tuple[Training, ...]:
    """Give the runs that trained a model on any of the versions, in the order they were entered."""
    statement = (
        select(Run.name, Run.key, Model.name, Model.digest, Version.name, Version.digest)
        .join(Model, Model.digest == Run.output)
        .join(RunInput, RunInput.run_id == Run.id)
        .join(Version, Version.output == RunInput.digest)
        .where(Version.id.in_(set(versions)), RunInput.role == "data")
        .order_by(Run.id, RunInput.position)
    )
    data: dict[tuple[str, str, str, str], list[VersionRef]] = {}
    for run, key, model, digest, name, version in session.execute(statement):
        data.setdefault((run, key, model, digest), []).append(VersionRef(name, version))
    return tuple(Training(*run, data=_unique(versions)) for run, versions in data.items())


def _checkpoint(session: Session, digest: str) -> Checkpoint:
    """Give a model with its data, and its parents with theirs; one made elsewhere is unknown."""
    model = session.scalar(select(Model).where(Model.digest == digest))
    if model is None:
        return Checkpoint(digest, "unknown", "unknown", (), None)
    read = (
        select(Version.name, Version.digest)
        .join(RunInput, RunInput.digest == Version.output)
        .join(Run, Run.id == RunInput.run_id)
        .where(Run.output == digest, RunInput.role == "data")
        .order_by(Run.id, RunInput.position)
    )
    return Checkpoint(
        digest=digest,
        name=model.name,
        task=model.task,
        data=_unique(VersionRef(*row) for row in session.execute(read)),
        parent=_checkpoint(session, model.parent) if model.parent else None,
    )


def _shares(session: Session, condition: ColumnElement[bool]) -> tuple[Share, ...]:
    kept = func.sum(case((Entry.kept.isnot(False), 1), else_=0))
    statement = (
        _entries(select(Version.name, Version.digest, func.count(), kept))
        .join(Caption, Caption.caption_id == Entry.caption_id)
        .where(condition)
        .group_by(Version.id, Version.name, Version.digest)
    )
    return tuple(
        Share(VersionRef(name, digest), texts, trained_on)
        for name, digest, texts, trained_on in session.execute(statement)
    )


def _unique(items: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(items))
