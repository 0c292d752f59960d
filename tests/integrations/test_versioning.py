"""What DVC says of stages, and how its errors are told."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blip.errors import DataError, IntegrationError
from blip.integrations import pinning, sharing, versioning

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # pygtrie within DVC


@pytest.mark.parametrize(
    "call",
    [
        versioning.read_graph,
        versioning.survey,
        lambda: versioning.prepare("select"),
        lambda: versioning.stage_digest("select"),
        lambda: versioning.record("select", {}),
        versioning.checkout,
        lambda: versioning.save_experiment("name", []),
        lambda: pinning.keep_data("data.dvc"),
        sharing.fetch_run_cache,
        lambda: sharing.push(["select"]),
        lambda: sharing.pull(["out"]),
        sharing.remote_url,
        lambda: sharing.put(b"", "name"),
        lambda: sharing.share_cache(Path.cwd()),
    ],
)
def test_an_error_of_dvc_is_one_message(
    call: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IntegrationError, match=r"^DVC: .*not inside of a DVC repository"):
        call()


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
