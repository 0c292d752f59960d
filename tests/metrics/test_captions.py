import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip.metrics import captions
from blip.metrics.captions import BleuCounts, Corpus, bleu, tokenized_captions
from tests.metrics.caption_sets import result_sets
from tests.metrics.hostile_captions import hostile_corpus

TOLERANCE = 1e-9  # measured against pycocoevalcap: 4e-16 BLEU, 4e-15 CIDEr, 0 ROUGE-L

words = st.sampled_from(["a", "dog", "cat", "on", "the", "red", "mat", "is", "two"])
caption = st.lists(words, min_size=0, max_size=12).map(" ".join)
corpora = st.lists(
    st.tuples(caption, st.lists(caption, min_size=1, max_size=4)), min_size=1, max_size=6
)


def corpus_bleu(counts: BleuCounts) -> np.ndarray:
    return bleu(BleuCounts(*(count.sum(axis=0) for count in counts)))


def assert_as_reference(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    bleu_module = pytest.importorskip("pycocoevalcap.bleu.bleu")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    gts = {i: list(r) for i, r in enumerate(references)}
    res = {i: [h] for i, h in enumerate(hypotheses)}
    ours = Corpus(hypotheses, references)
    total, each = bleu_module.Bleu(4).compute_score(gts, res, verbose=0)
    np.testing.assert_allclose(bleu(ours.bleu_counts()), np.array(each).T, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(corpus_bleu(ours.bleu_counts()), total, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(
        ours.cider(), Cider().compute_score(gts, res)[1], atol=TOLERANCE, rtol=0
    )
    np.testing.assert_allclose(
        ours.rouge_l(), Rouge().compute_score(gts, res)[1], atol=TOLERANCE, rtol=0
    )


@settings(max_examples=100, deadline=None)
@given(corpora)
def test_any_corpus_scores_as_in_the_reference(corpus: list[tuple[str, list[str]]]) -> None:
    if any(any(r) for _, r in corpus):  # the reference has no document frequency of nothing
        assert_as_reference([h for h, _ in corpus], [r for _, r in corpus])


@pytest.mark.parametrize("case", ["pretokenised", "ptb"])
def test_golden_scores(shared: Path, case: str) -> None:
    golden = json.loads((shared / "golden/caption_metrics.json").read_text())[case]
    gts, res = (golden.get(n) or golden[f"tok_{n}"] for n in ("gts", "res"))
    ours = Corpus([res[k][0] for k in gts], list(gts.values()))
    scores = golden["scores"]
    np.testing.assert_allclose(
        bleu(ours.bleu_counts()).T, scores["Bleu_per_item"], atol=TOLERANCE, rtol=0
    )
    np.testing.assert_allclose(
        corpus_bleu(ours.bleu_counts()), scores["Bleu"], atol=TOLERANCE, rtol=0
    )
    np.testing.assert_allclose(ours.cider(), scores["CIDEr_per_item"], atol=TOLERANCE, rtol=0)
    assert ours.cider().mean() == pytest.approx(scores["CIDEr"], abs=TOLERANCE)
    np.testing.assert_allclose(ours.rouge_l(), scores["ROUGE_L_per_item"], atol=TOLERANCE, rtol=0)


def test_result_sets_score_as_the_official_tool_has_them(shared: Path) -> None:
    """Measured: BLEU 1.1e-16, CIDEr 6.7e-16, ROUGE-L 4e-16, whole sets and single images."""
    for found in result_sets(shared):
        hypotheses = [found.captions[image] for image in found.references]
        ours = Corpus(*tokenized_captions(hypotheses, list(found.references.values())))
        each = {"CIDEr": ours.cider(), "ROUGE_L": ours.rouge_l()}
        total = {name: scores.mean() for name, scores in each.items()}
        for order, (scores, score) in enumerate(
            zip(bleu(ours.bleu_counts()).T, corpus_bleu(ours.bleu_counts()), strict=True), 1
        ):
            each[f"Bleu_{order}"], total[f"Bleu_{order}"] = scores, score
        rows = {row["image_id"]: row for row in found.official["per_image"]}
        for name, scores in each.items():
            official = [rows[image][name] for image in found.references]
            np.testing.assert_allclose(scores, official, atol=TOLERANCE, rtol=0)
            assert total[name] == pytest.approx(found.official["corpus"][name], abs=TOLERANCE)


@pytest.mark.parametrize(
    ("hypotheses", "references"),
    [
        (["a dog", ""], [["a dog"], ["a cat"]]),  # an empty caption
        (["a dog", "a dog"], [["", "a dog"], [""]]),  # empty references
        (["a dog"], [["a dog"]]),  # one image, one reference: log(1) weighs nothing
        (["a dog"] * 3, [["a dog", "a dog"]] * 3),  # the same words everywhere
        (["a b c", "d"], [["a b", "a b c d"], ["d e"]]),  # two references equally close
        (["5\u00a01/2 cups"], [["5 1/2 cups", "5\u00a01/2 cups"]]),  # a space within a token
    ],
)
def test_odd_captions_score_as_in_the_reference(
    hypotheses: list[str], references: list[list[str]]
) -> None:
    assert_as_reference(hypotheses, references)


def test_counts_of_images_add_up() -> None:
    hypotheses, references = (
        ["a red dog on the mat", "two cats"],
        [["a dog on the mat"], ["two red cats", "cats"]],
    )
    together = Corpus(hypotheses, references).bleu_counts()
    apart = [Corpus([h], [r]).bleu_counts() for h, r in zip(hypotheses, references, strict=True)]
    for whole, *parts in zip(together, *apart, strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_the_shorter_of_two_equally_close_references_counts() -> None:
    counts = Corpus(["a b c"], [["a b c d", "a b", "a"]]).bleu_counts()
    assert counts.reference_length.tolist() == [2]


@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["a"], []), (["a"], [[]])])
def test_missing_captions_are_refused(hypotheses: list[str], references: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="give one"):
        Corpus(hypotheses, references)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_hostile_captions_are_tokenised_and_scored_as_officially(seed: int, official: Path) -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    hypotheses, references = hostile_corpus(seed, 300)
    tokens = [
        list(PTBTokenizer().tokenize(texts).values())
        for texts in (
            {i: [{"caption": own}] for i, own in enumerate(hypotheses)},
            {i: [{"caption": text} for text in own] for i, own in enumerate(references)},
        )
    ]
    ours = tokenized_captions(hypotheses, references)
    assert [[own] for own in ours[0]] == tokens[0]
    assert ours[1] == tokens[1]
    assert_as_reference(*ours)


@given(
    st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 2**20)), max_size=30), st.booleans()
)
def test_pairs_are_sorted_whether_or_not_they_have_room_in_one_number(pairs, large: bool) -> None:
    keys, values = np.array(pairs, dtype=np.int64).reshape(-1, 2).T * (2**30 if large else 1)
    found = captions._sort_pairs(keys, values)
    assert list(zip(*(column.tolist() for column in found), strict=True)) == sorted(
        zip(keys.tolist(), values.tolist(), strict=True)
    )
