"""What an optimizer and the generators keep, as tensors by name, and back."""

import torch
from torch import Tensor

from blip import distributed
from blip.files import digest_json
from blip.train.saved import Saved


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Give an optimizer's state; empty before its first step."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": t for i, values in state.items() for name, t in values.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Saved) -> None:
    """Bring an optimizer to its state in a checkpoint; its moments are sharded as its parameters.

    Raises:
        CheckpointError: It is that of another model.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for name in saved.names("optimizer"):
        index, _, value = name.partition(".")
        like = torch.zeros(()) if value == "step" else parameters[int(index)].detach()
        tensors[name] = state.setdefault(int(index), {})[value] = torch.empty_like(like)
    saved.load("optimizer", tensors)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def random_states() -> dict[str, Tensor]:
    """Give the states of this process's generators."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def load_random_states(saved: Saved) -> None:
    """Bring this process's generators to their states in a checkpoint.

    Those of a process that the run did not have begin anew, by step and rank.
    """
    if not saved.own:
        torch.manual_seed(int(digest_json([saved.step, distributed.rank()])[:15], 16))
    if "cpu" in saved.own:
        torch.set_rng_state(saved.own["cpu"])
    if "cuda" in saved.own and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved.own["cuda"])
