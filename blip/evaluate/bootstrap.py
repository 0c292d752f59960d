"""Intervals and comparisons by resampling images: how far a number moves with other such images.

Every statistic is computed from *how often each image was drawn*, (S, N) counts for S resamples of
N images, so that sums over images are one matrix product and nothing loops over resamples.
Source: Efron & Tibshirani 1993, chapters 13 and 16.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blip.metrics.agreement import roc_auc

Floats = NDArray[np.float64]

Statistic = Callable[[Floats], Floats]
"""(S, N) draws of each image -> (S) values; nan where a resample leaves it undefined."""

_BLOCK = 2**21  # draws held at once


@dataclass(frozen=True)
class Interval:
    """A value on all images and the percentile interval of its resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Candidate minus baseline on the same images, its interval, and a two-sided p-value."""

    baseline: float
    candidate: float
    difference: float
    low: float
    high: float
    p: float


def mean(values: ArrayLike, weights: ArrayLike = 1.0) -> Statistic:
    """Give the statistic `sum of values / sum of weights` over the drawn images.

    Args:
        values: (N) total of each image, e.g. how many of its texts were found.
        weights: (N) or a number: how many an image counts for, e.g. how many texts it has.
    """
    values = np.asarray(values, dtype=np.float64)
    weights = np.broadcast_to(np.asarray(weights, dtype=np.float64), values.shape)
    return lambda draws: _divide(draws @ values, draws @ weights)


def mean_of(parts: Sequence[Statistic]) -> Statistic:
    """Give the statistic `plain mean of other statistics`."""

    def statistic(draws: Floats) -> Floats:
        average: Floats = np.mean([part(draws) for part in parts], axis=0)
        return average

    return statistic


def median(values: ArrayLike) -> Statistic:
    """Give the statistic `median of the drawn images' values`."""
    order = np.argsort(np.asarray(values), kind="stable")
    rising = np.asarray(values, dtype=np.float64)[order]

    def statistic(draws: Floats) -> Floats:
        reached = np.cumsum(draws[:, order], axis=1)
        size = reached[:, -1:]
        low, high = ((reached > place).argmax(axis=1) for place in ((size - 1) // 2, size // 2))
        middle: Floats = (rising[low] + rising[high]) / 2
        return middle

    return statistic


def area_under_curve(
    positive: ArrayLike, negative: ArrayLike, scores: ArrayLike, images: ArrayLike
) -> Statistic:
    """Give the statistic `probability that a positive scores above a negative`, the ROC's area.

    Ties count half.

    Args:
        positive: (M) whether a text is a positive.
        negative: (M) whether it is a negative; texts that are neither do not count.
        scores: (M) of the texts.
        images: (M) whose image each is, below N.
    """
    positive, scores, images = np.asarray(positive), np.asarray(scores), np.asarray(images)
    kept = np.flatnonzero(positive | np.asarray(negative))
    labels, scores, images = positive[kept], scores[kept], images[kept]
    return lambda draws: roc_auc(labels, scores, draws[:, images])


def intervals(
    statistics: Mapping[str, Statistic], num_images: int, samples: int, confidence: float, seed: int
) -> dict[str, Interval]:
    """Give every statistic on all images with its percentile interval; all see the same resamples.

    Args:
        statistics: By name.
        num_images: N, at least 1.
        samples: S.
        confidence: Share of the resamples inside the interval, e.g. 0.95.
        seed: Of the draws: equal seeds give equal intervals.
    """
    everything = np.ones((1, num_images))
    resampled = _resample(statistics, num_images, samples, seed)
    found = {}
    for name, statistic in statistics.items():
        low, high = _bounds(resampled[name], confidence)
        found[name] = Interval(float(statistic(everything)[0]), low, high)
    return found


def differences(
    baseline: Mapping[str, Statistic],
    candidate: Mapping[str, Statistic],
    num_images: int,
    samples: int,
    confidence: float,
    seed: int,
) -> dict[str, Difference]:
    """Compare statistics of two models over the same images, resampled together.

    The p-value is twice the smaller share of resamples on either side of zero (a tie counts on both
    sides), with one added to both counts so that it is never 0 (Davison & Hinkley 1997, 4.2).
    """
    everything = np.ones((1, num_images))
    ours = _resample(baseline, num_images, samples, seed)
    theirs = _resample(candidate, num_images, samples, seed)
    found = {}
    for name, statistic in baseline.items():
        before, after = float(statistic(everything)[0]), float(candidate[name](everything)[0])
        moved = theirs[name] - ours[name]
        low, high = _bounds(moved, confidence)
        smaller = min(np.count_nonzero(moved <= 0), np.count_nonzero(moved >= 0))
        p = min(1.0, 2 * (smaller + 1) / (samples + 1))
        found[name] = Difference(before, after, after - before, low, high, p)
    return found


def plain(result: Interval | Difference) -> dict[str, float | None]:
    """Give the numbers as JSON holds them: what is undefined becomes null."""
    return {name: value if np.isfinite(value) else None for name, value in asdict(result).items()}


def _resample(
    statistics: Mapping[str, Statistic], num_images: int, samples: int, seed: int
) -> dict[str, Floats]:
    values: dict[str, list[Floats]] = {name: [] for name in statistics}
    for draws in _draws(num_images, samples, seed):
        for name, statistic in statistics.items():
            values[name].append(statistic(draws))
    return {name: np.concatenate(parts) for name, parts in values.items()}


def _draws(num_images: int, samples: int, seed: int) -> Iterator[Floats]:
    """Give blocks (s, N) of how often each image is drawn when N are drawn with replacement."""
    if num_images < 1 or samples < 1:
        raise ValueError(f"{samples} resamples of {num_images} images: both must be at least 1")
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // num_images)
    for start in range(0, samples, rows):
        count = min(rows, samples - start)
        drawn = generator.integers(num_images, size=(count, num_images))
        drawn += np.arange(count)[:, None] * num_images
        counts = np.bincount(drawn.ravel(), minlength=count * num_images)
        yield counts.reshape(count, num_images).astype(np.float64)


def _bounds(values: Floats, confidence: float) -> tuple[float, float]:
    defined = values[np.isfinite(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    undefined = np.full_like(numerator, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)
