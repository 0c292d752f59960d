"""Taking collections in: what is stored, what is quarantined, and what if it goes wrong."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blip.config import Ingest, Source, World
from blip.data.dataset import open_dataset
from blip.data.drawing import encode_png
from blip.data.images import ShardImages, decode_image
from blip.data.ingest import ingest
from blip.data.truth import read_truth
from blip.data.world import draw_world
from blip.errors import DataError
from blip.files import digest_directory
from blip.stage import Part
from blip.tracker import NullTracker

RULES = {
    "shard_size": 3,
    "min_side": 8,
    "max_pixels": 10_000,
    "min_words": 1,
    "max_words": 6,
    "max_quarantined": 1.0,
}


class Numbers(NullTracker):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.values |= values


def picture(value: int, side: int = 16) -> bytes:
    return encode_png(np.full((side, side, 3), value, np.uint8))


def config(folder: Path, rules: Mapping[str, Any] = {}, **changes: Any) -> Ingest:
    fields: dict[str, Any] = {
        "format": "blip",
        "annotations": str(folder / "pairs.json"),
        "images": str(folder / "images"),
        "origin": "web",
        "split": None,
        "skip": 0,
        "limit": None,
        "captions_per_image": None,
        "mismatch": 0.0,
    }
    return Ingest(sources={"toy": Source(**{**fields, **changes})}, **{**RULES, **rules})


def collect(folder: Path, records: list[tuple[str, bytes | None, list[str]]]) -> Path:
    """Write a collection of (name, bytes, captions)."""
    (folder / "images").mkdir(parents=True)
    for name, data, _ in records:
        if data is not None:
            (folder / "images" / name).write_bytes(data)
    pairs = [{"image": name, "caption": captions} for name, _, captions in records]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    return folder


def take(settings: Ingest, out: Path) -> list[tuple[str, str, str]]:
    """Ingest; give (source, what, reason) of what was quarantined."""
    out.mkdir(parents=True)
    ingest(settings, "toy", out, out.with_name(f"{out.name}_run"), NullTracker())
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert all(set(line) == {"source", "what", "value", "reason"} for line in lines)
    return [(line["source"], line["what"], line["reason"]) for line in lines]


def test_what_is_stored(tmp_path: Path) -> None:
    images = {f"{i}.png": picture(i) for i in range(7)}
    records = [(name, data, [f"text {name}", "both"]) for name, data in images.items()]
    tracker, out = Numbers(), tmp_path / "out"
    out.mkdir()
    ingest(config(collect(tmp_path, records)), "toy", out, tmp_path / "run", tracker)
    dataset = open_dataset(out)
    dataset.verify()
    assert [shard.num_images for shard in dataset.shards] == [3, 3, 1]
    assert (dataset.num_images, dataset.num_captions) == (7, 14)
    for shard in dataset.shards:
        assert shard.images.name == f"{shard.images_digest[:16]}.tar"
        stored, rows = ShardImages(shard), shard.read_records().to_pylist()
        with tarfile.open(shard.images) as tar:
            assert [m.name for m in tar] == [f"{row['key']}.png" for row in rows]
        for i, row in enumerate(rows):
            assert stored.read(i) == images[row["source"]]
            assert (row["width"], row["height"], row["extension"]) == (16, 16, "png")
        texts = [(row["key"], row["text"]) for row in shard.read_captions().to_pylist()]
        wanted = [(r["key"], text) for r in rows for text in (f"text {r['source']}", "both")]
        assert texts == wanted
    captions = dataset.captions().to_pylist()
    assert {row["origin"] for row in captions} == {"web"}
    assert {row["kept"] for row in captions} == {None}
    assert len({row["caption_id"] for row in captions}) == 14
    counts = json.loads((out / "metrics.json").read_text())["ingest"]
    assert counts == {
        "images": 7,
        "captions": 14,
        "quarantined_images": 0,
        "quarantined_captions": 0,
    }
    assert tracker.values["perf/images_per_second"] > 0
    assert [shard.texts for shard in dataset.shards] == [{"web": 6}, {"web": 6}, {"web": 2}]
    assert {shard.collection for shard in dataset.shards} == {None}
    assert dataset.source["annotations"] == "pairs.json"  # no folders of this machine


def test_a_folder_of_annotations_is_stored_by_collection(tmp_path: Path) -> None:
    collect(tmp_path, [(f"{i}.png", picture(i), []) for i in range(9)])
    parts = {"laion/1.json": range(3), "laion/2.json": range(3, 5), "cc3m.json": range(5, 9)}
    for name, numbers in parts.items():
        file = tmp_path / "annotations" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([{"image": f"{i}.png", "caption": "a b"} for i in numbers]))
    take(config(tmp_path, annotations=str(tmp_path / "annotations")), tmp_path / "out")
    found = [
        (shard.collection, shard.num_images) for shard in open_dataset(tmp_path / "out").shards
    ]
    assert found == [("cc3m", 3), ("cc3m", 1), ("laion", 3), ("laion", 2)]
    sources = open_dataset(tmp_path / "out").records()["source"].to_pylist()
    assert sources == [f"{i}.png" for i in (5, 6, 7, 8, 0, 1, 2, 3, 4)]


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(file, "JPEG")
    return file.getvalue()


def test_what_is_quarantined(tmp_path: Path) -> None:
    good = picture(1)
    records: list[tuple[str, bytes | None, list[str]]] = [
        (
            "good.png",
            good,
            ["a ring", " a\tring\n", "  ", "one two three four five six seven", "b\0d"],
        ),
        ("cut.jpg", jpeg()[:900], ["a"]),
        ("text.png", b"<html>not found</html>", ["a"]),
        ("huge.png", picture(2, 101), ["a"]),
        ("tiny.png", picture(3, 7), ["a"]),
        ("copy.png", good, ["new words"]),
        ("none.png", None, ["a"]),
        ("../pairs.json", None, ["a"]),
        ("mute.png", picture(4), ["", "\ud800"]),
        ("bare.png", picture(5), []),
    ]
    found = take(config(collect(tmp_path, records)), tmp_path / "out")
    assert found == [
        ("good.png", "caption", "duplicate"),
        ("good.png", "caption", "empty"),
        ("good.png", "caption", "too_long"),
        ("good.png", "caption", "control_characters"),
        ("cut.jpg", "image", "undecodable"),
        ("text.png", "image", "undecodable"),
        ("huge.png", "image", "oversized"),
        ("tiny.png", "image", "tiny"),
        ("copy.png", "image", "duplicate"),
        ("none.png", "image", "missing"),
        ("../pairs.json", "image", "unsafe_name"),
        ("mute.png", "caption", "empty"),
        ("mute.png", "caption", "control_characters"),
        ("mute.png", "image", "no_caption"),
        ("bare.png", "image", "no_caption"),
    ]
    dataset = open_dataset(tmp_path / "out")
    assert dataset.captions()["text"].to_pylist() == ["a ring"]
    counts = json.loads((tmp_path / "out" / "metrics.json").read_text())["ingest"]
    assert (counts["quarantined_images"], counts["quarantined_captions"]) == (9, 6)
    assert (counts["image_undecodable"], counts["caption_empty"]) == (2, 2)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"] == counts


def test_too_short_captions(tmp_path: Path) -> None:
    folder = collect(tmp_path, [("a.png", picture(1), ["ring", "a ring"])])
    found = take(config(folder, {"min_words": 2}), tmp_path / "out")
    assert found == [("a.png", "caption", "too_short")]


def test_too_much_in_quarantine(tmp_path: Path) -> None:
    records = [(f"{i}.png", picture(i) if i else b"bad", ["a"]) for i in range(10)]
    folder = collect(tmp_path, records)
    take(config(folder, {"max_quarantined": 0.1}), tmp_path / "enough")
    with pytest.raises(DataError, match=r"1 of 10 images .*undecodable: 1.*0\.05.*0\.png"):
        take(config(folder, {"max_quarantined": 0.05}), tmp_path / "out")
    captions = [("a.png", picture(1), ["a", "b", ""])]
    with pytest.raises(DataError, match=r"1 of 3 captions .*empty: 1"):
        take(config(collect(tmp_path / "c", captions), {"max_quarantined": 0.2}), tmp_path / "out2")


def test_nothing_passed(tmp_path: Path) -> None:
    folder = collect(tmp_path, [("a.png", None, ["a"])])
    with pytest.raises(DataError, match="1 of 1 images cannot be taken in"):
        take(config(folder), tmp_path / "out")


def test_malformed_annotations_are_found_before_any_image_is_touched(tmp_path: Path) -> None:
    folder = collect(tmp_path, [(f"{i}.png", picture(i), ["a"]) for i in range(4)])
    pairs = folder / "pairs.json"
    pairs.write_text(pairs.read_text()[:-20])
    with pytest.raises(DataError, match=r"pairs\.json, record 4"):
        take(config(folder, {}, images=str(folder / "no such folder")), tmp_path / "out")


def test_tar_cut_short(tmp_path: Path) -> None:
    draw_world(small_world(), tmp_path)
    tar = tmp_path / "web.tar"
    tar.write_bytes(tar.read_bytes()[:20_000])
    settings = config(tmp_path, {}, annotations=str(tmp_path / "web.json"), images=str(tar))
    with pytest.raises(DataError, match=r"web\.tar: .*cut short"):
        take(settings, tmp_path / "out")


def small_world() -> World:
    kinds = ("mismatch", "colour", "shape", "count", "relation", "boilerplate", "truncated")
    return World(
        seed=1,
        image_size=32,
        web=20,
        human=4,
        test=2,
        captions_per_image=3,
        noise=dict.fromkeys(kinds, 0.1),  # type: ignore[arg-type]
    )


def test_the_demo_world_passes_whole(tmp_path: Path) -> None:
    draw_world(small_world(), tmp_path)
    truths = {(t.source, t.text) for t in read_truth(tmp_path / "truth.jsonl")}
    for split, images, captions in (("web", 20, 20), ("human", 4, 12), ("test", 2, 6)):
        files = {"annotations": f"{tmp_path}/{split}.json", "images": f"{tmp_path}/{split}.tar"}
        assert take(config(tmp_path, {"max_words": 60}, **files), tmp_path / "out" / split) == []
        dataset = open_dataset(tmp_path / "out" / split)
        assert (dataset.num_images, dataset.num_captions) == (images, captions)
        source = {row["key"]: row["source"] for row in dataset.records().to_pylist()}
        texts = {(source[row["key"]], row["text"]) for row in dataset.captions().to_pylist()}
        assert texts <= truths


def test_mismatch_is_told_in_the_truth(tmp_path: Path) -> None:
    records = [(f"{i}.png", picture(i), [f"text  {i}", f"words {i}"]) for i in range(10)]
    folder = collect(tmp_path, records)
    take(config(folder, {}, mismatch=0.3, captions_per_image=1), tmp_path / "out")
    truths = read_truth(tmp_path / "out" / "truth.jsonl")
    dataset = open_dataset(tmp_path / "out")
    assert [t.text for t in truths] == dataset.captions()["text"].to_pylist()
    wrong = [t for t in truths if t.text != f"text {t.source.removesuffix('.png')}"]
    assert len(wrong) == 3
    assert {t.kind for t in wrong} == {"mismatch"}
    assert {t.kind for t in truths if t not in wrong} == {"clean"}


names = st.sampled_from([f"{i}.png" for i in range(6)])
texts = st.text(st.sampled_from("ab \n\0é"), max_size=8)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(names, st.lists(texts, max_size=4)), min_size=1, max_size=12),
    st.integers(1, 4),
)
def test_captions_stay_with_their_images(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, list[str]]], size: int
) -> None:
    folder = tmp_path_factory.mktemp("toy")
    known = [(f"{i}.png", picture(i), [f"good {i}"]) for i in range(6)]
    records = [*known, *((name, None, captions) for name, captions in pairs)]
    collect(folder, records)
    take(config(folder, {"shard_size": size}), folder / "out")
    dataset = open_dataset(folder / "out")
    assert sorted(dataset.records()["source"].to_pylist()) == [f"{i}.png" for i in range(6)]
    for shard in dataset.shards:
        stored, rows = ShardImages(shard), shard.read_records().to_pylist()
        value = {
            r["key"]: int(decode_image(stored.read(i), 256)[0, 0, 0]) for i, r in enumerate(rows)
        }
        for row in shard.read_captions().to_pylist():
            if row["text"].startswith("good"):
                assert row["text"] == f"good {value[row['key']]}"
        assert len(rows) <= size


def messy(folder: Path) -> Path:
    """Write a collection of two files whose blocks of three repeat images of each other."""
    pictures = [0, 1, 1, 2, 0, 3, None, 4, 5, 0, 0, 0, 6, 7, 2]
    captions = {2: ["", "text"], 3: [""], 5: ["a b c d e f g h", "text"], 8: []}
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for file, numbers in (("a", range(8)), ("b", range(8, 15))):
        pairs = []
        for i in numbers:
            if (value := pictures[i]) is not None:
                (folder / "images" / f"{i}.png").write_bytes(picture(value))
            pairs.append({"image": f"{i}.png", "caption": captions.get(i, [f"text {i}", ""])})
        (folder / "annotations" / f"{file}.json").write_text(json.dumps(pairs))
    return folder


@pytest.mark.parametrize("count", [1, 2, 3, 7])  # of six blocks
@pytest.mark.parametrize("mismatch", [0.0, 0.4])
def test_parts_make_the_bytes_of_the_whole(tmp_path: Path, count: int, mismatch: float) -> None:
    folder = messy(tmp_path)
    rules = config(folder, {}, annotations=str(folder / "annotations"), mismatch=mismatch)
    take(rules, tmp_path / "whole")
    out, run_dir = tmp_path / "out", tmp_path / "run"
    out.mkdir()
    for index in reversed(range(count)):
        ingest(rules, "toy", out, run_dir, NullTracker(), Part(index, count))
    assert not list(out.iterdir())
    times = {p: p.stat().st_mtime_ns for p in run_dir.glob("shards/0*")}
    assert len(times) == 6
    ingest(rules, "toy", out, run_dir, NullTracker())
    assert times == {p: p.stat().st_mtime_ns for p in run_dir.glob("shards/0*")}
    assert digest_directory(out) == digest_directory(tmp_path / "whole")
    open_dataset(out).verify()


def test_the_whole_does_what_a_part_left_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = messy(tmp_path)
    rules = config(folder, {}, annotations=str(folder / "annotations"))
    take(rules, tmp_path / "whole")
    (tmp_path / "out").mkdir()

    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    for part in (Part(1, 3), None):
        ingest(rules, "toy", tmp_path / "out", tmp_path / "run", NullTracker(), part)
    assert digest_directory(tmp_path / "out") == digest_directory(tmp_path / "whole")


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=14),
    st.integers(1, 5),
)
def test_what_is_taken_in_does_not_depend_on_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, images: list[tuple[int, bool]], size: int
) -> None:
    folder = tmp_path_factory.mktemp("toy")
    records: list[tuple[str, bytes | None, list[str]]] = [
        (f"{i}.png", picture(value), [f"text {i}" if fine else ""])
        for i, (value, fine) in enumerate([*images, (5, True)])
    ]
    collect(folder, records)
    found = []
    for shard_size in (size, 100):
        out = folder / f"out{shard_size}"
        take(config(folder, {"shard_size": shard_size}), out)
        dataset = open_dataset(out)
        dataset.verify()
        assert all(0 < shard.num_images <= shard_size for shard in dataset.shards)
        kept = [(row["key"], row["source"]) for row in dataset.records().to_pylist()]
        texts = dataset.captions().to_pylist()
        found.append((kept, texts, (out / "quarantine.jsonl").read_text()))
    assert found[0] == found[1]


def test_equal_collections_give_equal_bytes(tmp_path: Path) -> None:
    records = [(f"{i}.png", picture(i), [f"text {i}"]) for i in range(5)]
    for place in ("here", "there"):
        take(config(collect(tmp_path / place, records)), tmp_path / place / "out")
    assert digest_directory(tmp_path / "here/out") == digest_directory(tmp_path / "there/out")


PROGRAM = """
import json, resource, sys
from pathlib import Path
from blip.config import Ingest
from blip.data.ingest import ingest
from blip.errors import BlipError
from blip.stage import Job, Part, run_part, run_stage

