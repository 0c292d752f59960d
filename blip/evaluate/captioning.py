"""Captioning: captions of a test set against the human ones, by BLEU-4, CIDEr and ROUGE-L.

BLIP.md 5.2. As in the published protocol the document frequencies of CIDEr are those of the
evaluated images; resampling images leaves them as they are.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from blip.config import Config
from blip.distributed import Team, rank
from blip.errors import DataError
from blip.evaluate.bootstrap import Floats, Statistic, mean
from blip.evaluate.evaluation_set import EvaluationSet
from blip.evaluate.features import image_tokens
from blip.evaluate.network import open_network
from blip.evaluate.results import report
from blip.files import write_json
from blip.metrics.captions import MAX_ORDER, BleuCounts, Corpus, bleu, tokenized_captions
from blip.models.device import autocast
from blip.models.generation import generate, seeded_generator
from blip.progress import Progress
from blip.tracker import Tracker

PER_IMAGE = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("cider", pa.float64(), nullable=False),
        pa.field("rouge_l", pa.float64(), nullable=False),
        pa.field(
            "matches", pa.list_(pa.int64(), MAX_ORDER), nullable=False
        ),  # of n-grams, n = 1..4
        pa.field("length", pa.int64(), nullable=False),  # of the caption, in tokens
        pa.field("reference_length", pa.int64(), nullable=False),  # of the closest reference
    ]
)


def evaluate_captioning(
    config: Config, checkpoint: Path, images: EvaluationSet, out: Path, tracker: Tracker
) -> None:
    """Measure captioning on a test set; scores are times 100, as the paper's tables have them.

    Writes `captions.json` (key, caption, references), `metrics.json` with bootstrap intervals over
    images, and `per_example.parquet` (`PER_IMAGE`), from which they, and comparisons, can be
    computed again.

    Args:
        config: `evaluate` and the prompt of `finetune.captioning` are read.
        checkpoint: Of a model that captions.
        images: The test images and their captions; images without any are not measured.
        out: The folder to write into.
        tracker: Told the metrics and the speed.

    Raises:
        DataError: No image has a caption to compare with.
    """
    references = {key: list(own) for key, own in zip(images.keys, images.texts, strict=True) if own}
    if not references:
        raise DataError(
            f"{images.source}: has no caption to compare with: give a set with captions"
        )
    started = time.monotonic()
    captions = write_captions(config, checkpoint, images)
    tracker.metrics({"perf/images_per_second": len(captions) / (time.monotonic() - started)})
    rows = [
        {"key": key, "caption": captions[key], "references": texts}
        for key, texts in references.items()
    ]
    write_json(out / "captions.json", rows)
    table = score_captions(captions, references)
    counts = {"images": len(rows)}
    report(config, "captioning", table, statistics(table), counts, out, tracker)


@torch.inference_mode()
def write_captions(config: Config, checkpoint: Path, images: EvaluationSet) -> dict[str, str]:
    """Write a caption for every image, by key; processes that torchrun started share the images.

    Raises:
        DataError: A photo is missing or damaged.
    """
    images.require_photos()
    model, tokenizer, device = open_network(checkpoint, "captioning", config.threads)
    decoding = config.evaluate.decoding
    prompt = tokenizer.prompt(config.finetune.captioning.prompt)
    precision, team = config.evaluate.precision, Team()
    mine = team.share(len(images), decoding.batch_size)
    progress = Progress("captioning", len(mine), "images", shown=rank() == 0)
    captions: list[str] = []
    for rows, tokens in image_tokens(model, images, decoding.batch_size, precision, mine):
        draws = [seeded_generator(config.seed, key) for key in images.keys[rows.start : rows.stop]]
        with autocast(device, precision):
            memory = model.project_images(tokens, decoding.num_readers)
            written = generate(model, memory, prompt, decoding, draws)
        captions += [tokenizer.decode(ids) for ids in written]
        progress.advance(len(rows))
    return dict(zip(images.keys, team.gather(captions), strict=True))


def score_captions(captions: dict[str, str], references: dict[str, list[str]]) -> pa.Table:
    """Score the captions of the images that have references, both by key: a `PER_IMAGE` table."""
    hypotheses = [captions[key] for key in references]
    corpus = Corpus(*tokenized_captions(hypotheses, list(references.values())))
    counts = corpus.bleu_counts()
    return pa.table(
        {
            "key": list(references),
            "cider": corpus.cider(),
            "rouge_l": corpus.rouge_l(),
            "matches": counts.matches.astype(np.int64).tolist(),
            "length": counts.length.astype(np.int64),
            "reference_length": counts.reference_length.astype(np.int64),
        },
        schema=PER_IMAGE,
    )


def statistics(per_image: pa.Table, orders: Sequence[int] = (MAX_ORDER,)) -> dict[str, Statistic]:
    """Give the metrics of a `PER_IMAGE` table, times 100, as statistics over its images.

    Args:
        per_image: Of the images.
        orders: Of the n-grams, up to which there is a BLEU each.
    """
    matches = np.array(per_image["matches"].to_pylist(), dtype=np.float64)
    length = per_image["length"].to_numpy().astype(np.float64)
    reference_length = per_image["reference_length"].to_numpy().astype(np.float64)
    possible = np.maximum(0.0, length[:, None] - np.arange(MAX_ORDER))

    def bleu_of(draws: Floats, order: int) -> Floats:
        sums = (draws @ column for column in (matches, possible, length, reference_length))
        scores: Floats = 100.0 * bleu(BleuCounts(*sums))[:, order - 1]
        return scores

    return {
        **{f"bleu{order}": partial(bleu_of, order=order) for order in orders},
        "cider": mean(100.0 * per_image["cider"].to_numpy()),
        "rouge_l": mean(100.0 * per_image["rouge_l"].to_numpy()),
    }
