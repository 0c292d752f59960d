"""Pinned data: checked against their pin, kept in the cache, made again, or left out."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from blip.errors import DataError
from blip.integrations import pinning, versioning
from blip.integrations.experiment import open_experiment

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # pygtrie within DVC

WORLD = Path("world")
PIN = "world.dvc"


@pytest.fixture
def pinned(toy: Any) -> Any:
    """The toy project with generated data that are pinned."""
    WORLD.mkdir()
    (WORLD / "web.json").write_text("[1]")
    pinning.pin_data(WORLD, "settings a")
    return toy


def rewrite(text: str) -> None:
    file = WORLD / "web.json"
    file.unlink()  # it may be a link into the cache
    file.write_text(text)


def test_equal_settings_must_give_equal_bytes(pinned: Any) -> None:
    assert versioning.read_graph()[PIN].made_from == "settings a"
    pinning.pin_data(WORLD, "settings a")
    rewrite("[2]")
    with pytest.raises(DataError, match=r"same settings gave other bytes than world.dvc pins"):
        pinning.pin_data(WORLD, "settings a")
    before = Path(PIN).read_bytes()
    pinning.pin_data(WORLD, "settings b")
    assert versioning.read_graph()[PIN].made_from == "settings b"
    assert Path(PIN).read_bytes() != before


def test_data_and_cache_give_each_other_what_they_lack(pinned: Any) -> None:
    assert pinning.keep_data(PIN) == "cached"
    shutil.rmtree(WORLD)
    assert pinning.keep_data(PIN) == "restored"
    assert (WORLD / "web.json").read_text() == "[1]"
    shutil.rmtree(".dvc/cache")
    assert pinning.keep_data(PIN) == "cached"
    shutil.rmtree(WORLD)
    assert pinning.keep_data(PIN) == "restored"
    rewrite("[2]")
    assert pinning.keep_data(PIN) == "changed"
    shutil.rmtree(WORLD)
    shutil.rmtree(".dvc/cache")
    assert pinning.keep_data(PIN) == "missing"


def test_an_experiment_with_data_of_its_own_leaves_the_generated_ones_out(pinned: Any) -> None:
    subprocess.run(["git", "add", PIN], check=True)
    with open_experiment(pinned.root, overrides={"world": None}):
        assert not Path(PIN).exists()
        assert PIN not in versioning.read_graph()
    assert Path(PIN).exists()
    with open_experiment(pinned.root, name="mine"):
        assert (WORLD / "web.json").read_text() == "[1]"
