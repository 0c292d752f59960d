"""BLEU, ROUGE-L and CIDEr-D of whole corpora at once, equal to pycocoevalcap on tokenised captions.

Captions are strings of tokens separated by single spaces, as `blip.metrics.ptb.tokenize` gives
them: N hypotheses, one an image, and a list of references for each. n-grams become integers and
are counted, matched and weighted by sorting, for all images together.

Sources: Papineni et al. 2002 (BLEU, closest reference length); Lin 2004 (ROUGE-L, beta 1.2);
Vedantam et al. 2015, CIDEr-D (clipping, Gaussian length penalty, sigma 6; document frequencies of
the evaluated images).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blip.metrics.ptb import tokenize

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAX_ORDER = 4

# The reference scorer's guards against 0/0, which show in the scores of single images.
_TINY, _SMALL = 1e-15, 1e-9


class BleuCounts(NamedTuple):
    """What BLEU is computed from; counts of images add up to those of a corpus.

    Attributes:
        matches: (..., 4) n-grams of the hypothesis that a reference has, clipped, for n = 1..4.
        possible: (..., 4) n-grams of the hypothesis.
        length: (...) tokens of the hypothesis.
        reference_length: (...) tokens of the reference closest in length, the shorter of a tie.
    """

    matches: Floats
    possible: Floats
    length: Floats
    reference_length: Floats


def bleu(counts: BleuCounts) -> Floats:
    """Give BLEU-1 to BLEU-4 (..., 4): mean precision, geometric, times the brevity penalty."""
    precisions = (counts.matches + _TINY) / (counts.possible + _SMALL)
    orders = np.arange(1, MAX_ORDER + 1)
    ratio = (counts.length + _TINY) / (counts.reference_length + _SMALL)
    penalty = np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
    scores: Floats = np.cumprod(precisions, axis=-1) ** (1.0 / orders) * penalty[..., None]
    return scores


class Corpus:
    """Hypotheses and references of N images, ready to be scored.

    Args:
        hypotheses: (N) one tokenised caption an image.
        references: (N) the tokenised references of each, at least one.

    Raises:
        ValueError: Numbers of images differ, there is none, or one has no reference.
    """

    def __init__(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        if len(hypotheses) != len(references) or not hypotheses:
            raise ValueError(
                f"{len(hypotheses)} hypotheses for {len(references)} images: give one for each"
            )
        if not all(references):
            raise ValueError("an image has no reference: leave it out, or give one")
        self.num_images = len(hypotheses)
        self._hypotheses, self._references = hypotheses, references
        captions = [caption.split() for caption in chain(hypotheses, *references)]
        self._lengths = np.array([len(words) for words in captions], dtype=np.int64)
        images = np.arange(self.num_images)
        self._num_references = np.array([len(r) for r in references], dtype=np.int64)
        # Captions are numbered: hypotheses first, so as their images; then references, by image.
        self._image = np.concatenate([images, np.repeat(images, self._num_references)])
        self._orders = _count_ngrams(captions, self._lengths)

    def bleu_counts(self) -> BleuCounts:
        """Give the counts of every image (N leading)."""
        lengths, references = self._lengths[: self.num_images], self._lengths[self.num_images :]
        image = self._image[self.num_images :]
        # The closest length wins, then the shorter: one integer orders both.
        order = np.abs(references - lengths[image]) * (references.max() + 1) + references
        first = np.concatenate([[0], np.cumsum(self._num_references)[:-1]])
        closest = np.minimum.reduceat(order, first) % (references.max() + 1)
        matches = np.stack([self._clipped_matches(ngrams) for ngrams in self._orders], axis=1)
        possible = np.maximum(0, lengths[:, None] - np.arange(MAX_ORDER)).astype(np.float64)
        return BleuCounts(matches, possible, lengths.astype(np.float64), closest.astype(np.float64))

    def cider(self) -> Floats:
        """Give CIDEr-D of every image (N); the corpus score is their mean.

        As in the reference scorer the length penalty compares numbers of bigrams.
        """
        sigma = 6.0
        bigrams = np.maximum(0, self._lengths - 1)
        references = np.arange(self.num_images, len(self._lengths))
        image = self._image[references]
        cosines = np.mean([self._cosines(ngrams) for ngrams in self._orders], axis=0)[references]
        penalty = np.exp(-((bigrams[image] - bigrams[references]) ** 2) / (2 * sigma**2))
        totals = _sum_by(image, cosines * penalty, self.num_images)
        scores: Floats = 10.0 * totals / self._num_references
        return scores

    def rouge_l(self) -> Floats:
        """Give ROUGE-L of every image (N): best precision and recall over its references."""
        weight = 1.2**2
        scores = np.zeros(self.num_images)
        pairs = zip(self._hypotheses, self._references, strict=True)
        for i, (hypothesis, references) in enumerate(pairs):
            words = hypothesis.split(
                " "
            )  # an empty caption is one empty token, as in the reference
            split = [reference.split(" ") for reference in references]
            common = _common_lengths(words, split)
            precision = max(common) / len(words)
            recall = max(c / len(r) for c, r in zip(common, split, strict=True))
            if precision and recall:
                scores[i] = (1 + weight) * precision * recall / (recall + weight * precision)
        return scores

    def _clipped_matches(self, ngrams: "_Ngrams") -> Floats:
        """Give for every image the n-grams of its hypothesis that some reference has as often."""
        hypothesis, reference, at = self._join(ngrams)
        most = np.zeros(len(hypothesis.count))
        np.maximum.at(most, at, reference.count.astype(np.float64))
        return _sum_by(hypothesis.caption, np.minimum(most, hypothesis.count), self.num_images)

    def _cosines(self, ngrams: "_Ngrams") -> Floats:
        """Give for every reference its clipped tf-idf cosine with the hypothesis; 0 for those."""
        references = ngrams.take(ngrams.caption >= self.num_images)
        documents = _distinct(self._image[references.caption] * ngrams.size + references.gram)
        frequency = np.bincount(documents % ngrams.size, minlength=ngrams.size)
        rarity = np.log(self.num_images) - np.log(np.maximum(1, frequency))
        weights = ngrams.count * rarity[ngrams.gram]
        norms = np.sqrt(_sum_by(ngrams.caption, weights**2, len(self._lengths)))
        hypothesis, reference, at = self._join(ngrams)
        theirs = reference.count * rarity[reference.gram]
        ours = hypothesis.count[at] * rarity[reference.gram]
        shared = np.minimum(ours, theirs) * theirs
        products = _sum_by(reference.caption, shared, len(self._lengths))
        scale = norms * norms[self._image]
        cosines: Floats = np.divide(products, scale, out=np.zeros(len(scale)), where=scale > 0)
        return cosines

    def _join(self, ngrams: "_Ngrams") -> tuple["_Ngrams", "_Ngrams", Integers]:
        """Give the hypotheses' n-grams, the references' shared with them, and where those are."""
        split = int(np.searchsorted(ngrams.caption, self.num_images))
        hypothesis = ngrams.take(slice(0, split))
        reference = ngrams.take(slice(split, None))
        ours = hypothesis.caption * ngrams.size + hypothesis.gram
        theirs = self._image[reference.caption] * ngrams.size + reference.gram
        at = np.searchsorted(ours, theirs)
        found = np.append(ours, -1)[at] == theirs
        return hypothesis, reference.take(found), at[found]


def tokenized_captions(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Tokenise captions as the official tool does: hypotheses and references are one text each."""
    words = iter(tokenize([text for texts in references for text in texts]))
    return tokenize(hypotheses), [list(islice(words, len(texts))) for texts in references]


