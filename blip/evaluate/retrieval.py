"""Image-text retrieval both ways: cosine finds the candidates, the matching head ranks them.

BLIP.md 5.1: for every image the k most similar texts, and for every text the k most similar images,
are ranked by match logit plus cosine; what is not a candidate comes after them. A text is right for
an image if it is one of its own captions; an equal sentence of another image is not.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from blip.config import Config, Evaluate
from blip.data.text import Tokenizer, clean_caption
from blip.distributed import Team, rank
from blip.errors import ConfigError, DataError
from blip.evaluate.bootstrap import Statistic, mean, mean_of
from blip.evaluate.evaluation_set import EvaluationSet
from blip.evaluate.features import image_tokens
from blip.evaluate.network import open_network, require_finite
from blip.evaluate.results import report
from blip.models.blip import Blip
from blip.models.device import autocast
from blip.models.matching import Texts, embed_texts, match_texts
from blip.models.med import Memory
from blip.progress import track
from blip.tracker import Tracker

log = logging.getLogger(__name__)

Integers = NDArray[np.int64]

CUTS = (1, 5, 10)

Judge = Callable[[Integers], NDArray[np.float32]]
"""Gives the match logits of one image with the texts of the given indices."""

PER_IMAGE = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("tr_rank", pa.int64(), nullable=False),  # of its best-ranked own text, from 0
        pa.field(
            "ir_ranks", pa.list_(pa.int64()), nullable=False
        ),  # of the image for each own text
    ]
)


class Candidates(NamedTuple):
    """What the first stage finds for Q queries.

    Attributes:
        indices: (Q, k) the candidates, best first.
        cosine: (Q, k) their similarity.
    """

    indices: Integers
    cosine: NDArray[np.float32]


def evaluate_retrieval(
    config: Config, checkpoint: Path, images: EvaluationSet, out: Path, tracker: Tracker
) -> None:
    """Measure retrieval on a test set: TR and IR R@1/5/10 in percent and their means.

    Processes that torchrun started share the images; the numbers are those of one.

    Writes `metrics.json` with bootstrap intervals over images, and `per_example.parquet`
    (`PER_IMAGE`), from which they, and comparisons, can be computed again.

    Args:
        config: `evaluate` and the text limits of `finetune.retrieval` are read.
        checkpoint: Of a model that matches.
        images: The test images and their captions.
        out: The folder to write into.
        tracker: Told the metrics and the speed.

    Raises:
        CheckpointError: A score is not a number.
        ConfigError: There are fewer images or texts than candidates asked for.
        DataError: There is no caption to look for, or a photo is missing or damaged.
    """
    images.require_photos()
    started = time.monotonic()
    model, tokenizer, _ = open_network(checkpoint, "matching", config.threads)
    texts, owner = _read_texts(images, tokenizer, config)
    fewest = min(len(images), len(texts))
    if config.evaluate.k > fewest:
        raise ConfigError(
            f"evaluate.k {config.evaluate.k} candidates, but {images.source} has {len(images)} "
            f"images and {len(texts)} texts: lower it to {fewest} at most"
        )
    tr_rank, ir_rank = _rank(model, images, texts, owner, config)
    columns = [list(images.keys), tr_rank, _lists(ir_rank, owner, len(images))]
    table = pa.table(columns, schema=PER_IMAGE)
    counts = {"images": len(images), "texts": len(texts)}
    report(config, "retrieval", table, statistics(table), counts, out, tracker)
    tracker.metrics({"perf/images_per_second": len(images) / (time.monotonic() - started)})


def statistics(per_image: pa.Table) -> dict[str, Statistic]:
    """Give the metrics of a `PER_IMAGE` table, in percent, as statistics over its images."""
    tr_rank = per_image["tr_rank"].to_numpy()
    lists = per_image["ir_ranks"].to_pylist()
    texts = np.array([len(ranks) for ranks in lists])
    found: dict[str, Statistic] = {}
    for cut in CUTS:
        hits = [100.0 * sum(rank < cut for rank in ranks) for ranks in lists]
        found[f"tr_r{cut}"] = mean(100.0 * (tr_rank < cut) * (texts > 0), texts > 0)
        found[f"ir_r{cut}"] = mean(hits, texts)
    found["tr_mean"] = mean_of([found[f"tr_r{cut}"] for cut in CUTS])
    found["ir_mean"] = mean_of([found[f"ir_r{cut}"] for cut in CUTS])
    found["r_mean"] = mean_of([found["tr_mean"], found["ir_mean"]])
    return found


def rerank(
    images: Tensor,
    texts: Tensor,
    k: int,
    judges: Iterable[Judge],
    mine: range | None = None,
    gather: Callable[[list[NDArray[np.float32]]], list[NDArray[np.float32]]] = list,
) -> tuple[Candidates, NDArray[np.float32], Candidates, NDArray[np.float32]]:
    """Find and rank candidates both ways.

    A pair that is a candidate both ways is judged once. Images are taken one after the other, so
    that what belongs to an image need not be held together with that of all others.

    Args:
        images: (I, E) unit vectors.
        texts: (T, E) unit vectors.
        k: Candidates of a query, clipped to their number.
        judges: One for each of `mine`, in their order.
        mine: The images that this process judges, neighbours; all without.
        gather: Puts what several processes found together, in order.

    Returns:
        For the images as queries: candidates and their scores (I, k); the same for the texts.
    """
    of_images, of_texts = _nearest(images, texts, k), _nearest(texts, images, k)
    image_scores, text_scores = of_images.cosine.copy(), of_texts.cosine.copy()
    # Where each image is a candidate: places in the flat (T, k) table, image by image.
    flat = of_texts.indices.ravel()
    places = np.argsort(flat, kind="stable")
    starts = np.searchsorted(flat[places], np.arange(len(images) + 1))
    width = of_texts.indices.shape[1]
    chosen = [places[a:b] for a, b in itertools.pairwise(starts)]
    wanted = [np.union1d(of_images.indices[i], own // width) for i, own in enumerate(chosen)]
    numbers = range(len(images)) if mine is None else mine
    judged = gather([judge(wanted[i]) for i, judge in zip(numbers, judges, strict=True)])
    for image, logits in enumerate(judged):
        texts_of = np.searchsorted(wanted[image], of_images.indices[image])
        image_scores[image] += logits[texts_of]
        own = chosen[image]
        text_scores.ravel()[own] += logits[np.searchsorted(wanted[image], own // width)]
    return of_images, image_scores, of_texts, text_scores


def ranks(candidates: Integers, scores: ArrayLike, target: Integers, num_targets: int) -> Integers:
    """Give the rank, from 0, of one target for each of Q queries.

    What is no candidate comes after all candidates. Equal scores rank the higher index first, as
    the reference's reversed sort does.

    Args:
        candidates: (Q, k) indices.
        scores: (Q, k) of the candidates.
        target: (Q,) the index to find.
        num_targets: How many there are to choose from.
    """
    scores = np.asarray(scores)
    here = candidates == target[:, None]
    later = candidates > target[:, None]
    own = np.where(here, scores, -np.inf).max(axis=1, keepdims=True)
    among = ((scores > own) | ((scores == own) & later)).sum(axis=1)
    behind = candidates.shape[1] + (num_targets - 1 - target) - later.sum(axis=1)
    found: Integers = np.where(here.any(axis=1), among, behind)
    return found


def judge_texts(
    model: Blip, texts: Texts, settings: Evaluate, memory: Memory, wanted: Integers
) -> NDArray[np.float32]:
    """Give the match logits of one image, or video, with the texts of the given indices.

    Raises:
        CheckpointError: One is not a number.
    """
    with autocast(memory.device, settings.precision):
        rows = torch.from_numpy(wanted)
        logits = match_texts(model, texts, rows, memory, None, settings.batch_size)
    require_finite(logits, "pairs")
    matched: NDArray[np.float32] = logits[:, 1].cpu().numpy()
    return matched


@torch.inference_mode()
def _rank(
    model: Blip, images: EvaluationSet, texts: Texts, owner: Integers, config: Config
) -> tuple[Integers, Integers]:
    """Give the rank of every image's best own text (I), and of its image for every text (T)."""
    size, team = config.evaluate.batch_size, Team()
    mine = team.share(len(images), size)
    batches = image_tokens(model, images, size, config.evaluate.precision, mine)
    embeds = team.gather([model.embed_image(tokens).cpu() for _, tokens in batches])
    image_embeds = torch.cat(embeds).to(model.match_head.weight.device)
    with _autocast(model, config):
        text_embeds = embed_texts(model, texts, size)
    num_images, num_texts = len(image_embeds), len(texts)
    judges = _judges(model, images, mine, texts, config)
    judges = track(judges, "re-ranking", len(mine), "images", shown=rank() == 0)
    of_images, image_scores, of_texts, text_scores = rerank(
        image_embeds, text_embeds, config.evaluate.k, judges, mine, team.gather
    )
    each = ranks(of_images.indices[owner], image_scores[owner], np.arange(num_texts), num_texts)
    best = np.full(num_images, num_texts, dtype=np.int64)
    np.minimum.at(best, owner, each)
    return best, ranks(of_texts.indices, text_scores, owner, num_images)


