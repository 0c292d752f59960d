"""BLEU, ROUGE-L and CIDEr-D of whole corpora at once, equal to pycocoevalcap on tokenised captions.

Captions are strings of tokens separated by single spaces, as `blip.metrics.ptb.tokenize` gives
them: N hypotheses, one an image, and a list of references for each. n-grams become integers and
are counted, matched and weighted by sorting, for all images together.

Sources: Papineni et al. 2002 (BLEU, closest reference length); Lin 2004 (ROUGE-L, beta 1.2);
Vedantam et al. 2015, CIDEr-D (clipping, Gaussian length penalty, sigma 6; document frequencies of
the evaluated images).
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
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
        self._num_references = np.array([len(own) for own in references], dtype=np.int64)
        # Captions are numbered image by image: its hypothesis, then its references.
        self._image = np.repeat(np.arange(len(references)), self._num_references + 1)
        self._hypotheses = np.flatnonzero(_changes(self._image))
        self._references = np.flatnonzero(~_changes(self._image))
        self._first = self._hypotheses - np.arange(len(hypotheses))  # reference of each image
        pairs = zip(hypotheses, references, strict=True)
        captions = [caption for own, others in pairs for caption in (own, *others)]
        # As in the reference scorer an empty caption is one empty token to ROUGE-L, and n-grams are
        # of what any white space divides.
        self._tokens = [caption.split(" ") for caption in captions]
        words, self._lengths, vocabulary = _number(self._tokens)
        if any(token.split() != [token] for token in vocabulary):
            words, self._lengths, _ = _number([caption.split() for caption in captions])
        self._orders = _count_ngrams(words, self._lengths, self._image)

    def bleu_counts(self) -> BleuCounts:
        """Give the counts of every image (N leading)."""
        lengths, references = self._lengths[self._hypotheses], self._lengths[self._references]
        # The closest length wins, then the shorter: one integer orders both.
        distance = np.abs(references - lengths[self._image[self._references]])
        order = distance * (references.max() + 1) + references
        closest = np.minimum.reduceat(order, self._first) % (references.max() + 1)
        matches = np.stack([self._clipped_matches(ngrams) for ngrams in self._orders], axis=1)
        possible = np.maximum(0, lengths[:, None] - np.arange(MAX_ORDER)).astype(np.float64)
        return BleuCounts(matches, possible, lengths.astype(np.float64), closest.astype(np.float64))

    def cider(self) -> Floats:
        """Give CIDEr-D of every image (N); the corpus score is their mean.

        As in the reference scorer the length penalty compares numbers of bigrams.
        """
        sigma = 6.0
        bigrams = np.maximum(0, self._lengths - 1)
        cosines = np.mean([self._cosines(ngrams) for ngrams in self._orders], axis=0)
        surplus = bigrams - bigrams[self._hypotheses[self._image]]
        penalty = np.exp(-(surplus**2) / (2 * sigma**2))
        totals = np.add.reduceat((cosines * penalty)[self._references], self._first)
        scores: Floats = 10.0 * totals / self._num_references
        return scores

    def rouge_l(self) -> Floats:
        """Give ROUGE-L of every image (N): best precision and recall over its references."""
        tokens = iter(self._tokens)
        counts = self._num_references.tolist()
        found = (_common_lengths(next(tokens), islice(tokens, count)) for count in counts)
        common = np.fromiter(chain.from_iterable(found), dtype=np.int64)
        lengths = np.array([len(own) for own in self._tokens])
        precision = np.maximum.reduceat(common, self._first) / lengths[self._hypotheses]
        recall = np.maximum.reduceat(common / lengths[self._references], self._first)
        weight = 1.2**2
        total = recall + weight * precision
        scores: Floats = np.divide(
            (1 + weight) * precision * recall, total, out=np.zeros(len(total)), where=total > 0
        )
        return scores

    def _clipped_matches(self, ngrams: "_Ngrams") -> Floats:
        """Give for every image the n-grams of its hypothesis that some reference has as often."""
        most = np.zeros(len(ngrams.count), dtype=np.int64)
        np.maximum.at(most, ngrams.ours, ngrams.count[ngrams.theirs])
        matches = self._sum_by_caption(ngrams.caption, np.minimum(most, ngrams.count))
        return matches[self._hypotheses]

    def _cosines(self, ngrams: "_Ngrams") -> Floats:
        """Give for every caption its clipped tf-idf cosine with the hypothesis of its image."""
        rarity = np.log(len(self._hypotheses)) - np.log(np.maximum(1, ngrams.frequency))
        weights = ngrams.count * rarity[ngrams.gram]
        norms = np.sqrt(self._sum_by_caption(ngrams.caption, weights**2))
        ours, theirs = weights[ngrams.ours], weights[ngrams.theirs]
        shared = np.minimum(ours, theirs) * theirs
        products = self._sum_by_caption(ngrams.caption[ngrams.theirs], shared)
        scale = norms * norms[self._hypotheses[self._image]]
        cosines: Floats = np.divide(products, scale, out=np.zeros(len(scale)), where=scale > 0)
        return cosines

    def _sum_by_caption(self, caption: Integers, values: Integers | Floats) -> Floats:
        return np.bincount(caption, values, len(self._lengths)).astype(np.float64)


def tokenized_captions(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Tokenise captions as the official tool does: hypotheses and references are one text each."""
    words = iter(tokenize([text for texts in references for text in texts]))
    return tokenize(hypotheses), [list(islice(words, len(texts))) for texts in references]


