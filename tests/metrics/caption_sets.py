"""The result sets of the reference material, found by pattern, with their references."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from blip.benchmarks.coco_captions import ImageId, read_captions, read_references


class ResultSet(NamedTuple):
    name: str
    captions: dict[ImageId, str]
    references: dict[ImageId, list[str]]
    official: dict[str, Any]


def result_sets(shared: Path) -> list[ResultSet]:
    """Read every set with official scores; its references are those of the same images."""
    folder = shared / "data/caption_metrics"
    paths = [*sorted(folder.glob("refs/*.json")), *shared.glob("data/coco_karpathy/*_gt.json")]
    references = {path: read_references(path) for path in paths}
    sets = []
    for scores in sorted(folder.glob("scores/*.json")):
        official = json.loads(scores.read_text())
        images = {row["image_id"] for row in official["per_image"]}
        path = next(path for path, own in references.items() if own.keys() == images)
        captions = read_captions(folder / "results" / scores.name, images, path)
        sets.append(ResultSet(scores.stem, captions, references[path], official))
    return sets
