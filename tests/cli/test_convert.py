from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from blip.batch import SpecialTokens
from blip.cli import app
from blip.config import PRESETS, load_config
from blip.errors import BlipError
from blip.models.blip import Blip
from blip.models.checkpoint import load_model, save_model

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A filter of ours with its vocabulary."""
    torch.manual_seed(0)
    special = SpecialTokens(pad=0, cls=2, sep=3, dec=7, enc=8)
    model = Blip(load_config(PRESETS / "demo.yaml").model, 64, 9, special, "retrieval")
    save_model(model, tmp_path / "ours")
    (tmp_path / "ours" / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return tmp_path


def blip(*words: object) -> str:
    """Run a verb in this process; give what it printed."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_to_salesforce_and_back(folder: Path) -> None:
    printed = blip("convert", folder / "ours", folder / "model.pth", "--to", "salesforce")
    made, wrote = printed.splitlines()
    assert made.startswith("momentum copies and queue: the model has none")
    assert wrote.startswith(f"wrote {folder / 'model.pth'}: retrieval, ")
    sizes = load_model(folder / "ours").config
    heads = ("--vision-heads", sizes.vision.num_heads, "--text-heads", sizes.text.num_heads)
    vocabulary = ("--vocabulary", folder / "ours" / "vocab.txt")
    source, out = folder / "model.pth", folder / "back"
    (wrote,) = blip("convert", source, out, "--to", "blip", *heads, *vocabulary).splitlines()
    back, ours = load_model(out).state_dict(), load_model(folder / "ours").state_dict()
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    assert (out / "vocab.txt").read_text().split() == PIECES
    assert (out / "momentum.safetensors").is_file()


def test_what_transformers_has_no_place_for_is_told(folder: Path) -> None:
    printed = blip("convert", folder / "ours", folder / "theirs", "--to", "huggingface")
    assert "temperature: left out, transformers has none" in printed.splitlines()
    with pytest.raises(BlipError, match="theirs: is there already"):
        blip("convert", folder / "ours", folder / "theirs", "--to", "huggingface")