folder, limit, part = Path(sys.argv[1]), int(sys.argv[3]), sys.argv[4]
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
config = Ingest(**json.loads(sys.argv[2]))
job = Job("ingest", folder / "web", {"data": (folder / "pairs.json",)}, {}, folder / "runs")
try:
    with run_part(job, Part.parse(part)) if part else run_stage(job) as stage:
        if stage:
            ingest(config, "toy", stage.out, stage.run_dir, stage.journal, stage.part)
except BlipError as error:
    sys.exit(f"error: {error}")
"""


def command(folder: Path, settings: Ingest, limit: int = 0, part: str = "") -> list[str]:
    document = json.dumps(settings.model_dump(mode="json"))
    return [sys.executable, "-c", PROGRAM, str(folder), document, str(limit), part]


def whole(folder: Path, number: int) -> bool:
    left = sorted(p.name for p in folder.iterdir())
    dataset = open_dataset(folder / "web")
    dataset.verify()
    return left == ["images", "pairs.json", "runs", "web"] and dataset.num_images == number


@pytest.fixture
def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def finished(folder: Path) -> dict[str, int]:
    """Give the blocks that are finished, and when."""
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("runs/ingest-*/shards/0*")}


def kill_on_the_way(folder: Path, line: list[str], environment: dict[str, str]) -> dict[str, int]:
    """Kill a command once it has finished a block; give what it had finished."""
    process = subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    before = finished(folder)
    while finished(folder) == before and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "web").exists()
    return finished(folder)


def noisy(folder: Path) -> Path:
    """Write a collection that takes a while."""
    noise = np.random.default_rng(0)
    data = [encode_png(noise.integers(0, 256, (90, 90, 3), np.uint8)) for _ in range(600)]
    return collect(folder, [(f"{i}.png", d, ["a"]) for i, d in enumerate(data)])


def test_killed_ingest_leaves_nothing_half(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = noisy(tmp_path)
    line = command(folder, config(folder, {"shard_size": 50}))
    kill_on_the_way(folder, line, environment)
    subprocess.run(line, check=True, env=environment, capture_output=True)
    assert whole(folder, 600)
    assert not finished(folder)


def test_parts_are_killed_and_run_at_once(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = noisy(tmp_path)
    rules = config(folder, {"shard_size": 50})
    lines = [command(folder, rules, part=part) for part in ("0/2", "1/2")]
    before = kill_on_the_way(folder, lines[0], environment)
    assert all(int(name) % 2 == 0 for name in before)
    lines.append(lines[0])  # as where a machine that was taken for lost comes back
    parts = [subprocess.Popen(line, env=environment) for line in lines]
    assert [process.wait() for process in parts] == [0, 0, 0]
    after = finished(folder)
    assert sorted(after) == [f"{number:06}" for number in range(12)]
    assert before.items() <= after.items()
    assert not (folder / "web").exists()
    processes = [subprocess.Popen(command(folder, rules), env=environment) for _ in range(1)]
    processes.append(subprocess.Popen(command(folder, rules, part="1/3"), env=environment))
    assert [process.wait() for process in processes] == [0, 0]
    assert whole(folder, 600)
    take(rules, tmp_path / "alone")
    assert digest_directory(folder / "web", frozenset({"stage.json"})) == digest_directory(
        tmp_path / "alone"
    )


def test_full_disk(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = collect(tmp_path, [(f"{i}.png", picture(i, 60), ["a"]) for i in range(8)])
    rules = config(folder, {"shard_size": 8})  # 90 kB of images; a file may have 40 kB
    line = command(folder, rules, limit=40_000)
    failed = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "cannot be written: File too large" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (folder / "web").exists()
    subprocess.run(command(folder, rules), check=True, env=environment, capture_output=True)
    assert whole(folder, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "annotations", "images"), [
    ("flickr8k", "flickr8k/captions.token.txt", "flickr8k/images"),
    ("blip", "flickr8k/blip_format.json", "flickr8k"),
    ("coco", "coco_photos/captions.json", "coco_photos/images"),
])  # fmt: skip
def test_real_photos(
    shared: Path, tmp_path: Path, form: str, annotations: str, images: str
) -> None:
    files = {"annotations": f"{shared}/data/{annotations}", "images": f"{shared}/data/{images}"}
    rules = {"max_words": 60, "max_pixels": 10**6, "shard_size": 500, "max_quarantined": 0.05}
    take(config(tmp_path, rules, format=form, **files), tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    dataset.verify()
    assert dataset.num_images == (76 if form == "coco" else 2100)
    assert set(dataset.records()["extension"].to_pylist()) == {"jpg"}
