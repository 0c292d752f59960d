"""Collections in every format, and what is wrong with them."""

import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip.config import Source
from blip.data.sources import SourceRecord, read_records
from blip.errors import DataError

PAIRS = {
    "a.png": ["a ring", 'a red ring, "round"'],
    "b c.png": ["two bars"],
    "d/é.png": ["ein Kreuz\u2028größer"],
}


def source(path: Path, form: str, **changes: Any) -> Source:
    fields: dict[str, Any] = {
        "format": form,
        "annotations": str(path),
        "images": str(path.parent),
        "origin": "web",
        "split": None,
        "skip": 0,
        "limit": None,
        "captions_per_image": None,
        "mismatch": 0.0,
    }
    return Source(**{**fields, **changes})


def write_blip(path: Path, pairs: dict[str, list[str]]) -> None:
    path.write_text(json.dumps([{"image": k, "caption": v} for k, v in pairs.items()]))


def write_blip_single(path: Path, pairs: dict[str, list[str]]) -> None:
    items = [{"image": k, "caption": text} for k, v in pairs.items() for text in v]
    path.write_text(json.dumps(items, indent=1, ensure_ascii=False), encoding="utf-8-sig")


def write_coco(path: Path, pairs: dict[str, list[str]]) -> None:
    images = [{"id": i, "file_name": name} for i, name in enumerate(pairs)]
    texts = [{"image_id": i, "caption": t} for i, v in enumerate(pairs.values()) for t in v]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": texts[::-1]}))


def write_csv(path: Path, pairs: dict[str, list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "TEXT", "filepath"])
        writer.writerows([0, text, name] for name, texts in pairs.items() for text in texts)


def write_tsv(path: Path, pairs: dict[str, list[str]]) -> None:
    rows = [f"{text}\t{name}" for name, texts in pairs.items() for text in texts]
    path.write_text("\n".join(["caption\timage", *rows]) + "\n", encoding="utf-8")


def write_parquet(path: Path, pairs: dict[str, list[str]]) -> None:
    rows = [{"path": name, "caption": text} for name, texts in pairs.items() for text in texts]
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_flickr8k(path: Path, pairs: dict[str, list[str]]) -> None:
    lines = [f"{name}#{i}\t{t}" for name, texts in pairs.items() for i, t in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


WRITERS: dict[str, list[Callable[[Path, dict[str, list[str]]], None]]] = {
    "blip": [write_blip, write_blip_single],
    "coco": [write_coco],
    "csv": [write_csv],
    "tsv": [write_tsv],
    "parquet": [write_parquet],
    "flickr8k": [write_flickr8k],
}


@pytest.mark.parametrize(("form", "write"), [(f, w) for f, ws in WRITERS.items() for w in ws])
def test_formats_agree(tmp_path: Path, form: str, write: Any) -> None:
    write(tmp_path / "file", PAIRS)
    records = {r.source: list(r.captions) for r in read_records(source(tmp_path / "file", form))}
    wanted = {k: v[::-1] for k, v in PAIRS.items()} if form == "coco" else PAIRS
    assert records == wanted
    assert list(records) == list(PAIRS)


CUT = '[{"image": "a.png", "caption": "a"}, {"image": "b.png", "capt'
BAD: list[tuple[str, str, str]] = [
    ("blip", CUT, r"file, record 2: is not JSON .*\"b\.png\".*cut short"),
    ("blip", '[{"image": "a.png", "caption": "a"} {"image"', r"record 2: .*expected ','"),
    ("blip", '{"image": "a.png"}', r"record 1: is not JSON \(expected '\['\)"),
    ("blip", "[" * 5000, "record 1: is not JSON"),
    ("blip", "[7]", "record 1: image is None, it must be str"),
    ("blip", '[{"image": 3, "caption": "a"}]', "record 1: image is 3, it must be str"),
    ("blip", '[{"image": "a.png"}]', r"record 1 \(a\.png\): caption is None"),
    ("blip", '[{"image": "a.png", "caption": ["a", 2]}]', r"caption is \['a', 2\]"),
    ("blip", "[]", "holds no record"),
    (
        "blip",
        '[{"image": "a.png", "caption": "a", "caption": "b"}]',
        "record 1: is not JSON \\('caption' stands twice in an object\\)",
    ),
    (
        "blip",
        '[{"image": "a.png", "caption": "a"}]\n[{"image": "b.png"}]',
        r"goes on behind its list, with '\[\{\"image\": \"b.png\"",
    ),
    ("blip", '[{"image": "a.png", "caption": NaN}]', "caption is nan"),
    ("coco", "[" * 100_000, "is not JSON"),
    ("coco", '{"images": [], "images": []}', "'images' stands twice"),
    (
        "coco",
        '{"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}]}',
        r"images, record 2 \(b\.png\): id 1 is that of a\.png already",
    ),
    ("coco", "[]", "images is None"),
    ("coco", '{"images": [{"id": 1}], "annotations": []}', "images, record 1: file_name is None"),
    (
        "coco",
        '{"images": [], "annotations": [{"image_id": 5, "caption": "a"}]}',
        "annotations, record 1: image_id 5 is not among the images",
    ),
    ("csv", "image,caption\na.png,a\nb.png,b,c\n", "line 3: has 3 fields, the header has 2"),
    ("csv", 'image,caption\na.png,"a', "line 2: unexpected end of data"),
    ("csv", "id,label\n1,2\n", "no image column among id, label"),
    ("csv", "url,caption\nhttp://x/y.png,a\n", "URLs must be fetched first"),
    ("csv", "image,label\n1,2\n", "no caption column among image, label"),
    ("csv", "image,caption,Caption\na.png,a,b\n", "column caption stands twice"),
    ("csv", "image,caption\n", "holds no record"),
    ("csv", "", r"no image column among \(none\)"),
    ("tsv", "image\tcaption\na.png\n", "line 2: has 1 fields"),
    ("parquet", "PAR1 no parquet", "cannot be read as Parquet"),
    ("flickr8k", "a.png#0\ta\nb.png b\n", "line 2: 'b.png b' is not of the form"),
    ("flickr8k", "a.png\ta\n", "line 1"),
]


@pytest.mark.parametrize(("form", "content", "message"), BAD)
def test_malformed_file_is_named(tmp_path: Path, form: str, content: str, message: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as raised:
        list(read_records(source(path, form)))
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("form", WRITERS)
def test_missing_file_and_folder(tmp_path: Path, form: str) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError, match=f"{path}: cannot be read"):
            list(read_records(source(path, form)))


def test_blank_lines_of_a_table_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xef\xbb\xbfimage,caption\r\na.png,a\r\n\r\nb.png,b\r\n\r\n")
    assert [r.source for r in read_records(source(path, "csv"))] == ["a.png", "b.png"]


@pytest.mark.parametrize("form", ["blip", "csv", "tsv", "flickr8k"])
def test_compressed(tmp_path: Path, form: str) -> None:
    path = tmp_path / "file"
    WRITERS[form][0](path, PAIRS)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match="is compressed: unpack it"):
        list(read_records(source(path, form)))


