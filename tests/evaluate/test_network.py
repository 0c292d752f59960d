"""A checkpoint that is opened to be measured or used."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from blip.data.text import VOCABULARY
from blip.errors import CheckpointError
from blip.evaluate.network import open_network
from blip.models.blip import Parts
from blip.models.checkpoint import load_model, save_model


def test_weights_that_are_no_numbers_are_named(
    random_model: Callable[[Parts], Path], tmp_path: Path
) -> None:
    """Before anything is read: among scores that are no numbers, every target would rank first."""
    whole = random_model("retrieval")
    open_network(whole, "matching", 1)
    model = load_model(whole)
    model.match_head.bias.data[1] = float("nan")
    save_model(model, tmp_path)
    shutil.copy(whole / VOCABULARY, tmp_path)
    with pytest.raises(CheckpointError, match=r"match_head\.bias holds what is not a number"):
        open_network(tmp_path, "matching", 1)
