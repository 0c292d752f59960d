"""The toy project of the integrations, and one Prefect server for the whole session."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.server import Server

_spec = importlib.util.spec_from_file_location(
    "toy_project", Path(__file__).parents[1] / "integrations" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_toy_project = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_toy_project)
toy_template, toy = _toy_project.toy_template, _toy_project.toy


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real Prefect server of its own, on a free loopback port."""
    server = Server(tmp_path_factory.mktemp("prefect"))
    try:
        server.start()
        yield server.url
    finally:
        server.stop()
