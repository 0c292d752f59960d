"""One of two processes: `RANK=0 ... python two_processes.py JOB FOLDER`, for test_distributed.py.

What a job comes to is saved as FOLDER/JOB.RANK.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blip import distributed
from blip.batch import Batch, SpecialTokens
from blip.config import PRESETS, Training, load_config
from blip.errors import BlipError
from blip.models.blip import Blip, Parts
from blip.objectives import Losses, Objective, Position
from blip.objectives.finetune import CaptioningObjective, RetrievalObjective
from blip.objectives.pretrain import PretrainObjective
from blip.tracker import NullTracker
from blip.train.step import Stepper
from blip.train.trainer import fit

SPECIAL = SpecialTokens(pad=0, cls=2, sep=3, dec=400, enc=401)
DEMO = load_config(PRESETS / "demo.yaml")
STEPS = 3
SIZE = 7  # of a batch; two processes share it as 4 and 3


def training(**changes: Any) -> Training:
    """Settings that clip, as the norm must be that of all processes."""
    section = DEMO.finetune.captioning
    optimizer = section.optimizer.model_copy(update={"clip_norm": 0.5})
    short = {"batch_size": SIZE, "optimizer": optimizer, "steps": 12, "log_every": 3}
    return section.model_copy(update={**short, "checkpoint_every": 4, **changes})


def build(task: Parts) -> Objective:
    torch.manual_seed(0)
    model = Blip(DEMO.model, 64, 402, SPECIAL, task)
    settings = DEMO.pretrain.contrast.model_copy(update={"queue_size": 12})
    if task == "captioning":
        return CaptioningObjective(model, 0.1, 4)
    if task == "retrieval":
        return RetrievalObjective(model, settings, True)
    return PretrainObjective(model, settings)


def draw(step: int) -> Batch:
    """Draw this process's part of a step's batch."""
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(6, 12, (SIZE,), generator=generator)
    mask = (torch.arange(12) < lengths[:, None]).long()
    token_ids = torch.randint(5, 400, mask.shape, generator=generator) * mask
    token_ids[:, 0] = SPECIAL.cls
    images = torch.randn(SIZE, 3, 64, 64, generator=generator)
    whole = Batch(images, token_ids, mask, torch.arange(SIZE) + SIZE * step)
    mine = slice(distributed.rank(), None, distributed.world_size())
    return Batch(*(tensor[mine] for tensor in vars(whole).values()))


def train(task: Parts, **changes: Any) -> dict[str, Tensor]:
    """Take some steps; give all weights and buffers."""
    objective = build(task)
    stepper = Stepper(objective, training(**changes))
    torch.manual_seed(distributed.rank())
    norms = []
    for step in range(STEPS):
        taken = stepper.step(draw(step), Position(step, 10), 1e-3, stepper.telemetry())
        assert taken.norm is not None
        norms.append(taken.norm)
    if stepper.average:
        stepper.average.exchange()
    distributed.unwrap(objective)
    state = {name: tensor.detach().clone() for name, tensor in objective.state_dict().items()}
    return {**state, "norms": torch.stack(norms)}


def exchange() -> dict[str, Any]:
    """Exchange rows of which the processes have differently many."""
    rank = distributed.rank()
    rows = torch.arange(3.0 - rank)[:, None] + 10 * rank
    rows.requires_grad_(True)
    gathered = distributed.all_gather_with_grad(rows)
    (gathered * torch.arange(len(gathered))[:, None]).sum().backward()
    return {
        "rows": distributed.all_gather(rows, rows + 1),
        "gradient": rows.grad,
        "before": distributed.rows_before(len(rows)),
        "padded": distributed.all_gather_padded(torch.full((1, 2 + rank), rank), 9),
        "total": distributed.total(torch.tensor([1.0, rank])),
        "mean": distributed.mean([1.0, float(rank)]),
        "asked": [distributed.ask(lambda v=v: v == rank)() for v in (0, 1, 2)],
        "told": distributed.broadcast(f"by {rank}"),
    }


def steps() -> dict[str, Any]:
    """Train in all the ways that must agree."""
    return {
        "exchange": exchange() if distributed.world_size() > 1 else None,
        "captioning": train("captioning"),
        "captioning accumulate": train("captioning", accumulate=2),
        "captioning fsdp": train("captioning", sharding="fsdp"),
        "captioning fsdp accumulate": train("captioning", sharding="fsdp", accumulate=2),
        "captioning average": train("captioning", ema_decay=0.5),
        "captioning fsdp average": train("captioning", ema_decay=0.5, sharding="fsdp"),
        "pretrain": train("pretrain"),
        "pretrain fsdp": train("pretrain", sharding="fsdp"),
        "pretrain recomputed": train_recomputed(),
        "retrieval": train("retrieval"),
        "retrieval fsdp": train("retrieval", sharding="fsdp"),
    }


def train_recomputed() -> dict[str, Tensor]:
    from blip.models.med import TextTransformer

    TextTransformer.checkpoint_layers = 2
    try:
        return train("pretrain")
    finally:
        TextTransformer.checkpoint_layers = 0


class Stumble:
    """Batches of a tiny problem; at a step, something happens to one process."""

    steps_per_epoch = 7
    num_examples = 7 * SIZE

    def __init__(self, at: int, rank: int, what: Callable[[], Any]) -> None:
        self.at, self.rank, self.what = at, rank, what

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
            if (step, distributed.rank()) == (self.at, self.rank):
                self.what()
            yield draw(step)


class Linear(Objective):
    """A tiny problem with chance in it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(12, 400)

    def forward(self, batch: Batch, position: Position) -> Losses:
        pixels = nn.functional.dropout(batch.images[:, :, :2, :2].flatten(1), 0.5)
        loss = nn.functional.cross_entropy(self.layer(pixels), batch.token_ids[:, 1])
        return Losses(loss, {})


