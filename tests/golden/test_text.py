"""Cleaned captions and questions against the reference's."""

import json

import pytest

from blip.data.text import clean_caption, clean_question


@pytest.mark.parametrize(
    ("name", "clean"), [("pre_caption", clean_caption), ("pre_question", clean_question)]
)
def test_cleaning(shared, name, clean):
    cases = json.loads((shared / "golden" / "text_cleaning.json").read_text())[name]
    assert cases
    for case in cases:
        assert clean(case["in"], case["max_words"]) == case["out"], case
