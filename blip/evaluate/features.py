"""Image tokens of a test set, computed once: kept on disk by the content of all that they depend on.

A block holds the tokens of one batch. It is named by the digest of the image encoder, the bytes of
the images in their order, their size, and what else decides the last bits; so what is read is, bit
for bit, what would be computed, whoever computed it and for which task.

    runs/features/<digest>.safetensors
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import psutil
import torch
from torch import Tensor

from blip.data.loader import ahead
from blip.errors import CheckpointError, ConfigError, DataError
from blip.evaluate.evaluation_set import THREADS
from blip.files import digest_json
from blip.models.blip import Blip
from blip.models.device import Precision, autocast
from blip.models.tensors import read_safetensors, write_safetensors

log = logging.getLogger(__name__)

_HEADER = 200  # bytes of a file beside those of its tensor, at most

FOLDER, LIMIT = "BLIP_FEATURE_CACHE", "BLIP_FEATURE_CACHE_GB"
"""Environment variables: where blocks are kept, by default `runs/features`; and how many (10^9 bytes),
by default 10. With 0 none are."""


class Images(Protocol):
    """Images in an order, as `Photos` or an `EvaluationSet` has them."""

    def __len__(self) -> int: ...

    def digests(self, rows: range) -> list[str]:
        """Give what tells some of them from all others: the sha256 of their bytes."""

    def pixels(self, rows: range, size: int) -> Tensor:
        """Read some: (B, 3, S, S)."""


def image_tokens(
    model: Blip,
    images: Images,
    batch_size: int,
    precision: Precision,
    rows: range | None = None,
) -> Iterator[tuple[range, Tensor]]:
    """Give rows and tokens (B, N, D) of images, batch by batch, each image once, in order.

    Images of which the tokens are kept are not decoded.

    Args:
        model: In evaluation mode; the tokens are on its device.
        images: The images.
        batch_size: Images at once.
        precision: Of the matrix products.
        rows: Which images, neighbours; all without.

    Raises:
        ConfigError: BLIP_FEATURE_CACHE_GB is no number.
        DataError: An image is missing, was changed or cannot be decoded; it is named.
    """
    rows = range(len(images)) if rows is None else rows
    device, size, store = model.vision.cls_token.device, model.image_size, open_store()
    encoder = _describe_encoder(model, precision) if store else ""
    spans = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]

    def load(number: int) -> tuple[str, Tensor | None, Tensor | None]:
        span = spans[number]
        name = digest_json([encoder, images.digests(span)]) if store else ""
        tokens = store.read(name) if store else None
        return name, tokens, images.pixels(span, size) if tokens is None else None

    for span, (name, tokens, pixels) in zip(
        spans, ahead(load, range(len(spans)), THREADS), strict=True
    ):
        if pixels is not None:
            with torch.inference_mode(), autocast(device, precision):
                tokens = model.encode_image(pixels.to(device))
            if store:
                store.write(name, tokens)
        assert tokens is not None
        yield span, tokens.to(device)


class FeatureStore:
    """Tensors on disk, by name: as many as fit; those not used for longest make room for others.

    Threads and processes may share it.

    Args:
        folder: Where.
        limit: Bytes that are kept.
        since: What was used after this time (in seconds since the epoch) stays. So of a set that is
            larger than the store a part is kept, instead of each block making room for the next.
    """

    def __init__(self, folder: Path, limit: int, since: float) -> None:
        self._folder, self._limit, self._since = folder, limit, since

    def read(self, name: str) -> Tensor | None:
        """Map a tensor into memory; None where it is not there."""
        path = self._place(name)
        try:
            os.utime(path)  # the last to be removed
            tensor = read_safetensors(path)["tokens"]
        except OSError:
            return None
        except CheckpointError as error:
            log.warning("%s; it is computed again", error)
            path.unlink(missing_ok=True)
            return None
        return tensor

    def write(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor, if there is room for it."""
        path = self._place(name)
        if not self._make_room(tensor.nbytes + _HEADER):
            return
        try:
            write_safetensors({"tokens": tensor}, path)
        except DataError as error:
            log.warning("%s; no more image tokens are kept", error)
            self._limit = 0

    def _place(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def _make_room(self, size: int) -> bool:
        """Remove what was not used for longest until a tensor fits in; tell whether it does."""
        found = []
        with contextlib.suppress(OSError):  # what cannot be used says so when it is written to
            for path in self._folder.iterdir():
                with contextlib.suppress(FileNotFoundError):  # another process makes room too
                    status = path.stat()
                    found.append((status.st_mtime, path, status.st_size))
        excess = sum(length for *_, length in found) + size - self._limit
        unused = [(path, length) for time, path, length in sorted(found) if time < self._since]
        if excess > sum(length for _, length in unused):
            return False
        for path, length in unused:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= length
        return True


def open_store() -> FeatureStore | None:
    """Open the store that the environment names; None where nothing is to be kept.

    Raises:
        ConfigError: BLIP_FEATURE_CACHE_GB is no number.
    """
    limit = os.environ.get(LIMIT, "10")
    try:
        size = int(float(limit) * 1e9)
    except ValueError:
        raise ConfigError(f"{LIMIT}={limit}: must be a number of 10^9 bytes") from None
    if size <= 0:
        return None
    folder = Path(os.environ.get(FOLDER, "runs/features"))
    return FeatureStore(folder, size, psutil.Process().create_time())


def _describe_encoder(model: Blip, precision: Precision) -> str:
    """Give the digest of all but the images that the tokens depend on."""
    vision = model.vision
    weights = hashlib.sha256()
    for name, tensor in vision.state_dict().items():
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    device = vision.cls_token.device
    machine: Sequence[object] = (
        [torch.cuda.get_device_name(device)]
        if device.type == "cuda"
        else [torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    )
    size = model.image_size
    config = model.config.vision.model_dump(mode="json")
    return digest_json([config, weights.hexdigest(), size, precision, torch.__version__, *machine])