def test_a_collection_whose_name_is_no_text(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.json")).write_text('[{"image": "a.png", "caption": "a"}]')
    with pytest.raises(DataError, match=r"'caf\\udce9' names a collection"):
        list(read_records(source(tmp_path, "blip")))


@pytest.mark.parametrize("form", ["blip", "csv", "tsv", "flickr8k"])
def test_other_encoding(tmp_path: Path, form: str) -> None:
    path = tmp_path / "file"
    WRITERS[form][0](path, {"a.png": ["x"]})
    path.write_bytes(path.read_bytes().replace(b"x", b"\xe9"))
    with pytest.raises(DataError, match="is not UTF-8"):
        list(read_records(source(path, form)))


def test_parquet_column_twice(tmp_path: Path) -> None:
    column = pa.array(["a.png"])
    table = pa.table([column] * 3, names=["image", "caption", "caption"])
    pq.write_table(table, tmp_path / "file")
    with pytest.raises(DataError, match="column caption stands twice"):
        list(read_records(source(tmp_path / "file", "parquet")))


def test_parquet_column_of_numbers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["a"], "caption": [1]}), tmp_path / "file")
    with pytest.raises(DataError, match="column caption holds int64"):
        list(read_records(source(tmp_path / "file", "parquet")))


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    write_blip(tmp_path / "file", {f"{i}.png": [f"text {i}", f"words {i}"] for i in range(10)})
    (tmp_path / "split").write_text("\n".join(f"{i}.png " for i in (1, 3, 5, 7, 9, 99)))
    return tmp_path / "file"


def names(records: Any) -> str:
    return "".join(record.source.removesuffix(".png") for record in records)


def test_split_then_skip_then_limit(ten: Path) -> None:
    split = str(ten.with_name("split"))
    assert names(read_records(source(ten, "blip", skip=2, limit=3))) == "234"
    assert names(read_records(source(ten, "blip", split=split))) == "13579"
    assert names(read_records(source(ten, "blip", split=split, skip=1, limit=2))) == "35"
    with pytest.raises(DataError, match="no record is left after split"):
        read_records(source(ten, "blip", split=split, skip=5))


def test_captions_per_image(ten: Path) -> None:
    records = read_records(source(ten, "blip", captions_per_image=1))
    assert [r.captions for r in records] == [(f"text {i}",) for i in range(10)]


def test_mismatch(ten: Path) -> None:
    clean = list(read_records(source(ten, "blip")))
    records = list(read_records(source(ten, "blip", mismatch=0.4)))
    assert [r.source for r in records] == [r.source for r in clean]
    wrong = [i for i, r in enumerate(records) if r.kind == "mismatch"]
    assert wrong == [0, 6, 7, 8]  # by the digests of the names, so the same on every machine
    texts = {r.captions for r in clean}
    for i, record in enumerate(records):
        assert record.captions in texts
        assert (record.captions != clean[i].captions) == (i in wrong)


def test_mismatch_of_equal_captions_stays_clean(tmp_path: Path) -> None:
    write_blip(tmp_path / "file", {"a.png": ["same"], "b.png": ["same"]})
    records = list(read_records(source(tmp_path / "file", "blip", mismatch=1.0)))
    assert [r.kind for r in records] == ["clean", "clean"]


def test_collections_at_hand(shared: Path) -> None:
    data = shared / "data"
    flickr = data / "flickr8k"
    tokens = list(read_records(source(flickr / "captions.token.txt", "flickr8k")))
    blip = list(read_records(source(flickr / "blip_format.json", "blip")))
    assert len(tokens) == len(blip) == 2100
    assert [SourceRecord(f"images/{r.source}", r.captions) for r in tokens] == blip
    coco = list(read_records(source(data / "coco_photos" / "captions.json", "coco")))
    assert (len(coco), sum(len(r.captions) for r in coco)) == (76, 380)