def run(
    folder: Path,
    at: int = -1,
    rank: int = -1,
    what: Callable[[], Any] = lambda: None,
    **changes: Any,
) -> Any:
    """Train the tiny problem in a folder."""
    objective = Linear()
    loader = Stumble(at, rank, what)
    curve = fit(objective, loader, training(**changes), NullTracker(), folder)
    return {"curve": curve, "weight": objective.layer.weight.detach(), "chance": torch.rand(1)}


def kill(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def left(folder: Path, **changes: Any) -> dict[str, Any]:
    """Be undisturbed; then stopped by a signal to one, and gone on."""
    whole = run(folder / "whole", **changes)
    try:
        run(folder / "stopped", 5, 1, kill(signal.SIGTERM), **changes)
        code: Any = 0
    except SystemExit as ended:
        code = ended.code
    names = sorted(path.name for path in (folder / "stopped/checkpoints").iterdir())
    again = run(folder / "stopped", **changes)
    return {"whole": whole, "code": code, "names": names, "again": again}


def main(job: str, folder: Path) -> None:
    torch.set_num_threads(1)
    logging.basicConfig()
    if "PATIENCE" in os.environ:
        distributed.PATIENCE = timedelta(seconds=float(os.environ["PATIENCE"]))
    distributed.ROLL_CALL = 2.0
    rank = os.environ.get("RANK", "0")
    began = time.monotonic()
    try:
        with distributed.processes():
            match job:
                case "steps":
                    outcome: Any = steps()
                case "left":
                    outcome = {
                        sharding: left(folder / sharding, sharding=sharding, ema_decay=0.9)
                        for sharding in ("ddp", "fsdp")
                    }
                case "killed":
                    outcome = run(folder, 2, 1, kill(signal.SIGKILL))
                case "killed first":  # who holds the store
                    outcome = run(folder, 2, 0, kill(signal.SIGKILL))
                case "hung":
                    outcome = run(folder, 2, 1, kill(signal.SIGSTOP))
            torch.save(outcome, folder / f"{job}.{rank}")
    except BlipError as error:
        sys.stderr.write(f"{time.monotonic() - began:.1f} {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
