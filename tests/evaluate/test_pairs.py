"""Scores of given pairs: their order, batches, precision."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from blip.config import Config
from blip.errors import CheckpointError
from blip.evaluate.network import open_network
from blip.evaluate.pairs import PairScores, score_pairs
from blip.models.blip import Parts
from blip.models.matching import Texts

OWNER = np.array([0, 0, 1, 3, 3, 3, 4])  # image 2 has no pair
ROWS = np.array([2, 0, 0, 1, 2, 0, 1])


class Noise:
    """Five images."""

    def __len__(self) -> int:
        return 5

    def digests(self, rows: range) -> list[str]:
        return list(map(str, rows))

    def pixels(self, rows: range, size: int) -> torch.Tensor:
        images = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(0))
        return images[rows.start : rows.stop]


def score(model: Path, config: Config, **settings: object) -> PairScores:
    network, tokenizer, _ = open_network(model, "matching", 1)
    texts = Texts(*tokenizer.encode(["a red square", "two", "a big blue circle left"], 35))
    evaluate = config.evaluate.model_copy(update=settings)
    return score_pairs(network, Noise(), texts, ROWS, OWNER, evaluate)


def test_batches_do_not_matter(
    test_set: tuple[Config, Path], random_model: Callable[[Parts], Path]
) -> None:
    model = random_model("retrieval")
    found = [score(model, test_set[0], batch_size=size) for size in (1, 2, 5)]
    for other in found[1:]:
        # Measured 5e-7.
        np.testing.assert_allclose(other.itm, found[0].itm, atol=1e-5)
        np.testing.assert_allclose(other.itc, found[0].itc, atol=1e-5)
    assert len(set(found[0].itm.round(4))) > 1


def test_bf16_is_near(test_set: tuple[Config, Path], random_model: Callable[[Parts], Path]) -> None:
    model = random_model("retrieval")
    plain, half = (score(model, test_set[0], precision=p) for p in ("fp32", "bf16"))
    # Measured 2e-3.
    np.testing.assert_allclose(half.itc, plain.itc, atol=2e-2)
    np.testing.assert_allclose(half.itm, plain.itm, atol=2e-2)


def test_scores_that_are_no_numbers(
    test_set: tuple[Config, Path], random_model: Callable[[Parts], Path]
) -> None:
    network, tokenizer, _ = open_network(random_model("retrieval"), "matching", 1)
    network.match_head.bias.data[1] = float("nan")
    texts = Texts(*tokenizer.encode(["a red square", "two", "left"], 35))
    with pytest.raises(CheckpointError, match="scores of pairs are not numbers"):
        score_pairs(network, Noise(), texts, ROWS, OWNER, test_set[0].evaluate)
