"""The captioner at work: one synthetic text for every image."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
import torch

from blip.capfilt.versions import Row, finish_shards, publish, read_finished, report
from blip.config import Config
from blip.data.dataset import Dataset, canonical_json, caption_id, open_dataset
from blip.data.loader import image_batches
from blip.data.text import VOCABULARY, Tokenizer
from blip.models.checkpoint import load_model
from blip.models.device import autocast, prepare_device
from blip.models.generation import generate, seeded_generator
from blip.stage import Part, input_digest
from blip.tracker import Tracker


def caption(
    config: Config,
    model: Path,
    data: Path,
    out: Path,
    run_dir: Path,
    tracker: Tracker,
    part: Part | None = None,
) -> None:
    """Write one synthetic caption for every image of a dataset version.

    What is drawn for an image depends on the seed and its key alone, not on its batch or shard.

    Args:
        config: The seed, `capfilt.decoding` and the prompt of `finetune.captioning` are read.
        model: The captioner.
        data: A dataset version; its images are taken, not its texts.
        out: Receives a version of the same images with the synthetic texts.
        run_dir: Keeps the shards that are finished.
        tracker: Told the speed.
        part: Which shards to finish, and no more; all without, and `out` is written.

    Raises:
        DataError: A shard was changed, or an image cannot be decoded.
        CheckpointError: The model cannot be read, or has no decoder.
    """
    device = prepare_device(config.threads)
    dataset = open_dataset(data)
    network = load_model(model, "captioning", device=device).eval()
    tokenizer = Tokenizer(model / VOCABULARY)
    decoding, prompt = config.capfilt.decoding, config.finetune.captioning.prompt
    prompt_ids = tokenizer.prompt(prompt)
    settings = decoding.model_dump(mode="json", exclude={"batch_size"})
    how = canonical_json(
        {
            **settings,
            "precision": config.capfilt.precision,
            "prompt": prompt,
            "seed": config.seed,
        }
    )
    writer = input_digest(model)

    def write(shard: Dataset) -> Iterator[tuple[int, list[Row]]]:
        for keys, images in image_batches(shard, network.image_size, decoding.batch_size):
            draws = [seeded_generator(config.seed, key) for key in keys]
            with torch.inference_mode(), autocast(device, config.capfilt.precision):
                tokens = network.encode_image(images.to(device))
                written = generate(
                    network,
                    network.project_images(tokens, decoding.num_readers),
                    prompt_ids,
                    decoding,
                    draws,
                )
            texts = [tokenizer.decode(ids) for ids in written]
            yield (
                len(keys),
                [
                    {
                        "caption_id": caption_id(key, "synthetic", text, writer, how),
                        "key": key,
                        "text": text,
                        "origin": "synthetic",
                        "generator": writer,
                        "decoding": how,
                    }
                    for key, text in zip(keys, texts, strict=True)
                ],
            )

    finish_shards(dataset, run_dir, write, "captioning", tracker, part)
    if part:
        return
    source = {"stage": "caption", "parents": [dataset.digest], "generator": writer}
    texts = publish(dataset, read_finished(dataset, run_dir), out, source)["text"]
    words = pc.list_value_length(pc.utf8_split_whitespace(texts))
    found = {
        "captions": len(texts),
        "distinct_share": len(pc.unique(texts)) / max(len(texts), 1),
        "words_mean": pc.mean(words).as_py() or 0.0,
    }
    report(out, "caption", found, tracker)
