"""The form of overrides: what it takes, what it refuses, and that it overrides as `blip run --set` does."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.utilities.schema_tools.validation import ValidationError as SubmissionError
from prefect.utilities.schema_tools.validation import validate
from pydantic import TypeAdapter, ValidationError

from blip.config import PRESETS, check_config, load_config, merge, parse_overrides, read_yaml
from blip.errors import ConfigError
from flows.experiment import experiment
from flows.form import Overrides, dotted

FORM: TypeAdapter[Any] = TypeAdapter(Overrides)
DEMO = PRESETS / "demo.yaml"
DOCUMENT = read_yaml(DEMO)
OTHER = read_yaml(PRESETS / "base_14m.yaml")  # every task, and numbers of its own
HELD_OUT = {"every": 50, "batches": 2, "metric": "loss", "best": "lowest", "patience": 3}


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or prefix.endswith("epoch_splits."):  # a value of free keys
        return {prefix[:-1]: node}
    return {
        k: v for key, inner in node.items() for k, v in leaves(inner, f"{prefix}{key}.").items()
    }


def submit(overrides: dict[str, Any]) -> None:
    """Do what the server does with the parameters of a new flow run."""
    validate({"overrides": overrides}, experiment.parameters.model_dump(), raise_on_error=True)


def overridden(overrides: dict[str, Any]) -> Any:
    submit(overrides)
    return check_config(merge(DOCUMENT, dotted(FORM.validate_python(overrides)), DEMO), DEMO)


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_of_every_preset_is_in_the_form(preset: Path) -> None:
    for key, value in leaves(read_yaml(preset)).items():
        assert json.loads(json.dumps(dotted(FORM.validate_python(nested(key, value))))) == {
            key: value
        }


def test_a_key_has_its_type_and_bounds_and_no_default() -> None:
    schema = FORM.json_schema()
    text = json.dumps(schema)
    assert '"default":' not in text
    assert '"required":' not in text
    sections = schema["$defs"]
    threshold = sections["CapFilt"]["properties"]["threshold"]
    assert (threshold["type"], threshold["minimum"], threshold["maximum"]) == ("number", 0, 1)
    assert sections["Pretrain"]["properties"]["batch_size"]["exclusiveMinimum"] == 0
    assert {"type": "null"} in sections["Pretrain"]["properties"]["steps"]["anyOf"]
    assert sections["Optimizer"]["properties"]["schedule"]["enum"][0] == "cosine"
    assert '"type": "boolean"' not in text  # Prefect's page would send false for each
    assert sections["Optimizer"]["properties"]["decay_all"]["enum"] == [True, False]
    assert "AdamW" in sections["Optimizer"]["description"]
    assert all(section["additionalProperties"] is False for section in sections.values())


@pytest.mark.parametrize(
    ("overrides", "path", "rule"),
    [
        ({"capfit": {}}, "capfit", "not permitted"),
        ({"capfilt": {"treshold": 0.7}}, "capfilt.treshold", "not permitted"),
        ({"capfilt": {"threshold": 1.5}}, "capfilt.threshold", "less than or equal to 1"),
        ({"capfilt": {"threshold": None}}, "capfilt.threshold", "valid number"),
        ({"capfilt": 0.7}, "capfilt", "valid dictionary"),
        ({"finetune": {"vqa": {"steps": 0}}}, "finetune.vqa.steps", "greater than 0"),
        ({"ingest": {"sources": {"web": {"limit": 0}}}}, "ingest.sources.web.limit", "than 0"),
        ({"pretrain": {"compile": "maybe"}}, "pretrain.compile", "valid boolean"),
        ({"pretrain": {"sharding": "zero"}}, "pretrain.sharding", "'ddp' or 'fsdp'"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_path(
    overrides: dict[str, Any], path: str, rule: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        FORM.validate_python(overrides)
    (error,) = refused.value.errors()
    assert ".".join(str(part) for part in error["loc"]) == path
    assert rule in error["msg"]
    with pytest.raises(SubmissionError, match=path.rsplit(".", 1)[-1]):
        submit(overrides)


@given(st.data())
def test_what_is_set_and_nothing_else_overrides_as_dotted_keys_do(data: st.DataObject) -> None:
    other = leaves(OTHER)
    keys = sorted(leaves(DOCUMENT).keys() & other.keys())
    chosen = data.draw(st.lists(st.sampled_from(keys), unique=True, max_size=8))
    overrides: dict[str, Any] = {}
    for key in chosen:
        node = overrides
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = other[key]
    flat = json.loads(json.dumps(dotted(FORM.validate_python(overrides))))
    expected = {key: other[key] for key in chosen}
    assert merge(DOCUMENT, flat, DEMO) == merge(DOCUMENT, expected, DEMO)


def test_null_is_a_value_and_an_absent_key_is_none() -> None:
    assert overridden({"evaluate": {"truth": None}}).evaluate.truth is None
    assert overridden({"evaluate": {}}) == load_config(DEMO)
    assert overridden({"world": None}).world is None
    assert overridden({"world": {}}) == load_config(DEMO)


def test_a_section_in_part_merges_and_a_plain_value_replaces() -> None:
    limited = overridden({"ingest": {"sources": {"web": {"limit": 5}}}})
    assert limited == load_config(DEMO, parse_overrides(["ingest.sources.web.limit=5"]))
    splits = {"pretrain": {"pairs": {"epoch_splits": {"laion": 5}}}}
    assert overridden(splits).pretrain.pairs.epoch_splits == {"laion": 5}
    assert dotted(splits) == {"pretrain.pairs.epoch_splits": {"laion": 5}}


def test_a_section_that_is_not_there_is_given_whole() -> None:
    whole = overridden({"pretrain": {"held_out": HELD_OUT}})
    assert whole.pretrain.held_out.model_dump() == HELD_OUT
    web = DOCUMENT["ingest"]["sources"]["web"]
    assert overridden({"ingest": {"sources": {"web": web}}}) == load_config(DEMO)
    with pytest.raises(ConfigError, match=r"no key 'pretrain.held_out.every'"):
        overridden({"pretrain": {"held_out": {"every": 50}}})


def test_a_dotted_key_sets_its_value_as_set_does() -> None:
    web = DOCUMENT["ingest"]["sources"]["web"]
    only = overridden({"ingest.sources": {"web": web}, "capfilt": {"threshold": 0.7}})
    assert set(only.ingest.sources) == {"web"}
    assert only.capfilt.threshold == 0.7
    with pytest.raises(ConfigError, match=r"did you mean 'capfilt.threshold'"):
        overridden({"capfilt.treshold": 0.7})
