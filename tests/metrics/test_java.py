from pathlib import Path

import numpy as np
import pytest

from blip.errors import DataError
from blip.metrics import java
from blip.metrics.captions import tokenized_captions
from tests.metrics.caption_sets import result_sets
from tests.metrics.hostile_captions import hostile_corpus

TOLERANCE = 1e-9  # measured 1.1e-16 of single images, 2.8e-17 of whole sets


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for pycocoevalcap, and a `java` on PATH that says little."""
    program(tmp_path / "bin", "java", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    home = tmp_path / "pycocoevalcap"
    monkeypatch.setattr(java, "_home", lambda: home)
    for path in (java._METEOR_JAR, java._PARAPHRASES, java._SPICE_JAR):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).touch()
    return home


def test_without_java_both_are_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert java.meteor_lacks() == (
        "METEOR needs Java, and there is no `java` on PATH: install a Java runtime"
    )
    assert str(java.spice_lacks()).startswith("SPICE needs Java")
    assert java.computable() == []


def test_without_the_package_it_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert java.meteor_lacks() is None
    monkeypatch.setattr(java, "find_spec", lambda name: None)
    assert java.meteor_lacks() == (
        "METEOR needs pycocoevalcap: pip install 'blip-platform[metrics]'"
    )


def test_without_its_parser_spice_is_lacking(package: Path) -> None:
    lacking = str(java.spice_lacks())
    for part in ("stanford-corenlp-3.6.0.jar", "-models.jar", "get_stanford_models"):
        assert part in lacking
    assert java.computable() == ["meteor"]
    for path in java._PARSERS:
        (package / path).parent.mkdir(exist_ok=True)
        (package / path).touch()
    assert java.spice_lacks() is None
    assert java.computable() == ["meteor", "spice"]


def test_java_that_fails_is_one_message(package: Path, tmp_path: Path) -> None:
    program(tmp_path / "bin", "java", "echo trace >&2; echo 'no memory left' >&2; exit 3")
    with pytest.raises(DataError, match="ended with 3 and said 'no memory left'"):
        java.meteor_counts(["a dog"], [["a dog"]])
    with pytest.raises(DataError, match="SPICE: Java ended with 3"):
        java.spice(["a dog"], [["a dog"]])
    program(tmp_path / "bin", "java", "echo 1.0 2.0")
    with pytest.raises(DataError, match="answered 1 lines for 1 captions"):
        java.meteor_counts(["a dog"], [["a dog"]])


def test_spice_is_asked_as_the_official_tool_asks(package: Path, tmp_path: Path) -> None:
    answer = '[{"image_id": 1, "scores": {"All": {"f": 0.5}}}, {"image_id": 0, "scores": {"All": {"f": 0.25}}}]'
    record = tmp_path / "asked"
    program(
        tmp_path / "bin",
        "java",
        f'echo "$@" > {record}; pwd >> {record}; cat "$4" >> {record}; echo \'{answer}\' > "$8"',
    )
    scores = java.spice(["a dog", "two"], [["a dog", "dogs"], ["2"]])
    assert scores.tolist() == [0.25, 0.5]
    options, folder, question = record.read_text().splitlines()
    assert options.startswith("-Xmx8G -jar spice-1.0.jar ")
    assert options.endswith("-subset -silent")
    assert Path(folder) == package / "spice"
    assert '{"image_id": 0, "test": "a dog", "refs": ["a dog", "dogs"]}' in question


@pytest.mark.parametrize("score", [None, "NaN"])
def test_a_caption_that_spice_gives_no_number_is_named(score: str | None) -> None:
    value = float(score) if score else None
    with pytest.raises(DataError, match="no score to 1 of 2 captions, the first is number 2"):
        java.read_spice(
            [
                {"image_id": 0, "scores": {"All": {"f": 0.5}}},
                {"image_id": 1, "scores": {"All": {"f": value}}},
            ],
            2,
        )


@pytest.mark.parametrize(
    ("counts", "score"),
    [
        # "two cats" against "the man": nothing matches
        ([2, 2, 1, 1, *[0] * 16, 0, 0, 0], 0.0),
        # "a dog" against itself: no chunk is counted, and there is no penalty
        ([2, 2, 1, 1, 1, 1, 1, 1, *[0] * 12, 0, 2, 2], 1.0),
    ],
)
def test_meteor_of_counts(counts: list[int], score: float) -> None:
    assert java.meteor(np.array(counts, dtype=np.float64)) == pytest.approx(score)


def test_a_caption_that_is_wholly_matched_in_one_chunk_counts_none(
    package: Path, tmp_path: Path
) -> None:
    whole = "2 2 1 1 1 1 1 1" + " 0" * 12 + " 1 2 2"
    in_disorder = "4 4 0 0 4 0 4 0" + " 0" * 12 + " 2 4 4"
    program(tmp_path / "bin", "java", f"echo {whole}; echo {in_disorder}")
    counts = java.meteor_counts(["a dog", "one dog two cats"], [["a dog"], ["two cats one dog"]])
    assert counts[:, 20].tolist() == [0, 2]


@pytest.mark.slow
def test_meteor_of_hostile_captions_as_the_official_tool_has_it(official: Path) -> None:
    """Some equal a reference, whose chunks the official sum leaves out."""
    from pycocoevalcap.meteor.meteor import Meteor

    hypotheses, references = tokenized_captions(*hostile_corpus(0, 60))
    gts, res = dict(enumerate(references)), {i: [own] for i, own in enumerate(hypotheses)}
    total, each = Meteor().compute_score(gts, res)
    counts = java.meteor_counts(hypotheses, references)
    np.testing.assert_allclose(java.meteor(counts), each, atol=TOLERANCE, rtol=0)
    assert float(java.meteor(counts.sum(axis=0))) == pytest.approx(total, abs=TOLERANCE)


@pytest.mark.slow
def test_meteor_as_the_official_tool_has_it(shared: Path, official: Path) -> None:
    """Of the smallest set; `-m slow` of all sets would take Java two minutes."""
    found = min(result_sets(shared), key=lambda found: len(found.captions))
    hypotheses = [found.captions[image] for image in found.references]
    counts = java.meteor_counts(*tokenized_captions(hypotheses, list(found.references.values())))
    rows = {row["image_id"]: row["METEOR"] for row in found.official["per_image"]}
    official_scores = [rows[image] for image in found.references]
    np.testing.assert_allclose(java.meteor(counts), official_scores, atol=TOLERANCE, rtol=0)
    total = float(java.meteor(counts.sum(axis=0)))
    assert total == pytest.approx(found.official["corpus"]["METEOR"], abs=TOLERANCE)
