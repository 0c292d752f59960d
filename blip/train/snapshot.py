"""Tensors copied to host memory in a moment, as they lie in a file of safetensors, written later."""

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip import distributed

Groups = Mapping[str, Mapping[str, Tensor]]

OWN = "own"  # the group of what each process has for itself
CHUNK = 16 * 2**20  # bytes written, and digested while the processor still holds them

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Snapshot:
    """A copy of tensors, laid out as the file it will become.

    The memory is kept from one copy to the next: to get it from the system costs ten times what
    filling it does.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._size = 0
        self._header = b""
        self._copied: torch.cuda.Event | None = None

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return len(self._header) + self._size

    def prepare(self, groups: Groups, own: Mapping[str, Tensor]) -> None:
        """Get the memory for a copy, which may take seconds; it may be another thread's work."""
        tensors, _ = _stored({**groups, OWN: own})
        self._reserve(tensors)

    def take(self, groups: Groups, own: Mapping[str, Tensor]) -> None:
        """Copy what this process stores, in the place of what was copied before.

        From a GPU it is copied behind the host's back, in the order of its stream: what the next
        step changes, it changes after the copy.

        Args:
            groups: Tensors that are whole and equal in every process, or sharded, by group and
                name. Those that share memory are copied once.
            own: Tensors of this process alone.
        """
        tensors, metadata = _stored({**groups, OWN: own})
        # The larger types first, so that every tensor lies at a multiple of its element's size.
        order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        spans: dict[str, tuple[int, int]] = {}
        size = 0
        for name in order:
            spans[name] = (size, size + tensors[name].nbytes)
            size += tensors[name].nbytes
        self._reserve(tensors)
        for name in order:
            tensor = tensors[name]
            place = self._memory[slice(*spans[name])].view(tensor.dtype).view(tensor.shape)
            place.copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        self._header, self._size = _header(tensors, spans, metadata), size

    def _reserve(self, tensors: Mapping[str, Tensor]) -> None:
        size = sum(tensor.nbytes for tensor in tensors.values())
        if len(self._memory) < size:
            pinned = any(tensor.is_cuda for tensor in tensors.values())
            self._memory = _allocate(size, pinned)

    def write(self, path: Path) -> str:
        """Write the file, down to the disk; give its sha256 (hex).

        Raises:
            OSError: The disk is full, ...
        """
        if self._copied:
            self._copied.synchronize()
        body = self._memory.numpy()[: self._size]
        digest = hashlib.sha256(self._header)
        with path.open("wb") as file:
            file.write(self._header)
            for start in range(0, self._size, CHUNK):
                chunk = body[start : start + CHUNK].data
                file.write(chunk)
                digest.update(chunk)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()


def _stored(groups: Groups) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Give the tensors that this process stores, and the metadata of their file, both by full name.

    Returns:
        The tensors; and as JSON, `shards`: shape of the whole and offsets in it, `same`: under
        which name those are stored that share their memory with another.
    """
    tensors: dict[str, Tensor] = {}
    shards: dict[str, tuple[list[int], tuple[int, ...]]] = {}
    same: dict[str, str] = {}
    first: dict[Any, str] = {}
    for group, members in groups.items():
        for member, tensor in members.items():
            name, part = f"{group}.{member}", distributed.part_of(tensor)
            if not part.stores and group != OWN:
                continue
            local = part.local
            if local.shape != tensor.shape:
                shards[name] = (list(tensor.shape), part.offsets)
            place = (local.data_ptr(), local.dtype, local.shape, local.stride())
            stored = first.setdefault(place, name) if local.numel() else name
            if stored == name:
                tensors[name] = local
            else:
                same[name] = stored
    return tensors, {"shards": json.dumps(shards), "same": json.dumps(same)}


def _header(
    tensors: Mapping[str, Tensor], spans: Mapping[str, tuple[int, int]], metadata: dict[str, str]
) -> bytes:
    """Give what stands before the tensors in a file of safetensors."""
    entries = {
        name: {
            "dtype": TYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": span,
        }
        for name, span in spans.items()
    }
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _allocate(size: int, pinned: bool) -> Tensor:
    """Give memory of some bytes, all of it there: pinned, or in huge pages, which come sooner."""
    if pinned:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    memory = mmap.mmap(-1, max(size, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).zero_()
