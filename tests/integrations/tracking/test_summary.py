from pathlib import Path

from blip.files import write_json
from blip.integrations.tracking.summary import summarise


def test_every_result_gets_one_flat_name(tmp_path: Path) -> None:
    interval = {"value": 25.0, "low": 20.0, "high": 30.0}
    difference = {"baseline": 20.0, "candidate": 25.0, "difference": 5.0, "low": 1.0, "p": 0.01}
    write_json(
        tmp_path / "human/retrieval/metrics.json", {"retrieval": {"tr_r1": interval, "images": 40}}
    )
    write_json(
        tmp_path / "filter/metrics.json", {"filter": {"by_kind": {"colour": {"recall": 0.5}}}}
    )
    write_json(tmp_path / "comparison/metrics.json", {"retrieval": {"tr_r1": difference}})
    write_json(
        tmp_path / "promotion/captioning/metrics.json",
        {"promotion": {"promoted": True, "difference": None, "reason": "best", "candidate": 80.0}},
    )
    assert summarise(tmp_path) == {
        "results/comparison/retrieval/tr_r1": 5.0,
        "results/filter/by_kind/colour/recall": 0.5,
        "results/human/retrieval/images": 40.0,
        "results/human/retrieval/tr_r1": 25.0,
        "results/promotion/captioning/promotion/candidate": 80.0,
    }


def test_no_results_are_no_names(tmp_path: Path) -> None:
    assert summarise(tmp_path / "nothing") == {}
