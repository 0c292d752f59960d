"""Files of named tensors: read as data alone, whoever made them, and held against what they should be."""

import zipfile
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from blip.errors import CheckpointError
from blip.files import atomic_file

_LISTED_FAULTS = 5


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors atomically; equal tensors give equal bytes."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as file:
        file.write(safetensors.torch.save(whole, metadata))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Map the tensors of a file; a page is read when it is used.

    Raises:
        CheckpointError: The file cannot be read or is damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: is damaged: {error}: fetch or make it anew") from None


def read_torch(path: Path) -> dict[str, Tensor]:
    """Map the tensors of a file of `torch.save`: a state dict, bare or under "model".

    Raises:
        CheckpointError: The file cannot be read, is damaged, or holds what is not plain data; that
            is never run.
    """
    try:
        path.open("rb").close()
        # Only the zip format, which torch has written since 1.6, can be mapped.
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        # The first sentence: those after it advise to trust the file.
        reason = " ".join(f"{type(error).__name__}: {error}".split()).split(". ")[0][:200]
        raise CheckpointError(
            f"{path}: is damaged, or holds more than plain data, which is not run ({reason}): "
            "fetch it anew, or save its state dict alone"
        ) from None
    state: Any = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path}: must hold a state dict, got {type(state).__name__}")
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise CheckpointError(
                f"{path}: must hold a state dict of tensors, but {name!r} is {type(value).__name__}"
            )
    return state


def check_tensors(
    source: str,
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    optional: Set[str] = frozenset(),
) -> None:
    """Hold tensors against those expected: all but the values.

    Args:
        source: Where they come from, for the error.
        found: What is there.
        expected: What must be there, and nothing else.
        optional: Names of `expected` that may be missing.

    Raises:
        CheckpointError: Some are missing, unexpected, or of another shape or kind of number; the
            first are named.
    """
    faults = [f"missing {name}" for name in sorted(expected.keys() - found.keys() - optional)]
    faults += [f"unexpected {name}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        ours, theirs = expected[name], found[name]
        if theirs.shape != ours.shape:
            faults.append(f"{name} of shape {tuple(theirs.shape)}, expected {tuple(ours.shape)}")
        elif theirs.is_floating_point() != ours.is_floating_point():
            faults.append(f"{name} of {theirs.dtype}, expected {ours.dtype}")
    if faults:
        rest = len(faults) - _LISTED_FAULTS
        more = f"; and {rest} more" if rest > 0 else ""
        raise CheckpointError(f"{source}: {'; '.join(faults[:_LISTED_FAULTS])}{more}")