def _judges(
    model: Blip, images: EvaluationSet, mine: range, texts: Texts, config: Config
) -> Iterator[Judge]:
    """Give the judge of every one of some images; the projections of one batch of images are held."""
    settings = config.evaluate
    for _, tokens in image_tokens(model, images, settings.batch_size, settings.precision, mine):
        with _autocast(model, config):
            memory = model.project_images(tokens)
        for image in range(len(tokens)):
            own = memory.select(slice(image, image + 1))
            yield partial(judge_texts, model, texts, settings, own)


def _nearest(queries: Tensor, targets: Tensor, k: int) -> Candidates:
    """Find the k most similar targets of every query, in blocks that bound the memory."""
    found = [
        torch.topk(block @ targets.T, min(k, len(targets)), dim=1)
        for block in torch.split(queries, max(1, 2**24 // len(targets)))
    ]
    cosine = torch.cat([f.values for f in found])
    require_finite(cosine, "pairs")
    return Candidates(torch.cat([f.indices for f in found]).cpu().numpy(), cosine.cpu().numpy())


def _autocast(model: Blip, config: Config) -> torch.autocast:
    return autocast(model.match_head.weight.device, config.evaluate.precision)


def _read_texts(
    images: EvaluationSet, tokenizer: Tokenizer, config: Config
) -> tuple[Texts, Integers]:
    """Give the texts, those of an image together, and each text's image number."""
    owner = np.repeat(np.arange(len(images)), [len(own) for own in images.texts])
    if not len(owner):
        raise DataError(f"{images.source}: has no caption to look for: give a set with captions")
    limits = config.finetune.retrieval
    texts = [clean_caption(text, limits.max_words) for own in images.texts for text in own]
    return Texts(*tokenizer.encode(texts, limits.max_tokens)), owner


def _lists(values: Integers, owner: Integers, num_images: int) -> list[list[int]]:
    """Give the values of the texts of every image."""
    lists: list[list[int]] = [[] for _ in range(num_images)]
    for value, image in zip(values.tolist(), owner.tolist(), strict=True):
        lists[image].append(value)
    return lists
