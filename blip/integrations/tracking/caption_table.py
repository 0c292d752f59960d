"""Shows what was written and judged: captions beside their images, as a table in MLflow."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from blip.data.dataset import Shard, iterate_rows, open_dataset
from blip.data.images import ShardImages, decode_pixels
from blip.files import write_text

TABLE = "captions.json"

_IMAGES = 32  # in a table
_SIDE = 256  # pixels of a thumbnail, at most
_COLUMNS = {
    "text": "text",
    "origin": "origin",
    "match probability": "itm_score",
    "kept": "kept",
    "reason": "reason",
}


def write_caption_table(dataset: Path, folder: str, out: Path) -> None:
    """Write `captions.json` and the thumbnails it shows, of images spread over the first shard.

    Equal datasets give equal files, so that logging the table again changes nothing.

    Args:
        dataset: A dataset version.
        folder: Where the files will lie among the run's artifacts.
        out: Where to write them.

    Raises:
        DataError: The dataset cannot be read.
    """
    shards = open_dataset(dataset).shards
    rows: list[list[Any]] = []
    if shards:
        texts: dict[str, list[dict[str, Any]]] = {}
        for caption in iterate_rows(shards[0].read_captions()):
            texts.setdefault(caption["key"], []).append(caption)
        for key in _thumbnails(shards[0], out):
            path = f"{folder}/{key}.webp" if folder else f"{key}.webp"
            image = {"type": "image", "filepath": path, "compressed_filepath": path}
            for caption in texts.get(key, ()):
                rows.append([image, *(caption[field] for field in _COLUMNS.values())])
    table = {"columns": ["image", *_COLUMNS], "data": rows}
    write_text(out / TABLE, json.dumps(table, ensure_ascii=False))


def _thumbnails(shard: Shard, out: Path) -> list[str]:
    """Write thumbnails of some images; give their keys."""
    table = shard.read_records()
    images, records = ShardImages(shard, table), list(iterate_rows(table))
    chosen = range(len(records))[:: max(1, len(records) // _IMAGES)][:_IMAGES]
    for row in chosen:
        record = records[row]
        pixels = decode_pixels(images.read(row), record["width"] * record["height"])
        thumbnail = Image.fromarray(pixels)
        thumbnail.thumbnail((_SIDE, _SIDE))
        thumbnail.save(out / f"{record['key']}.webp", lossless=max(thumbnail.size) <= 64)
    return [records[row]["key"] for row in chosen]
