"""The table at the end of a run."""

from pathlib import Path

from blip.files import write_json
from blip.report.terminal import format_results


def test_arms_have_rows_and_absent_ones_dashes(tmp_path: Path) -> None:
    value = {"value": 12.34, "low": 10.0, "high": 14.0}
    write_json(
        tmp_path / "results/human/retrieval/metrics.json",
        {"retrieval": {"tr_r1": value, "ir_r1": value}},
    )
    shares = {"value": 0.5, "low": 0.4, "high": 0.6}
    write_json(
        tmp_path / "results/filter/metrics.json",
        {"filter": {"precision": shares, "recall": shares, "auc": shares}},
    )
    lines = format_results(tmp_path).splitlines()
    rows = {line.split()[0]: line for line in lines if line}
    assert "12.3 [10.0, 14.0]" in rows["human"]
    assert rows["bootstrapped"].split()[1:] == ["-"] * 4
    assert "precision 0.50 [0.40, 0.60]" in rows["filter"]
    assert "report" not in rows, "there is no page to point at"
