"""What is known of texts that were made noisy on purpose, so that the filter can be measured.

`truth.jsonl` has one line a text: `{"source", "text", "kind", "scene"}`. `source` is the image's
name as in the records of a dataset version, `kind` is `clean` or the kind of noise, `scene` is what
the image shows (null for photos); `blip.data.statements.judge` tells whether another text, such as
a synthetic caption, is true of it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from blip.data.scenes import Scene
from blip.errors import DataError
from blip.files import atomic_file

TRUTH = "truth.jsonl"


@dataclass(frozen=True)
class Truth:
    """What is known of one text of one image."""

    source: str
    text: str
    kind: str
    scene: Scene | None = None


def write_truth(path: Path, truths: Iterable[Truth]) -> None:
    """Write `truth.jsonl`."""
    with atomic_file(path) as file:
        for truth in truths:
            scene = truth.scene.to_json() if truth.scene else None
            line = {"source": truth.source, "text": truth.text, "kind": truth.kind, "scene": scene}
            file.write(json.dumps(line).encode() + b"\n")


def read_truth(path: Path) -> list[Truth]:
    """Read `truth.jsonl`.

    Raises:
        DataError: It cannot be read, or a line is malformed; the line is named.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    truths = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            scene = Scene.from_json(row["scene"]) if row["scene"] else None
            truths.append(Truth(row["source"], row["text"], row["kind"], scene))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: {line[:80]!r} is not a truth with source, text, kind and "
                f"scene ({error!r}): make the file again"
            ) from None
    return truths
