"""Words follow from the intervals."""

import itertools
from pathlib import Path

import pytest

from blip.evaluate.bootstrap import Difference
from blip.files import write_json
from blip.report.comparison import DECIDING, Comparison, outcome, read_comparisons, verdict

AHEAD, LEVEL, BEHIND = (1.0, 3.0), (-1.0, 3.0), (-3.0, -1.0)


def comparison(
    baseline: str, retrieval: tuple[float, float], captioning: tuple[float, float]
) -> Comparison:
    ends = {"retrieval": retrieval, "captioning": captioning}
    differences = {m: Difference(50, 51, 1, *ends[task], 0.1) for task, m in DECIDING.items()}
    return Comparison(baseline, differences)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        (AHEAD, "ahead"),
        (LEVEL, "level"),
        (BEHIND, "behind"),
        ((0.0, 2.0), "level"),
        ((-2.0, 0.0), "level"),
    ],
)
def test_only_an_interval_without_zero_says_something(
    ends: tuple[float, float], expected: str
) -> None:
    assert outcome(Difference(50, 51, 1, *ends, 0.1)) == expected


def test_every_result_has_a_verdict() -> None:
    results = list(itertools.product((AHEAD, LEVEL, BEHIND), repeat=2))
    verdicts = {}
    for gain, control in itertools.product(results, repeat=2):
        verdicts[gain, control] = verdict(
            [comparison("unfiltered", *gain), comparison("human", *control)]
        )
    assert (
        verdicts[(AHEAD, AHEAD), (AHEAD, AHEAD)]
        == "Bootstrapping helped. It beats human data alone."
    )
    assert verdicts[(AHEAD, AHEAD), (LEVEL, LEVEL)] == (
        "Bootstrapping helped. It is not measurably different from human data alone."
    )
    assert verdicts[(AHEAD, LEVEL), (BEHIND, BEHIND)] == (
        "Bootstrapping helped in part. Human data alone did better."
    )
    for (gain, _), said in verdicts.items():
        assert ("helped" in said) == (AHEAD in gain)  # no gain is claimed without one
    assert "No comparison" in verdict([comparison("human", AHEAD, AHEAD)])


def test_sentences() -> None:
    assert comparison("human", AHEAD, BEHIND).sentence() == (
        "Ahead of human data alone in retrieval, behind in captioning."
    )
    assert comparison("unfiltered", LEVEL, LEVEL).sentence() == (
        "No measurable difference from the unfiltered corpus in retrieval and captioning."
    )
    assert comparison("other", BEHIND, LEVEL).sentence() == (
        "Behind other in retrieval, no measurable difference in captioning."
    )


def test_undefined_numbers_are_left_out(tmp_path: Path) -> None:
    difference = {
        "baseline": 1.0,
        "candidate": 2.0,
        "difference": 1.0,
        "low": 0.5,
        "high": 2.0,
        "p": 0.01,
    }
    document = {"retrieval": {"r_mean": difference, "tr_r1": {**difference, "low": None}}}
    write_json(tmp_path / "results/comparison/human/metrics.json", document)
    write_json(tmp_path / "results/comparison/unfiltered/metrics.json", {"captioning": {}})
    (found,) = read_comparisons(tmp_path)
    assert found.outcomes() == {"retrieval": "ahead"}
    assert [m.metric for m in found.differences] == ["r_mean"]
