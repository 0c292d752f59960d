"""The filter at work: how well every text matches its image."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
import torch

from blip.capfilt.versions import Row, finish_shards, publish, read_finished, read_texts, report
from blip.config import Config
from blip.data.dataset import Dataset, open_dataset
from blip.data.loader import image_batches
from blip.data.text import VOCABULARY, Tokenizer, clean_caption
from blip.errors import DataError
from blip.models.checkpoint import load_model
from blip.models.device import autocast, prepare_device
from blip.models.matching import Texts, embed_texts, match_texts
from blip.stage import Part, input_digest
from blip.tracker import Tracker


def score(
    config: Config,
    model: Path,
    data: list[Path],
    out: Path,
    run_dir: Path,
    tracker: Tracker,
    part: Part | None = None,
) -> None:
    """Judge every text of dataset versions over the same images.

    A text's score is the match probability of the pair, from the softmax of the matching head; the
    cosine of the two embeddings stands beside it.

    Args:
        config: `capfilt.score_batch_size` and the text limits of `finetune.retrieval` are read.
        model: The filter.
        data: Dataset versions of the same image shards, e.g. web and synthetic.
        out: Receives one version with all texts and their scores.
        run_dir: Keeps the shards that are finished.
        tracker: Told the speed.
        part: Which shards to finish, and no more; all without, and `out` is written.

    Raises:
        DataError: The versions are of other images, a shard was changed, or an image cannot be
            decoded.
        CheckpointError: The model cannot be read, or has no matching head.
    """
    device = prepare_device(config.threads)
    datasets = [open_dataset(path) for path in data]
    _check_same_images(datasets)
    network = load_model(model, "retrieval", device=device).eval()
    tokenizer = Tokenizer(model / VOCABULARY)
    limits, size = config.finetune.retrieval, config.capfilt.score_batch_size
    judge = input_digest(model)

    def write(shard: Dataset) -> Iterator[tuple[int, list[Row]]]:
        texts_of = _texts_by_key(datasets, shard.shards[0].images_digest)
        for keys, images in image_batches(shard, network.image_size, size):
            rows = [row for key in keys for row in texts_of.get(key, [])]
            index = [i for i, key in enumerate(keys) for _ in texts_of.get(key, [])]
            cleaned = [clean_caption(row["text"], limits.max_words) for row in rows]
            texts = Texts(*tokenizer.encode(cleaned, limits.max_tokens))
            pairs, owner = (
                torch.arange(len(rows)),
                torch.tensor(index, dtype=torch.int64, device=device),
            )
            with torch.inference_mode(), autocast(device, config.capfilt.precision):
                tokens = network.encode_image(images.to(device))
                memory = network.project_images(tokens)
                logits = match_texts(network, texts, pairs, memory, owner, size)
                embeds = embed_texts(network, texts, size)
                cosines = (network.embed_image(tokens)[owner] * embeds).sum(1)
            matches = logits.softmax(1)[:, 1]
            verdicts = zip(rows, matches.tolist(), cosines.tolist(), strict=True)
            yield (
                len(keys),
                [
                    {**row, "filter": judge, "itm_score": match, "itc_score": cosine}
                    for row, match, cosine in verdicts
                ],
            )

    finish_shards(datasets[0], run_dir, write, "scoring", tracker, part)
    if part:
        return
    source = {"stage": "score", "parents": [d.digest for d in datasets], "filter": judge}
    texts = publish(datasets[0], read_finished(datasets[0], run_dir), out, source)
    found: dict[str, float] = {"texts": len(texts)}
    for origin in sorted(set(texts["origin"].to_pylist())):
        scores = texts["itm_score"].filter(pc.equal(texts["origin"], origin))
        found[f"{origin}_match_mean"] = pc.mean(scores).as_py()
    report(out, "score", found, tracker)


def _check_same_images(datasets: list[Dataset]) -> None:
    first, *others = datasets
    wanted = {shard.images_digest for shard in first.shards}
    for other in others:
        found = {shard.images_digest for shard in other.shards}
        for digest in sorted(wanted ^ found):
            raise DataError(
                f"{other.path} and {first.path}: are of other images, shard {digest[:12]} is in "
                "one of them alone: score versions that share their image shards"
            )


def _texts_by_key(datasets: list[Dataset], images_digest: str) -> dict[str, list[Row]]:
    """Give the texts of every image of a shard, over all versions, each once."""
    found: dict[str, dict[str, Row]] = {}
    for dataset in datasets:
        for shard in dataset.shards:
            if shard.images_digest == images_digest:
                for row in read_texts(shard).to_pylist():
                    undecided = {**row, "kept": None, "reason": None}
                    found.setdefault(row["key"], {})[row["caption_id"]] = undecided
    return {key: list(rows.values()) for key, rows in found.items()}
