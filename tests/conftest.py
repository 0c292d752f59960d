"""What the tests share: where the reference material lies, and a calm environment."""

import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from benchmarks.s3 import environment, serve
from tests.ports import free_port

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")  # which it sends from a process that outlives it

# A background job of a shell ignores Ctrl-C, and so would every process that the tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Whatever the day and the machine: the same examples, no deadlines. `--hypothesis-profile default` draws others.
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _same_chance() -> None:
    """Begin with the same state of torch's generator, whichever tests ran before."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """Take back what commands that run in this process make of the package's log."""
    logger = logging.getLogger("blip")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture(autouse=True)
def feature_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Keep image tokens in a folder of this test's own."""
    folder = tmp_path_factory.mktemp("cache") / "features"
    monkeypatch.setenv("BLIP_FEATURE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the reference outputs and real photos; tests that need it are skipped without."""
    folder = Path(os.environ.get("BLIP_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip("needs the reference material: set BLIP_SHARED")
    return folder


@pytest.fixture(scope="session")
def official() -> Path:
    """Folder of pycocoevalcap, whose Java tools can be run; tests that need it are skipped without."""
    module = find_spec("pycocoevalcap")
    if shutil.which("java") is None or module is None or not module.submodule_search_locations:
        pytest.skip("needs Java and pycocoevalcap")
    return Path(module.submodule_search_locations[0])


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder and the address of the S3 server that serves its folders as buckets."""
    folder = tmp_path_factory.mktemp("s3")
    with serve(folder, free_port()) as address:
        yield folder, address


@pytest.fixture
def bucket(
    s3_server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The folder behind `s3://bucket`, of which local copies are kept in `tmp_path / "copies"`."""
    folder, address = s3_server
    for name, value in environment(address).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BLIP_SHARD_CACHE", str(tmp_path / "copies"))
    (folder / "bucket").mkdir()
    yield folder / "bucket"
    shutil.rmtree(folder / "bucket")
