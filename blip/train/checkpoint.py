"""Checkpoints: all that a killed run needs to go on as if nothing had happened, whole or absent.

    checkpoints/step-00000100/
      tensors.safetensors   objective.* (model, twin, queue), optimizer.*, random.* (generators)
      state.json            step, progress, digests of configuration and code
      digests.json          sha256 of the two

The loader needs no state of its own: its batch is a function of the step.
"""

import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from blip.errors import CheckpointError, DataError
from blip.files import atomic_directory, digest_file, digest_json, read_json

log = logging.getLogger(__name__)

KEEP = 2  # the last, and the one before in case that is damaged

TENSORS, STATE, DIGESTS = "tensors.safetensors", "state.json", "digests.json"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they lie.
        identity: Digest of what the run is: configuration, data, seed.
        about: What else travels with each, as JSON: the manifest.
    """

    def __init__(self, folder: Path, identity: str, about: Any = None) -> None:
        self.folder = folder
        self._about = about
        self.identity = identity
        self._code = code_digest()

    def save(
        self, step: int, objective: nn.Module, optimizer: torch.optim.Optimizer, progress: Any
    ) -> None:
        """Write the state after `step` steps; older checkpoints but one are removed.

        Args:
            step: Steps done.
            objective: What is trained.
            optimizer: Its optimizer.
            progress: What else the run keeps, as JSON.

        Raises:
            DataError: The disk is full or the place cannot be written; the older checkpoints stay.
        """
        path = self.folder / f"step-{step:08}"
        tensors = {
            **_prefix("objective", _stored(objective)),
            **_prefix("optimizer", _optimizer_tensors(optimizer)),
            **_prefix("random", _random_states()),
        }
        state = {
            "step": step,
            "progress": progress,
            "identity": self.identity,
            "code": self._code,
            "torch": torch.__version__,
            "about": self._about,
        }
        with atomic_directory(path) as folder:
            try:
                safetensors.torch.save_file(tensors, folder / TENSORS)
            except SafetensorError as error:  # its name for a full disk
                raise OSError(str(error)) from error
            (folder / STATE).write_text(json.dumps(state))
            digests = {name: digest_file(folder / name) for name in (TENSORS, STATE)}
            (folder / DIGESTS).write_text(json.dumps(digests))
        for old in self._found()[KEEP:]:
            shutil.rmtree(old)

    def restore(
        self, objective: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[int, Any] | None:
        """Bring objective, optimizer and generators to the last whole checkpoint.

        Returns:
            Its step and progress; None where there is none.

        Raises:
            CheckpointError: It is one of another run.
        """
        for partial in self.folder.glob(".*.partial"):
            shutil.rmtree(partial)  # a save that was killed
        for path in self._found():
            try:
                state, tensors = _read(path)
            except DataError as error:
                log.warning("%s: damaged, going on from the one before: %s", path, error)
                continue
            self._check(path, state)
            _load_objective(objective, _under("objective", tensors))
            _load_optimizer(optimizer, _under("optimizer", tensors))
            _load_random_states(_under("random", tensors))
            log.info("going on from step %d", state["step"])
            return state["step"], state["progress"]
        return None

    def _found(self) -> list[Path]:
        """Give the checkpoints there are, newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _check(self, path: Path, state: dict[str, Any]) -> None:
        if state["identity"] != self.identity:
            raise CheckpointError(
                f"{path}: belongs to a run with another configuration or other data: "
                "remove it, or give another run folder"
            )
        if (state["code"], state["torch"]) != (self._code, torch.__version__):
            log.warning(
                "%s: made by another version of this program or of torch: "
                "the run goes on, but may not end in the same bits",
                path,
            )


def code_digest() -> str:
    """Give the digest of the package's sources."""
    package = Path(__file__).parents[1]
    sources = sorted(package.rglob("*.py"))
    return digest_json({p.relative_to(package).as_posix(): digest_file(p) for p in sources})


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a checkpoint.

    Raises:
        DataError: A file is missing or is not what was written.
    """
    digests = read_json(path / DIGESTS)
    for name in (TENSORS, STATE):
        if not isinstance(digests, dict) or digest_file(path / name) != digests.get(name):
            raise DataError(f"{name} is not what was written")
    return read_json(path / STATE), safetensors.torch.load_file(path / TENSORS)


def _prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = prefix + "."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def _stored_names(state: dict[str, Tensor]) -> dict[str, str]:
    """Map every name to the first name of the same tensor: what stacks share is stored once."""
    first: dict[tuple[int, torch.Size], str] = {}
    return {n: first.setdefault((t.data_ptr(), t.shape), n) for n, t in state.items()}


def _stored(objective: nn.Module) -> dict[str, Tensor]:
    state = objective.state_dict()
    return {name: state[name].contiguous() for name in set(_stored_names(state).values())}


def _load_objective(objective: nn.Module, tensors: dict[str, Tensor]) -> None:
    names = _stored_names(objective.state_dict())
    try:
        objective.load_state_dict({n: tensors[s] for n, s in names.items() if s in tensors})
    except RuntimeError as error:
        raise CheckpointError(f"a checkpoint of another model: {error}") from None


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": t for i, values in state.items() for name, t in values.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, value = name.partition(".")
        state.setdefault(int(index), {})[value] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _random_states() -> dict[str, Tensor]:
    devices: Iterable[Tensor] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ()
    return {"cpu": torch.get_rng_state(), **{f"cuda{i}": s for i, s in enumerate(devices)}}


def _load_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    for i in range(len(states) - 1):
        torch.cuda.set_rng_state(states[f"cuda{i}"], i)