@dataclass(frozen=True)
class _Ngrams:
    """The distinct n-grams of every caption, for one n, by n-gram, then caption.

    Attributes:
        frequency: (G) how many images have each n-gram in a reference.
        gram: (M) which.
        caption: (M) whose it is.
        count: (M) how often the caption has it.
        theirs: (K) those of references that the hypothesis of their image has too.
        ours: (K) where the hypothesis has it.
    """

    frequency: Integers
    gram: Integers
    caption: Integers
    count: Integers
    theirs: Integers
    ours: Integers


def _number(captions: Sequence[Sequence[str]]) -> tuple[Integers, Integers, Collection[str]]:
    """Number the words of captions.

    Returns:
        The numbers of all their words; how many words each caption has; and the distinct words, by
        their numbers.
    """
    lengths = np.array([len(words) for words in captions], dtype=np.int64)
    vocabulary: defaultdict[str, int] = defaultdict()
    vocabulary.default_factory = vocabulary.__len__
    numbers = map(vocabulary.__getitem__, chain.from_iterable(captions))
    return np.fromiter(numbers, dtype=np.int64, count=int(lengths.sum())), lengths, vocabulary


def _count_ngrams(words: Integers, lengths: Integers, image: Integers) -> list[_Ngrams]:
    """Count the n-grams of every caption, for n = 1..4.

    Args:
        words: Numbers of the words of all captions.
        lengths: (N) number of words of each caption.
        image: (N) of each caption; its first caption is the hypothesis.
    """
    vocabulary = int(words.max(initial=0)) + 1
    caption = np.repeat(np.arange(len(lengths)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # words of the caption
    grams = words.copy()
    orders = []
    for order in range(1, MAX_ORDER + 1):
        start = np.flatnonzero(left >= order)
        if order > 1:  # an n-gram is an (n-1)-gram and the word behind it
            grams[start] = grams[start] * vocabulary + words[start + order - 1]
        keys, start = _sort_pairs(grams[start], start)
        grams[start] = gram = np.cumsum(_changes(keys)) - 1
        orders.append(_count_sorted(gram, caption[start], image))
    return orders


def _count_sorted(gram: Integers, caption: Integers, image: Integers) -> _Ngrams:
    """Count n-grams that are sorted, and, of equal ones, the captions that they stand in."""
    rows = np.flatnonzero(_changes(gram, caption))
    count = np.diff(rows, append=len(gram))
    gram, caption = gram[rows], caption[rows]
    # Where captions of one image share an n-gram, their rows are neighbours, the hypothesis's first.
    first = np.flatnonzero(_changes(gram, image[caption]))
    num = np.diff(first, append=len(gram))
    head, last = np.repeat(first, num), first + num - 1
    of_reference = ~_changes(image)[caption]
    theirs = np.flatnonzero(of_reference & ~of_reference[head])
    referred = gram[last[of_reference[last]]]
    frequency = np.bincount(referred, minlength=int(gram.max(initial=-1)) + 1)
    return _Ngrams(frequency, gram, caption, count, theirs, head[theirs])


def _sort_pairs(keys: Integers, values: Integers) -> tuple[Integers, Integers]:
    """Sort pairs of natural numbers: as one number where it has room, in a tenth of the time."""
    bits = int(values.max(initial=0)).bit_length()
    if int(keys.max(initial=0)).bit_length() + bits < 64:
        pairs = np.sort(keys << bits | values)
        return pairs >> bits, pairs & ((1 << bits) - 1)
    order = np.lexsort((values, keys))
    return keys[order], values[order]


def _changes(*columns: Integers) -> NDArray[np.bool_]:
    """Say of every row whether one of its columns differs from the row before; the first does."""
    changed = np.ones(len(columns[0]), dtype=bool)
    changed[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return changed


def _common_lengths(words: Sequence[str], others: Iterable[Sequence[str]]) -> Iterator[int]:
    """Give the length of the longest common subsequence of `words` and each other caption.

    Bit-parallel (Hyyrö 2004): bit j of the state is 0 where the subsequence grows at word j. Words
    of the other caption that `words` has not change nothing.
    """
    places: dict[str, int] = {}
    for position, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << position
    full = (1 << len(words)) - 1
    for other in others:
        state = full
        for place in filter(None, map(places.get, other)):
            match = state & place
            state = (state + match) | (state - match)
        yield len(words) - (state & full).bit_count()