@dataclass(frozen=True)
class _Ngrams:
    """The distinct n-grams of every caption, sorted by caption, then n-gram.

    Attributes:
        size: Number of distinct n-grams of the corpus.
        caption: (M) whose it is.
        gram: (M) which, below `size`.
        count: (M) how often the caption has it.
    """

    size: int
    caption: Integers
    gram: Integers
    count: Integers

    def take(self, rows: "slice | NDArray[np.bool_]") -> "_Ngrams":
        return _Ngrams(self.size, self.caption[rows], self.gram[rows], self.count[rows])


def _count_ngrams(captions: list[list[str]], lengths: Integers) -> list[_Ngrams]:
    """Count the n-grams of every caption, for n = 1..4."""
    distinct_words = dict.fromkeys(chain.from_iterable(captions))
    vocabulary = dict(zip(distinct_words, range(len(distinct_words)), strict=True))
    numbers = map(vocabulary.__getitem__, chain.from_iterable(captions))
    words = np.fromiter(numbers, dtype=np.int64, count=int(lengths.sum()))
    caption = np.repeat(np.arange(len(captions)), lengths)
    end = np.repeat(np.cumsum(lengths), lengths)
    grams, size, start = words, len(vocabulary), np.arange(len(words))
    orders = []
    for order in range(1, MAX_ORDER + 1):
        if order > 1:  # an n-gram is an (n-1)-gram and the word behind it
            inside = start + order <= end[start]
            start = start[inside]
            distinct, grams = np.unique(
                grams[inside] * len(vocabulary) + words[start + order - 1], return_inverse=True
            )
            size = len(distinct)
        keys, count = np.unique(caption[start] * max(size, 1) + grams, return_counts=True)
        orders.append(_Ngrams(max(size, 1), keys // max(size, 1), keys % max(size, 1), count))
    return orders


def _distinct(numbers: Integers) -> Integers:
    """Give each number once, as np.unique does; sorting takes a fifth of the time of its hashing."""
    ordered = np.sort(numbers)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]]


def _sum_by(group: Integers, values: Floats, size: int) -> Floats:
    """Give the sum of the values of each group, 0 for an empty one."""
    return np.bincount(group, values, size).astype(np.float64)


def _common_lengths(words: list[str], others: list[list[str]]) -> list[int]:
    """Give the length of the longest common subsequence of `words` and each other caption.

    Bit-parallel (Hyyrö 2004): bit j of the state is 0 where the subsequence grows at word j.
    """
    places: dict[str, int] = {}
    for position, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << position
    full = (1 << len(words)) - 1
    lengths = []
    for other in others:
        state = full
        for word in other:
            match = state & places.get(word, 0)
            state = (state + match) | (state - match)
        lengths.append(len(words) - (state & full).bit_count())
    return lengths
