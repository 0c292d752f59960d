import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def official() -> Path:
    """Give the folder of pycocoevalcap, whose Java tools can be run."""
    module = find_spec("pycocoevalcap")
    if shutil.which("java") is None or module is None or not module.submodule_search_locations:
        pytest.skip("needs Java and pycocoevalcap")
    return Path(module.submodule_search_locations[0])
