"""Pre-training from a ViT and a BERT, as timm and transformers write them, by `blip pretrain`."""

from pathlib import Path

import pytest
import torch

from blip.config import PRESETS, load_config
from blip.files import digest_file, read_json
from blip.models.checkpoint import load_model
from blip.models.vit import resize_position_embedding
from tests.cli.conftest import TINY, Project

pytestmark = pytest.mark.slow

SIZES = load_config(PRESETS / "demo.yaml").model
PRETRAIN = "pretrain --data datasets/human --tokenizer tokenizer --out models"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, raw: Path) -> Project:
    """A project whose model begins with a tiny ViT of 32 pixels and a tiny BERT of 60 tokens."""
    from timm.models.vision_transformer import VisionTransformer
    from transformers import BertConfig, BertForMaskedLM

    path = tmp_path_factory.mktemp("weights")
    vision, text = SIZES.vision, SIZES.text
    vit = VisionTransformer(
        img_size=32,
        patch_size=vision.patch_size,
        embed_dim=vision.width,
        depth=vision.num_layers,
        num_heads=vision.num_heads,
        num_classes=7,
    )
    torch.save({"model": vit.state_dict()}, path / "deit.pth")
    bert = BertConfig(
        vocab_size=60,
        hidden_size=text.width,
        num_hidden_layers=text.num_layers,
        num_attention_heads=text.num_heads,
        intermediate_size=text.intermediate,
        max_position_embeddings=text.max_positions,
    )
    BertForMaskedLM(bert).save_pretrained(path / "bert")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    words += ["red", "blue", "green"]
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    (path / "data").symlink_to(raw)
    overrides = {
        **TINY,
        "tokenizer.vocabulary": "vocab.txt",
        "model.vision_weights": "deit.pth",
        "model.text_weights": "bert",
    }
    project = Project(path, overrides)
    project.run("ingest human --out datasets/human")
    project.run("tokenizer --data datasets/human --out tokenizer")
    return project


def test_training_begins_with_the_weights(weights: Project) -> None:
    still = "--set pretrain.optimizer.lr=0.0 --set pretrain.optimizer.warmup_lr=0.0"
    weights.run(f"{PRETRAIN}/still {still} --set pretrain.optimizer.min_lr=0.0")
    folder = weights.path / "models/still"
    files = {"vision_weights": "deit.pth", "text_weights": "bert/model.safetensors"}
    inputs = read_json(folder / "stage.json")["inputs"]
    for role, file in files.items():
        assert inputs[role] == [digest_file(weights.path / file)]
    ours = load_model(folder).state_dict()
    vit = torch.load(weights.path / "deit.pth", weights_only=True)["model"]
    assert torch.equal(
        ours["vision.blocks.2.attention.qkv.weight"], vit["blocks.2.attn.qkv.weight"]
    )
    positions = ours["vision.position_embedding"]
    expected = resize_position_embedding(vit["pos_embed"], positions.shape[1])
    torch.testing.assert_close(positions, expected, atol=0, rtol=0)


def test_training_goes_on_from_the_weights(weights: Project) -> None:
    folder, file = weights.path / "models/moving", weights.path / "deit.pth"
    weights.run(f"{PRETRAIN}/moving")
    first = digest_file(folder / "model.safetensors")
    assert read_json(folder / "metrics.json")["training"]["steps"] == TINY["pretrain.steps"]
    content = file.read_bytes()
    state = torch.load(file, weights_only=True)["model"]
    state["blocks.0.mlp.fc1.weight"] *= 2
    torch.save(state, file)  # the same name, other weights: the model is not up to date
    weights.run(f"{PRETRAIN}/moving")
    assert digest_file(folder / "model.safetensors") != first
    file.write_bytes(content)
    weights.run(f"{PRETRAIN}/moving")
    assert digest_file(folder / "model.safetensors") == first


def test_weights_that_are_not_there_are_one_line(weights: Project) -> None:
    printed = weights.run(f"{PRETRAIN}/none --set model.text_weights=bert/nothing.bin", code=2)
    assert printed.splitlines() == [
        "blip: model.text_weights 'bert/nothing.bin': no such file: "
        "name one that exists, or a model on the hub"
    ]
    assert not (weights.path / "models/none").exists()
    printed = weights.run(f"{PRETRAIN}/none --set model.text.num_layers=1", code=2)
    assert (
        "bert/model.safetensors: does not fit the configured model: unexpected bert.enc" in printed
    )
