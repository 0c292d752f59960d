"""The training loop, which knows nothing of BLIP: batches, an objective, AdamW, checkpoints."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch
from torch import Tensor, nn

from blip.batch import Batch, QuestionBatch, StatementBatch
from blip.config import Training
from blip.objectives import Losses, Objective, Position
from blip.progress import Progress
from blip.stage import read_manifest
from blip.tracker import Tracker
from blip.train.checkpoint import Checkpoints
from blip.train.curve import Curve, Point
from blip.train.optim import build_optimizer, learning_rate, set_learning_rate
from blip.train.telemetry import Telemetry

log = logging.getLogger(__name__)

AnyBatch = Batch | QuestionBatch | StatementBatch

TERMINATED = 128 + signal.SIGTERM  # exit code, as a shell would say it


class Loader(Protocol):
    """Batches by step: that of a step is the same, wherever the iteration starts."""

    @property
    def num_examples(self) -> int:
        """Examples of an epoch, before the rest is cut off."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches of an epoch."""

    def iterate(self, start: int, stop: int) -> Iterator[AnyBatch]:
        """Give the batches of the steps from `start` to `stop`."""

    def keys_of(self, step: int) -> list[str]:
        """Give the keys of the images that this process sees at a step."""


def fit(
    objective: Objective,
    loader: Loader,
    config: Training,
    tracker: Tracker,
    run_dir: Path,
    *,
    name: str = "training",
    identity: str = "",
) -> list[Point]:
    """Train an objective in place, from the last checkpoint in `run_dir` if there is one.

    A run that was killed and goes on ends in the same bits as one that was not, on one machine.
    On SIGTERM and Ctrl-C the step under way is finished and a checkpoint saved; then the process
    exits with code 143, or KeyboardInterrupt is raised. A second signal acts at once.

    Args:
        objective: Module of (batch, position) -> Losses, on the device of the loader's batches.
        loader: The examples.
        config: Length, optimizer, precision, how often to log and to save.
        tracker: Told a point every `log_every` steps.
        run_dir: Keeps the checkpoints.
        name: What the progress bar calls it.
        identity: Digest of what else decides the run; a checkpoint of another is refused.

    Returns:
        The curve: a point every `log_every` steps and at the end.

    Raises:
        BlipError: A loss or gradient is not finite, a shard was changed, the disk is full, ...
    """
    total = total_steps(config, loader.steps_per_epoch)
    optimizer = build_optimizer(objective, config.optimizer)
    checkpoints = Checkpoints(run_dir / "checkpoints", identity, about=read_manifest(run_dir))
    curve = Curve(tracker, lambda step: loader.keys_of(step), scaled=False)
    start = 0
    if restored := checkpoints.restore(objective, optimizer):
        start, progress = restored
        curve.load_state(progress)
    objective.train()
    device = next(objective.parameters()).device
    telemetry = Telemetry(device, torch.bfloat16 if config.precision == "bf16" else torch.float32)
    bar = Progress(name, total, "steps", done=start)
    note = ""
    with _finish_step_on_signal() as received:
        for step, batch in enumerate(loader.iterate(start, total), start):
            telemetry.lap("data")
            done = step + 1
            logs = done % config.log_every == 0 or done == total
            rate = learning_rate(config.optimizer, step, loader.steps_per_epoch, total)
            set_learning_rate(optimizer, rate)
            position = Position(step, loader.steps_per_epoch)
            with telemetry.step():
                losses, norm = _step(objective, optimizer, batch, position, config, telemetry)
            curve.add(losses.total, losses.metrics, norm)
            if logs:
                gauges = {
                    **{f"perf/{n}": v for n, v in telemetry.take(config.batch_size).items()},
                    **{
                        f"train/{n}": v
                        for n, v in objective.gauges(step, config.batch_size).items()
                    },
                }
                point = curve.close(done, rate, gauges)
                note = f"loss {point['loss']:.3f}"
            telemetry.lap("logging")
            if received or done % config.checkpoint_every == 0 or done == total:
                curve.settle(done)
                checkpoints.save(done, objective, optimizer, curve.state())
                telemetry.lap("checkpoint")
            bar.advance(note=note)
            if received:
                _leave(received[0], done)
    return curve.points


def total_steps(config: Training, steps_per_epoch: int) -> int:
    """Give the length of a run in steps."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return config.epochs * steps_per_epoch


def _step(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: AnyBatch,
    position: Position,
    config: Training,
    telemetry: Telemetry,
) -> tuple[Losses, Tensor]:
    """Do one step; give its losses and the norm of its gradient before clipping."""
    device = batch.images.device.type
    with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
        losses: Losses = objective(batch, position)
    telemetry.lap("forward")
    optimizer.zero_grad(set_to_none=True)
    losses.total.backward()  # type: ignore[no-untyped-call]
    telemetry.lap("backward")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if config.optimizer.clip_norm:
        nn.utils.clip_grads_with_norm_(parameters, config.optimizer.clip_norm, norm)
    optimizer.step()
    telemetry.lap("optimizer")
    return losses, norm


@contextlib.contextmanager
def _finish_step_on_signal() -> Iterator[list[int]]:
    """Collect the first SIGTERM or SIGINT in a list instead of dying of it; the next acts as ever.

    Signals reach the main thread alone; elsewhere nothing is changed.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    for number in previous:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()


def _leave(number: int, step: int) -> None:
    log.warning(
        "stopped after step %d; a checkpoint is saved, the same command goes on from it", step
    )
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(TERMINATED)
