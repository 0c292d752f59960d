"""Image tokens are computed once; what is read is what would be computed, whatever is kept."""

import os
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.errors import ConfigError
from blip.evaluate.captioning import evaluate_captioning
from blip.evaluate.evaluation_set import EvaluationSet, Photos, open_evaluation_set
from blip.evaluate.features import FeatureStore, image_tokens, open_store
from blip.evaluate.retrieval import evaluate_retrieval
from blip.files import digest_directory
from blip.models.blip import Blip
from blip.models.checkpoint import load_model
from blip.tracker import NullTracker


@pytest.fixture
def model(random_model) -> Blip:
    return load_model(random_model("retrieval"), "retrieval").eval()


def tokens_of(model: Blip, images: EvaluationSet, size: int = 5, **changes) -> torch.Tensor:
    found = list(image_tokens(model, images, size, "fp32", **changes))
    assert [row for rows, _ in found for row in rows] == list(changes.get("rows", range(12)))
    return torch.cat([tokens for _, tokens in found])


def blocks(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in cache.iterdir()} if cache.exists() else {}


def test_kept_tokens_are_those_that_would_be_computed(
    test_set, model: Blip, feature_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_evaluation_set(test_set[1])
    with torch.inference_mode():
        spans = [range(len(images))[start : start + 5] for start in range(0, len(images), 5)]
        pixels = [images.pixels(span, model.image_size) for span in spans]
        plain = torch.cat([model.encode_image(some) for some in pixels])
    first = tokens_of(model, images)
    kept = blocks(feature_cache)
    assert len(kept) == 3

    def refuse(*_: object) -> None:
        raise AssertionError("an image is read")

    with monkeypatch.context() as patch:
        patch.setattr(EvaluationSet, "pixels", refuse)
        assert torch.equal(tokens_of(model, images), first)
        assert torch.equal(tokens_of(model, images, rows=range(5, 12)), first[5:])
    assert torch.equal(first, plain)
    assert blocks(feature_cache) == kept
    monkeypatch.setenv("BLIP_FEATURE_CACHE_GB", "0")
    assert torch.equal(tokens_of(model, images), first)


def test_photos_are_known_by_their_bytes(model: Blip, feature_cache: Path, tmp_path: Path) -> None:
    from blip.data.drawing import encode_png

    pixels = torch.arange(3 * 64 * 64).reshape(64, 64, 3).to(torch.uint8)
    for name in ("one.png", "other.png"):
        (tmp_path / name).write_bytes(encode_png(pixels.numpy()))

    def tokens(name: str) -> torch.Tensor:
        ((rows, found),) = image_tokens(model, Photos([tmp_path / name]), 4, "fp32")
        assert rows == range(1)
        return found

    first = tokens("one.png")
    assert torch.equal(tokens("other.png"), first)
    assert len(blocks(feature_cache)) == 1
    (tmp_path / "one.png").write_bytes(encode_png(255 - pixels.numpy()))
    assert not torch.equal(tokens("one.png"), first)
    assert len(blocks(feature_cache)) == 2


def test_what_decides_the_tokens_names_them(
    test_set, model: Blip, feature_cache: Path, random_model
) -> None:
    images = open_evaluation_set(test_set[1])
    tokens_of(model, images, 12)
    tokens_of(model, images, 12)
    assert len(blocks(feature_cache)) == 1
    list(image_tokens(model, images, 12, "bf16"))
    assert len(blocks(feature_cache)) == 2
    captioner = load_model(random_model("captioning"), "captioning").eval()
    captioner.vision.load_state_dict(model.vision.state_dict())
    tokens_of(captioner, images, 12)  # another model with the same image encoder
    assert len(blocks(feature_cache)) == 2
    with torch.no_grad():
        captioner.vision.cls_token[0, 0, 0] += 1e-3
    tokens_of(captioner, images, 12)
    assert len(blocks(feature_cache)) == 3


def test_a_damaged_block_is_computed_again(test_set, model: Blip, feature_cache: Path) -> None:
    images = open_evaluation_set(test_set[1])
    first = tokens_of(model, images, 12)
    (block,) = feature_cache.iterdir()
    block.write_bytes(block.read_bytes()[:-100])
    assert torch.equal(tokens_of(model, images, 12), first)
    assert torch.equal(tokens_of(model, images, 12), first)
    assert len(blocks(feature_cache)) == 1


@pytest.mark.parametrize("task", ["retrieval", "captioning"])
def test_evaluations_do_not_depend_on_what_is_kept(
    test_set, random_model, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data = test_set
    evaluate = evaluate_retrieval if task == "retrieval" else evaluate_captioning
    checkpoint, found = random_model(task), set()
    for number, limit in enumerate(("0", "1", "1")):
        monkeypatch.setenv("BLIP_FEATURE_CACHE_GB", limit)
        out = tmp_path / str(number)
        out.mkdir()
        evaluate(config, checkpoint, open_evaluation_set(data), out, NullTracker())
        found.add(digest_directory(out))
    assert len(found) == 1


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 300)), max_size=12))
def test_the_store_is_bounded(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    for number, (name, size) in enumerate(writes):
        store = FeatureStore(folder, 1000, time.time() + 1)  # as a process that comes later
        tensor = torch.full((size,), number, dtype=torch.uint8)
        if store.read(str(name)) is None:
            store.write(str(name), tensor)
            found = store.read(str(name))
            assert found is None or torch.equal(found, tensor)
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 1000


def test_the_oldest_makes_room_but_not_what_is_in_use(tmp_path: Path) -> None:
    tensor, began = torch.zeros(400, dtype=torch.uint8), time.time() - 1
    store = FeatureStore(tmp_path, 1700, began)
    for age, name in ((300, "a"), (200, "b"), (100, "c")):
        store.write(name, tensor)
        os.utime(tmp_path / f"{name}.safetensors", (began - age, began - age))
    assert store.read("a") is not None
    store.write("d", tensor)
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "c", "d"}
    for name in "efg":
        store.write(name, tensor)
    assert {path.stem for path in tmp_path.iterdir()} == {"a", "d", "e"}


def test_a_full_disk_only_ends_the_keeping(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("")
    store = FeatureStore(tmp_path / "file", 10**6, 0.0)  # where nothing can be written
    for _ in range(2):
        store.write("a", torch.zeros(4))
    assert store.read("a") is None
    assert caplog.text.count("no more image tokens are kept") == 1


def test_the_limit_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_FEATURE_CACHE_GB", "much")
    with pytest.raises(ConfigError, match="BLIP_FEATURE_CACHE_GB=much: must be a number"):
        open_store()
