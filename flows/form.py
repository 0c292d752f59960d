"""The form of a flow's overrides: the configuration, of which every key may be left out.

Prefect draws its page from the type `Overrides` and refuses at once what does not pass it. A document of that type
holds what was set and nothing else: an absent key overrides nothing, and null is a value.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from inspect import isclass
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypedDict

from blip.config import Config, Section


class _Form:
    """Has pydantic check sections key by key, and leave dotted keys to the check of the whole."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        sections = handler.generate_schema(_in_part(Config))
        return core_schema.no_info_wrap_validator_function(_check, sections)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        document = handler.resolve_ref_schema(handler(schema))
        return {**document, "patternProperties": {r"\.": {}}}


Overrides = Annotated[dict[str, Any], _Form()]
"""Sections with some of their keys; and dotted keys, with the values that `blip run --set` gives them."""


def dotted(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Name by dotted keys what overrides set.

    A section in part merges into the one that is there; whole, it is one value, since there may be none.
    """
    fields = _fields(Config)
    return dict(
        pair
        for key, value in overrides.items()
        for pair in _set(key, value, fields[key].annotation if key in fields else None)
    )


def _set(path: str, value: Any, kind: Any) -> Iterator[tuple[str, Any]]:
    section, by_name = _section(kind)
    if section is None or value is None or (_whole(value, section) and not by_name):
        yield path, value
        return
    for key, part in value.items():
        inner = section if by_name else _fields(section)[key].annotation
        yield from _set(f"{path}.{key}", part, inner)


def _whole(value: Any, kind: Any) -> bool:
    """Tell a value, or a section with all its keys, from a part of one."""
    section, by_name = _section(kind)
    if section is None or value is None:
        return True
    if by_name:
        return all(_whole(part, section) for part in value.values())
    fields = _fields(section)
    return value.keys() == fields.keys() and all(
        _whole(part, fields[key].annotation) for key, part in value.items()
    )


def _section(kind: Any) -> tuple[type[Section] | None, bool]:
    """Give the section that a type is, may be, or holds by names; and whether it is by names."""
    if isclass(kind) and issubclass(kind, Section):
        return kind, False
    for inner in get_args(kind):
        section, _ = _section(inner)
        if section is not None:
            return section, get_origin(kind) is dict
    return None, False


def _fields(section: type[Section]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in section.model_fields.items()}


@cache
def _in_part(section: type[Section]) -> Any:
    """Make the type of documents with some of a section's keys, under the rules of each."""
    keys = {key: _key_in_part(key, field) for key, field in _fields(section).items()}
    make: Any = TypedDict
    document = make(section.__name__, keys, total=False)
    document.__doc__ = section.__doc__
    document.__pydantic_config__ = ConfigDict(extra="forbid")
    return document


def _key_in_part(key: str, field: FieldInfo) -> Any:
    kind: Any = field.annotation
    nullable = NoneType in get_args(kind)
    section, by_name = _section(kind)
    if section is not None:
        kind = _in_part(section)
        kind = dict[get_args(field.annotation)[0], kind] if by_name else kind  # type: ignore[misc]
        kind = kind | None if nullable else kind
    if kind is bool:  # a choice, since Prefect's page would send false for a switch left alone
        kind = Annotated[bool, WithJsonSchema({"enum": [True, False]})]
    # Prefect's server takes null for any key that may be left out, unless the schema says no.
    rule: JsonDict | None = None if nullable else {"not": {"type": "null"}}
    return Annotated[kind, field, Field(title=key, json_schema_extra=rule)]


def _check(given: Any, check: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Check all but the dotted keys, which are checked with the whole when the flow runs."""
    if not isinstance(given, Mapping):
        return check(given)
    apart = {key: value for key, value in given.items() if "." in key}
    return check({key: value for key, value in given.items() if key not in apart}) | apart
