"""A whole checkpoint, opened to go on from: read by any number of processes, however it is sharded."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from blip import distributed
from blip.errors import CheckpointError
from blip.files import read_json
from blip.train.snapshot import OWN

log = logging.getLogger(__name__)

STATE = "state.json"


class _Piece(NamedTuple):
    """Part of a tensor: stored in a file, under a name, with its first element at some offsets."""

    file: Any  # of safe_open
    stored: str
    offsets: tuple[int, ...]


class Saved:
    """A whole checkpoint, whose tensors are read when asked for.

    Attributes:
        path: Its folder.
        step: Steps done.
        progress: What else the run kept, as handed in.
        best: Step of the best checkpoint so far, if any.
        about: What travels with it.
        world_size: Number of processes that wrote it.
        own: Tensors of this process alone; none if the run had no process of this rank.
    """

    def __init__(self, path: Path) -> None:
        state = read_json(path / STATE)
        self.path = path
        self.step: int = state["step"]
        self.progress: Any = state["progress"]
        self.best: int | None = state["best"]
        self.about: Any = state["about"]
        self.own: dict[str, Tensor] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        files = sorted(path.glob("rank-*.safetensors"))
        self.world_size = len(files)
        if self.world_size != distributed.world_size():
            log.warning(
                "%s: written by %d processes, read by %d: they go on with the same batches, but "
                "not in the same bits",
                path,
                self.world_size,
                distributed.world_size(),
            )
        for rank, file in enumerate(files):
            self._open(file, own=rank == distributed.rank())

    def names(self, group: str) -> list[str]:
        """Give the names of a group's tensors."""
        start = group + "."
        return [name.removeprefix(start) for name in self._pieces if name.startswith(start)]

    def load(self, group: str, tensors: Mapping[str, Tensor]) -> None:
        """Fill tensors, whole or sharded, in place with what the group holds under their names.

        Raises:
            CheckpointError: There are others, or they have other shapes or types.
        """
        stored = set(self.names(group))
        if different := sorted(stored ^ tensors.keys()):
            name = different[0]
            what = "has" if name in stored else "lacks"
            raise CheckpointError(
                f"{self.path}: a checkpoint of another model: it {what} {group}.{name} "
                f"({len(different)} such in all): give another run folder"
            )
        for name, tensor in tensors.items():
            self._fill(f"{group}.{name}", tensor)

    def _open(self, path: Path, own: bool) -> None:
        file: Any = safe_open(path, "pt")
        metadata = file.metadata()
        shards, same = json.loads(metadata["shards"]), json.loads(metadata["same"])
        for name, stored in [*((n, n) for n in file.keys()), *same.items()]:  # noqa: SIM118
            if name.startswith(OWN + "."):
                if own:
                    self.own[name.removeprefix(OWN + ".")] = file.get_tensor(stored)
                continue
            shape = file.get_slice(stored).get_shape()
            shape, offsets = shards.get(name, (shape, [0] * len(shape)))
            self._shapes[name] = tuple(shape)
            self._pieces.setdefault(name, []).append(_Piece(file, stored, tuple(offsets)))

    @torch.no_grad()
    def _fill(self, name: str, tensor: Tensor) -> None:
        if self._shapes[name] != tuple(tensor.shape):
            raise CheckpointError(
                f"{self.path}: a checkpoint of another model: {name} is {self._shapes[name]}, "
                f"not {tuple(tensor.shape)}: give another run folder"
            )
        part = distributed.part_of(tensor)
        for piece in self._pieces[name]:
            values = piece.file.get_tensor(piece.stored)
            if values.dtype != tensor.dtype:
                raise CheckpointError(
                    f"{self.path}: a checkpoint of another model: {name} is {values.dtype}, "
                    f"not {tensor.dtype}: give another run folder"
                )
            here, there = _overlap(part.offsets, part.local, piece.offsets, values)
            part.local[here].copy_(values[there])


def _overlap(
    offsets: tuple[int, ...], tensor: Tensor, other_offsets: tuple[int, ...], other: Tensor
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Give the same region of a whole in two parts of it, by slices of each; it may be empty."""
    here, there = [], []
    for start, length, other_start, other_length in zip(
        offsets, tensor.shape, other_offsets, other.shape, strict=True
    ):
        begin = max(start, other_start)
        end = max(begin, min(start + length, other_start + other_length))
        here.append(slice(begin - start, end - start))
        there.append(slice(begin - other_start, end - other_start))
    return tuple(here), tuple(there)
