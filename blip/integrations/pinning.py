"""Data that a `.dvc` file pins: brought into line with the cache, checked against their pin, pinned anew."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from blip.errors import DataError
from blip.integrations.dvc_session import find_stage, locked, opened, through_dvc
from blip.integrations.versioning import MADE_FROM, as_recorded, read_graph


@through_dvc
def keep_data(name: str) -> Literal["cached", "restored", "missing", "changed"]:
    """Bring pinned data and the cache into line: each gives the other what it lacks.

    Returns:
        `cached`: the data are there as pinned. `restored`: they were put back from the cache.
        `missing`: neither has them. `changed`: they are not what is pinned.
    """
    with opened() as repo, locked(repo):
        stage = find_stage(repo, name)
        if as_recorded(stage):
            if not stage.outs_cached():
                stage.commit()
            return "cached"
        if any(out.exists for out in stage.outs):
            return "changed"
        if not stage.outs_cached():
            return "missing"
        stage.checkout()
        return "restored"


def pin_data(folder: Path, made_from: str) -> None:
    """Check generated data against `<folder>.dvc` if that was made from the same, else write it.

    Args:
        folder: The data, in the current directory.
        made_from: Digest of the settings that the generator was given.

    Raises:
        DataError: The same settings gave other bytes than those pinned.
    """
    pin = Path(f"{folder}.dvc")
    pinned = read_graph().get(pin.as_posix()) if pin.exists() else None
    if pinned and pinned.made_from == made_from:
        if keep_data(pin.as_posix()) == "changed":
            raise DataError(
                f"{folder}: the same settings gave other bytes than {pin} pins: the generator or a "
                f"library of its behaves differently here; delete {pin} to accept them"
            )
        return
    _pin(folder, {MADE_FROM: made_from})


def pin_file(path: Path) -> bool:
    """Have a `.dvc` file pin fetched data; False where they lie outside of a DVC project."""
    root, place = Path.cwd(), path.resolve()
    if not ((root / ".dvc").is_dir() and place.is_relative_to(root)):
        return False
    _pin(place, None)
    return True


@through_dvc
def _pin(path: Path, meta: Mapping[str, str] | None) -> None:
    with opened() as repo:
        (stage,) = repo.add(str(path))
        stage.meta = meta
        stage.dump()


def forget_generated_data() -> None:
    """Remove the pins of generated data from a workspace whose experiment brings its own."""
    for node in read_graph().values():
        if node.made_from:
            Path(node.name).unlink()
