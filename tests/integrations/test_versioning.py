"""Pinned data: checked against their pin, kept in the cache, made again, or left out."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from blip.errors import DataError, IntegrationError
from blip.integrations import versioning
from blip.integrations.experiment import open_experiment

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # pygtrie within DVC

WORLD = Path("world")
PIN = "world.dvc"


@pytest.fixture
def pinned(toy: Any) -> Any:
    """The toy project with generated data that are pinned."""
    WORLD.mkdir()
    (WORLD / "web.json").write_text("[1]")
    versioning.pin_data(WORLD, "settings a")
    return toy


def rewrite(text: str) -> None:
    file = WORLD / "web.json"
    file.unlink()  # it may be a link into the cache
    file.write_text(text)


def test_equal_settings_must_give_equal_bytes(pinned: Any) -> None:
    assert versioning.read_graph()[PIN].made_from == "settings a"
    versioning.pin_data(WORLD, "settings a")
    rewrite("[2]")
    with pytest.raises(DataError, match=r"same settings gave other bytes than world.dvc pins"):
        versioning.pin_data(WORLD, "settings a")
    before = Path(PIN).read_bytes()
    versioning.pin_data(WORLD, "settings b")
    assert versioning.read_graph()[PIN].made_from == "settings b"
    assert Path(PIN).read_bytes() != before


def test_data_and_cache_give_each_other_what_they_lack(pinned: Any) -> None:
    assert versioning.keep_data(PIN) == "cached"
    shutil.rmtree(WORLD)
    assert versioning.keep_data(PIN) == "restored"
    assert (WORLD / "web.json").read_text() == "[1]"
    shutil.rmtree(".dvc/cache")
    assert versioning.keep_data(PIN) == "cached"
    shutil.rmtree(WORLD)
    assert versioning.keep_data(PIN) == "restored"
    rewrite("[2]")
    assert versioning.keep_data(PIN) == "changed"
    shutil.rmtree(WORLD)
    shutil.rmtree(".dvc/cache")
    assert versioning.keep_data(PIN) == "missing"


def test_an_experiment_with_data_of_its_own_leaves_the_generated_ones_out(pinned: Any) -> None:
    subprocess.run(["git", "add", PIN], check=True)
    with open_experiment(pinned.root, overrides={"world": None}):
        assert not Path(PIN).exists()
        assert PIN not in versioning.read_graph()
    assert Path(PIN).exists()
    with open_experiment(pinned.root, name="mine"):
        assert (WORLD / "web.json").read_text() == "[1]"


def test_an_error_of_dvc_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IntegrationError, match=r"^DVC: .*not inside of a DVC repository"):
        versioning.read_graph()


def test_the_digest_of_a_stage_is_what_prepare_says_and_changes_nothing(finished_toy: Any) -> None:
    finished_toy.set("capfilt.threshold", 0.25)
    before = {path: path.read_bytes() for path in Path.cwd().rglob("*") if keeps(path)}
    digest = versioning.stage_digest("select")
    assert {path: path.read_bytes() for path in Path.cwd().rglob("*") if keeps(path)} == before
    assert len(digest) == 64
    prepared = versioning.prepare("select")
    assert (prepared.state, prepared.key) == ("stale", digest)
    finished_toy.set("capfilt.threshold", 0.75)
    assert versioning.stage_digest("select") != digest
    shutil.rmtree("out/left")
    with pytest.raises(DataError, match=r"select needs out/left, which is not there"):
        versioning.stage_digest("select")


def keeps(path: Path) -> bool:
    """Whether a file is the user's, or DVC's cache: all but its own notes."""
    return path.is_file() and ".dvc/tmp" not in path.as_posix()
