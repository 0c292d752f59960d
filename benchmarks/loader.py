"""The loader against the bare pipeline of webdataset, from disk and from an S3 server on loopback."""

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import inputs, s3
from benchmarks.inputs import Size
from benchmarks.measure import Case, Outcome, Way
from blip import config
from blip.data.dataset import Dataset, open_dataset
from blip.data.ingest import ingest
from blip.data.loader import PairLoader
from blip.data.storage import FOLDER
from blip.data.text import Tokenizer, train_vocabulary
from blip.errors import ConfigError
from blip.files import write_json
from blip.tracker import NullTracker

BATCH_SIZE, SIDE, MAX_PIXELS = 32, 224, 2**24
SHARD_SIZE = 256
SHUFFLE = 2 * SHARD_SIZE  # images that webdataset mixes: as many as two shards hold


def build_loader(remote: bool, size: Size, device: torch.device, wanted: Collection[str]) -> Case:
    """Batches of pre-training, from the shards of a dataset version to normalised images."""
    from benchmarks import photos  # torchvision takes seconds to import

    try:
        import webdataset as wds
    except ImportError:
        raise ConfigError("the loader's path needs webdataset: make install-dev") from None

    count = 64 if size.name == "tiny" else 1024
    folder = Path(_kept(tempfile.TemporaryDirectory()))
    write_version(folder / "bucket/web", count)
    tokenizer = Tokenizer(folder / "vocab.txt")
    settings = config.Pretrain.model_validate(inputs.preset("pretrain"))
    place: Path | str = folder / "bucket/web"
    addresses = [str(shard.images) for shard in open_dataset(folder / "bucket/web").shards]
    if remote:
        place = "s3://bucket/web"
        os.environ.update(s3.environment(_kept(s3.serve(folder))))
        os.environ[FOLDER] = str(folder / "copies")
        addresses = [f"pipe:curl -s -f '{url}'" for url in sign(open_dataset(place))]

    def ours(calm: bool) -> Iterator[tuple[Tensor, Tensor]]:
        shutil.rmtree(folder / "copies", ignore_errors=True)
        changes = {"batch_size": BATCH_SIZE, "num_workers": 1 if remote else 0}
        pairs = settings.pairs.model_copy(update={"shuffle_shards": 2})
        chosen = augmentation(settings, calm)
        training = settings.model_copy(
            update={**changes, "pairs": pairs, "augmentation": chosen, "image_size": SIDE}
        )
        loader = PairLoader([open_dataset(place)], tokenizer, training, seed=0)
        for batch in loader.iterate(0, loader.steps_per_epoch):
            yield batch.image_ids, batch.images

    def theirs(read: photos.Reader, calm: bool) -> Iterator[tuple[Tensor, Tensor]]:
        chosen = augmentation(settings, calm)

        def prepare(samples: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
            keys = [sample["__key__"] for sample in samples]
            rngs = [np.random.default_rng(int(key[:8], 16)) for key in keys]
            images = read([sample["jpg"] for sample in samples], chosen, rngs)
            return torch.tensor([int(key[:15], 16) for key in keys]), images

        shards = wds.WebDataset(addresses, shardshuffle=len(addresses), empty_check=False, seed=0)
        mixed = shards.shuffle(SHUFFLE)
        yield from mixed.batched(BATCH_SIZE, collation_fn=prepare, partial=False)

    def run(batches: Callable[[bool], Iterator[tuple[Tensor, Tensor]]]) -> Outcome:
        return {"images": torch.tensor(sum(len(ids) for ids, _ in batches(False)))}

    def check(batches: Callable[[bool], Iterator[tuple[Tensor, Tensor]]]) -> Outcome:
        found = [(ids, shrink(images)) for ids, images in batches(True)]
        ids, order = torch.cat([ids for ids, _ in found]).sort()
        return {"images": torch.cat([images for _, images in found])[order], "keys": ids}

    ways = {}
    readers = {"webdataset": photos.read_ours, "torchvision": photos.read_torchvision}
    sources = {name: functools.partial(theirs, read) for name, read in readers.items()}
    for name, batches in {"ours": ours, **sources}.items():
        ways[name] = Way(functools.partial(run, batches), functools.partial(check, batches))
    where = "S3 on loopback" if remote else "disk"
    path = f"loader from {where}, 500-px JPEG, augmented, {SIDE} px"
    return Case(path, ways, count, "images", {}, photos.mean_levels, tolerance=0.5)


def augmentation(settings: config.Pretrain, calm: bool) -> config.Augmentation:
    """Give pre-training's augmentation, or none."""
    none = {"crop_scale": (1.0, 1.0), "flip": 0.0, "randaugment": False}
    return settings.augmentation.model_copy(update=none if calm else {})


def shrink(images: Tensor) -> Tensor:
    """Make images small enough to keep all of them: (B, 3, 14, 14)."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 14)


def write_version(out: Path, count: int) -> None:
    """Write a dataset version of photos with one caption each, and `vocab.txt` two folders above."""
    source = out.parent.parent / "source"
    source.mkdir(parents=True)
    drawn = inputs.draw_photos(16)
    captions = [f"a photo of the number {number}" for number in range(count)]
    for number in range(count):
        comment = number.to_bytes(4, "big")  # so that no two files are equal
        file = drawn[number % len(drawn)]
        file = file[:2] + b"\xff\xfe\x00\x06" + comment + file[2:]
        (source / f"{number}.jpg").write_bytes(file)
    records = [{"image": f"{n}.jpg", "caption": text} for n, text in enumerate(captions)]
    write_json(source / "pairs.json", records)
    document = inputs.preset("ingest")
    first = {**document["sources"]["web"], "format": "blip"}
    first |= {"annotations": str(source / "pairs.json"), "images": str(source)}
    document |= {"sources": {"web": first}, "shard_size": SHARD_SIZE if count > SHARD_SIZE else 16}
    out.mkdir(parents=True)
    ingest(config.Ingest.model_validate(document), "web", out, out.parent / "run", NullTracker())
    train_vocabulary(captions * 2, 200, out.parent.parent)


def sign(dataset: Dataset) -> list[str]:
    """Give URLs that need no credentials, of the shards of a version in S3."""
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(signature_version="s3v4"))
    urls = [shard.urls["images"] for shard in dataset.shards if shard.urls]
    places = [url.removeprefix("s3://").partition("/") for url in urls]
    return [
        client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key})
        for bucket, _, key in places
    ]


def _kept(context: contextlib.AbstractContextManager[str]) -> str:
    """Enter a context that is left when the process ends."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(context)
