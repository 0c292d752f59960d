"""The demo world: the same bytes everywhere, true captions, noise of the shares asked for."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from blip.config import World
from blip.data.statements import describes, judge
from blip.data.truth import Truth, read_truth
from blip.data.world import draw_world
from blip.errors import ConfigError
from blip.files import digest_directory

NOISE = {
    "mismatch": 0.30,
    "colour": 0.08,
    "shape": 0.06,
    "count": 0.03,
    "relation": 0.03,
    "boilerplate": 0.09,
    "truncated": 0.05,
}
SMALL = {
    "seed": 7,
    "image_size": 64,
    "web": 200,
    "human": 8,
    "test": 12,
    "captions_per_image": 5,
    "noise": NOISE,
}
# A change of this digest is a change of the default data: data.dvc pins it too.
PINNED = "dbe51c9043fb3047445835b6ba69183c3ecf1020f721e7e76e490b22c1d89a3c"

PROGRAM = """
import json, sys
from pathlib import Path
from blip.config import World
from blip.data.world import draw_world
draw_world(World(**json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    draw_world(World(**SMALL), out)
    return out


@pytest.fixture(scope="module")
def truths(world: Path) -> list[Truth]:
    return read_truth(world / "truth.jsonl")


def test_digest_is_pinned(world: Path) -> None:
    assert digest_directory(world) == PINNED


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_draws_the_same(world: Path, tmp_path: Path, hash_seed: str) -> None:
    environment = os.environ | {
        "PYTHONHASHSEED": hash_seed,
        "LC_ALL": "C",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-c", PROGRAM, json.dumps(SMALL), str(tmp_path)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert digest_directory(tmp_path) == digest_directory(world)


def test_files(world: Path) -> None:
    splits = ("human", "test", "web")
    names = [f"{s}.{kind}" for s in splits for kind in ("json", "tar")]
    assert sorted(p.name for p in world.iterdir()) == sorted([*names, "truth.jsonl"])
    for split in splits:
        pairs = json.loads((world / f"{split}.json").read_text())
        with tarfile.open(world / f"{split}.tar") as tar:
            assert [m.name for m in tar] == [pair["image"] for pair in pairs]
            assert len(pairs) == SMALL[split]
            data = tar.extractfile(pairs[0]["image"]).read()  # type: ignore[union-attr]
        assert Image.open(io.BytesIO(data)).size == (64, 64)
        kind = str if split == "web" else list
        assert all(isinstance(pair["caption"], kind) for pair in pairs)


def test_people_tell_the_truth_in_different_words(world: Path, truths: list[Truth]) -> None:
    scenes = {t.source: t.scene for t in truths}
    for split in ("human", "test"):
        for pair in json.loads((world / f"{split}.json").read_text()):
            texts = pair["caption"]
            assert len(set(texts)) == len(texts) == 5
            assert all(describes(scenes[pair["image"]], text) for text in texts)  # type: ignore[arg-type]


def test_noise_has_its_shares_and_is_wrong(world: Path, truths: list[Truth]) -> None:
    web = [t for t in truths if t.source.startswith("web")]
    kinds = Counter(t.kind for t in web)
    assert {kind: kinds[kind] / 200 for kind in NOISE} == NOISE
    pairs = json.loads((world / "web.json").read_text())
    assert [(t.source, t.text) for t in web] == [(p["image"], p["caption"]) for p in pairs]
    for t in web:
        assert t.scene is not None
        match t.kind:
            case "clean":
                assert describes(t.scene, t.text)
            case "mismatch":
                assert not describes(t.scene, t.text)
            case "boilerplate":
                assert judge(t.scene, t.text) == {}
            case "colour" | "shape" | "count" | "relation":
                assert judge(t.scene, t.text)[t.kind] is False


def test_pictures_do_not_depend_on_the_noise(tmp_path: Path, world: Path) -> None:
    draw_world(World(**{**SMALL, "noise": dict.fromkeys(NOISE, 0.0)}), tmp_path)
    assert (tmp_path / "web.tar").read_bytes() == (world / "web.tar").read_bytes()
    assert {t.kind for t in read_truth(tmp_path / "truth.jsonl")} == {"clean"}


def test_vocabulary_is_small(truths: list[Truth]) -> None:
    words = {w for t in truths for w in t.text.lower().replace(",", " ").split() if w.isalpha()}
    assert 100 < len(words) < 250


def test_other_seed_other_world(tmp_path: Path, world: Path) -> None:
    draw_world(World(**{**SMALL, "seed": -1}), tmp_path)
    assert (tmp_path / "test.tar").read_bytes() != (world / "test.tar").read_bytes()


def test_too_small_worlds(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"world\.image_size is 16"):
        draw_world(World(**{**SMALL, "image_size": 16}), tmp_path)
    noise = {**dict.fromkeys(NOISE, 0.0), "mismatch": 1.0}
    with pytest.raises(ConfigError, match=r"world\.web is 1"):
        draw_world(World(**{**SMALL, "web": 1, "noise": noise}), tmp_path)
