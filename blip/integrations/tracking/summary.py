"""The numbers by which experiments are compared, gathered from all results into flat names."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blip.files import read_json
from blip.integrations.tracking.shipping import RESULTS

_LEAVES = ("value", "difference")  # of a number with its interval, of a comparison


def summarise(results: Path) -> dict[str, float]:
    """Read every `metrics.json` below a folder: `results/<arm>/<task>/<metric>` and its value.

    Reported at step 0 they land on the experiment's run, of cached stages too.

    Raises:
        DataError: A file is not JSON.
    """
    found = {}
    for path in sorted(results.glob("**/metrics.json")):
        folder = path.parent.relative_to(results).parts
        for names, value in _numbers(read_json(path)):
            inner = names[1:] if folder and names[0] == folder[-1] else names
            found[RESULTS + "/".join([*folder, *inner])] = value
    return found


def _numbers(node: Mapping[str, Any], names: tuple[str, ...] = ()) -> Iterator[tuple[Any, float]]:
    for leaf in _LEAVES:
        if names and isinstance(node.get(leaf), int | float):
            yield from _numbers({names[-1]: node[leaf]}, names[:-1])
            return
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, (*names, name))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*names, name), float(value)
