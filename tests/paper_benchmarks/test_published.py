"""The published numbers: as the paper has them, each with a command, every file known."""

from pathlib import Path

import pytest
import yaml

from blip.benchmarks.catalogue import load_catalogue
from blip.benchmarks.published import Places, load_published
from blip.errors import ConfigError

PLACES = Places(data=Path("paper"), checkpoints=Path("models"), results=Path("paper/results"))


def test_the_target_has_eleven_rows() -> None:
    rows = [(name, list(row.values.values())) for _, name, row in load_published().rows()
            if row.target]  # fmt: skip
    assert rows == [
        ("nocaps-large-in", [114.9, 15.2]),
        ("nocaps-large-near", [112.1, 14.9]),
        ("nocaps-large-out", [115.3, 14.4]),
        ("nocaps-large-entire", [113.2, 14.8]),
        ("nocaps-capfilt-in", [111.8, 14.9]),
        ("nocaps-capfilt-near", [108.6, 14.8]),
        ("nocaps-capfilt-out", [111.5, 14.2]),
        ("nocaps-capfilt-entire", [109.6, 14.7]),
        ("nlvr2-target", [83.09]),
        ("ovad", [24.29, 50.99, 28.46, 9.69]),
        ("ads", [83.51]),
    ]


def test_every_evaluation_names_its_files_and_serves_a_row() -> None:
    published, catalogue = load_published(), load_catalogue()
    assert {row.evaluation for _, _, row in published.rows()} == set(published.evaluations)
    for name, evaluation in published.evaluations.items():
        needs = PLACES.needs(evaluation)
        assert {p for p in needs if p.startswith("checkpoints/")}, name
        known = [place for place in needs if catalogue.source(place)]
        assert set(evaluation.needs) <= set(known), name
        assert len(known) >= 3, name  # model, annotations, photos or videos


def test_words_of_a_command() -> None:
    evaluation = load_published().evaluations["coco-retrieval-129m"]
    words = PLACES.words("coco-retrieval-129m", evaluation)
    checkpoint = "models/model_base_retrieval_coco.pth"
    assert words[:4] == ["evaluate", "retrieval", "--checkpoint", checkpoint]
    assert words[-2:] == ["--out", "paper/results/coco-retrieval-129m"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluation": "none"}, r"row 'a': there is no evaluation 'none'"),
        ({"values": {}}, r"tables.t.rows.a.values"),
        ({"values": {"x": "many"}}, r"tables.t.rows.a.values.x"),
        ({"colour": "red"}, r"tables.t.rows.a.colour"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    row = {"model": "ViT", "evaluation": "e", "values": {"x/y": 1.0}, **change}
    table = {"title": "t", "metrics": "y", "source": "s", "tolerance": 0.1, "why": "w"}
    document = {
        "evaluations": {"e": {"command": "x"}},
        "tables": {"t": {**table, "rows": {"a": row}}},
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match=message):
        load_published(tmp_path / "p.yaml")
