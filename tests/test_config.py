"""The configuration: complete, typed, and clear about what is wrong."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from blip.config import (
    PRESETS,
    check_config,
    dump_config,
    load_config,
    merge,
    parse_overrides,
    read_yaml,
)
from blip.errors import ConfigError

DEMO = PRESETS / "demo.yaml"


@pytest.fixture(autouse=True)
def _folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_DATA", "/somewhere")
    monkeypatch.setenv("BLIP_SHARED", "/elsewhere")


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_preset_is_complete_and_named_after_its_file(preset: Path) -> None:
    config = load_config(preset)
    assert config.name == preset.stem
    assert check_config(dump_config(config), preset) == config


def test_params_yaml_is_the_demo_preset() -> None:
    root = PRESETS.parents[1]
    assert load_config(root / "params.yaml") == load_config(DEMO)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "capfilt.treshold=1",
            r"no key 'capfilt.treshold' to override; did you mean 'capfilt.threshold'",
        ),
        ("capfilt.threshold=1.5", r"capfilt.threshold: .*less than or equal to 1"),
        ("pretrain.steps=many", r"pretrain.steps: .*valid integer.*'many'"),
        ("pretrain.epochs=3", r"pretrain: .*give steps or epochs"),
        ("model.vision.num_heads=5", r"width 96 is not a multiple of num_heads 5"),
        ("pretrain.image_size=65", r"image_size 65 is not a multiple of patch_size 16"),
        ("world.noise.mismatch=0.9", r"the shares add up to"),
        ("name=Demo", r"name: String should match pattern"),
    ],
)
def test_wrong_values_name_key_value_and_rule(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(DEMO, parse_overrides([override]))


def test_unknown_key_in_the_file_is_refused(tmp_path: Path) -> None:
    document = read_yaml(DEMO)
    document["pretrain"]["learning_rate"] = 1
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match=r"params.yaml: pretrain.learning_rate: Extra inputs"):
        load_config(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("a: [1", "is not YAML"),
        ("a: 1\nb: {c: 1, c: 2}", "is not YAML: key 'c' stands twice .* line 2"),
        ("- 1\n", "must hold a mapping, got list"),
    ],
)
def test_unreadable_file_is_one_message(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_missing_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLIP_SHARED")
    with pytest.raises(ConfigError, match="needs the environment variable BLIP_SHARED"):
        load_config(PRESETS / "flickr8k.yaml")


@pytest.mark.parametrize("assignment", ["steps", "=3", "a=[1"])
def test_override_that_is_no_assignment_is_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        parse_overrides([assignment])


@given(st.floats(min_value=0.0, max_value=1.0))
def test_override_reaches_its_key_and_no_other(threshold: float) -> None:
    document = read_yaml(DEMO)
    merged = merge(document, parse_overrides([f"capfilt.threshold={threshold!r}"]), DEMO)
    assert merged["capfilt"]["threshold"] == threshold
    merged["capfilt"]["threshold"] = document["capfilt"]["threshold"]
    assert merged == document
