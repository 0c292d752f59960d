"""Lists in JSON, read item by item wherever their text is cut."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.data import text_records
from blip.data.text_records import json_items
from blip.errors import DataError


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.lists(st.text(max_size=30), max_size=4)), min_size=1),
    st.integers(20, 60),
)
def test_json_is_read_the_same_in_pieces(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[int, list[str]]], chunk: int
) -> None:
    path = tmp_path_factory.mktemp("json") / "file"
    path.write_text(json.dumps([{"image": str(i), "caption": texts} for i, texts in items]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_records, "_CHUNK", chunk)
        found = list(json_items(path))
    assert [(int(r["image"]), r["caption"]) for r in found] == items


MEMBER = '{"info": {"year": [1, 2]}, "n": 12, "rows": [{"a": 1}, null, "s", 12, 345], "later": 1}'


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_a_list_within_an_object_is_read_item_by_item(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the text is cut for reading: a number that is cut is not two."""
    monkeypatch.setattr(text_records, "_CHUNK", chunk)
    (tmp_path / "file").write_text(MEMBER)
    assert list(json_items(tmp_path / "file", "rows")) == [{"a": 1}, None, "s", 12, 345]
    (tmp_path / "file").write_text("[12, 345]")
    assert list(json_items(tmp_path / "file")) == [12, 345]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "has no 'rows'"),
        ('{"info": 1}', "has no 'rows'"),
        ("[1]", r"expected '\{'"),
        ('{"rows": {}}', r"expected '\['"),
        ('{"rows": [1, 2', "record 2: .*cut short"),
        ('{"rows" [1]}', "expected ':'"),
    ],
)
def test_no_list_within_an_object(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "file").write_text(content)
    with pytest.raises(DataError, match=message):
        list(json_items(tmp_path / "file", "rows"))
