"""The training loop, which knows nothing of BLIP: batches, an objective, steps, checkpoints.

It is the same for one process and for several: each does its part of every step.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch

from blip import distributed
from blip.config import Training
from blip.errors import TERMINATED
from blip.files import alone_in
from blip.objectives import Objective, Position
from blip.progress import Progress
from blip.stage import read_manifest
from blip.tracker import Tracker
from blip.train.checkpoint import Checkpoints
from blip.train.curve import Curve, Point
from blip.train.held_out import Best, Evaluate
from blip.train.optim import learning_rate
from blip.train.saved import Saved
from blip.train.snapshot import Groups
from blip.train.state import (
    load_optimizer,
    load_random_states,
    optimizer_tensors,
    random_states,
)
from blip.train.step import AnyBatch, Stepper
from blip.train.telemetry import Telemetry

log = logging.getLogger(__name__)


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
    evaluate: Evaluate | None = None,
) -> list[Point]:
    """Train an objective in place, from the last checkpoint in `run_dir` if there is one.

    A run that was killed and goes on ends in the same bits as one that was not, on one machine; on
    a GPU in the same but for the order in which its kernels add.
    On SIGTERM and Ctrl-C the step under way is finished and a checkpoint saved; then the process
    exits with code 143, or KeyboardInterrupt is raised. A second signal acts at once. Where there
    are several processes, a signal to one of them stops all after the same step.

    The objective is left with the weights to be used: those of the best evaluation if there are
    evaluations, else the last; or their average.

    Args:
        objective: On the device of the loader's batches; on the host if it is to be sharded.
        loader: The examples.
        config: Length, optimizer, precision, how often to log and to save.
        tracker: Told a point every `log_every` steps.
        run_dir: Keeps the checkpoints.
        name: What the progress bar calls it.
        identity: Digest of what else decides the run; a checkpoint of another is refused.
        evaluate: Called every `config.held_out.every` steps.

    Returns:
        The curve: a point every `log_every` steps and at the end.

    Raises:
        BlipError: Another process trains in `run_dir`, a loss or gradient is not finite, a shard
            was changed, the disk is full, ...
    """
    first = distributed.rank() == 0
    with alone_in(run_dir, "another training") if first else contextlib.nullcontext():
        run = _Run(objective, loader, config, tracker, run_dir, identity, evaluate)
        run.restore()
        bar = Progress(name, total_steps(config, loader.steps_per_epoch), done=run.step)
        with run.checkpoints:
            _loop(run, loader, bar)
        run.finish()
    return run.curve.points


class _Run:
    """A run under way: what a step moves, what is told, and what a checkpoint keeps of both."""

    def __init__(
        self,
        objective: Objective,
        loader: Loader,
        config: Training,
        tracker: Tracker,
        run_dir: Path,
        identity: str,
        evaluate: Evaluate | None,
    ) -> None:
        self.config = config
        self.stepper = Stepper(objective, config)
        if distributed.rank():  # the weights are those of the first process, chance is not
            torch.manual_seed(torch.initial_seed() + distributed.rank())
        # As a call: what a run asks of a loader only when it breaks.
        self.curve = Curve(
            tracker, lambda step: loader.keys_of(step), scaled=config.precision == "fp16"
        )
        self.step = 0
        self._tracker = tracker
        self._evaluate = evaluate
        self._held_out = config.held_out if evaluate else None
        self._best = Best(self._held_out) if self._held_out else None
        about = {**(read_manifest(run_dir) or {}), "training": config.model_dump()}
        self.checkpoints = Checkpoints(
            run_dir / "checkpoints", identity, config.keep_checkpoints, about
        )

    @property
    def ended(self) -> bool:
        """Whether there was no better evaluation for too long."""
        return self._best is not None and self._best.stops

    @property
    def improved(self) -> bool:
        """Whether the weights are the best so far: they must be kept."""
        return self._best is not None and self._best.step == self.step

    def evaluates(self, step: int) -> bool:
        """Tell whether an evaluation is due after so many steps."""
        return self._held_out is not None and step % self._held_out.every == 0

    def restore(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        saved = self.checkpoints.last()
        if saved is None:
            return
        self._load(saved)
        load_optimizer(self.stepper.optimizer, saved)
        load_random_states(saved)
        self.step, progress = saved.step, saved.progress
        self.curve.load_state(progress)
        self.stepper.scaler.load_state_dict(progress["scaler"])
        if self._best:
            self._best.load_state(progress["best"])
        log.info("going on from step %d", self.step)

    def prepare_to_save(self) -> None:
        """Get the memory that saving takes, once the optimizer has what it keeps."""
        self.checkpoints.prepare(self._groups(), own=random_states())

    def save(self) -> None:
        """Begin to save a checkpoint."""
        self.curve.settle(self.step)
        self._forget_lost_best()
        progress = {
            **self.curve.state(),
            "scaler": self.stepper.scaler.state_dict(),
            "best": self._best and self._best.state(),
        }
        best = self._best.step if self._best else None
        self.checkpoints.save(self.step, self._groups(), progress, own=random_states(), best=best)

    def evaluate(self, position: Position) -> None:
        """Evaluate the weights, or their average."""
        assert self._evaluate is not None
        assert self._best is not None
        self._forget_lost_best()
        with self._averaged(), self.stepper.autocast():
            values = self._evaluate(self.stepper.objective, position)
        self._tracker.metrics({f"held_out/{name}": v for name, v in values.items()}, self.step)
        self._best.take(self.step, values)
        if self._best.stops:
            log.info(
                "step %d: no better %s than %.4g of step %d in %d evaluations: training ends",
                self.step,
                self.config.held_out and self.config.held_out.metric,
                self._best.value,
                self._best.step,
                self._best.since,
            )

    def close(self, rate: float, telemetry: Telemetry) -> Point:
        """Make a point of the curve, with what training costs.

        Raises:
            BlipError: A loss or gradient is not finite.
        """
        self.stepper.check_scale(self.step)
        size = self.config.batch_size
        costs = {f"perf/{name}": value for name, value in telemetry.take(size).items()}
        known = self.stepper.objective.gauges(self.step - 1, size)
        gauges = {**costs, **{f"train/{name}": value for name, value in known.items()}}
        return self.curve.close(self.step, rate, gauges)

    def finish(self) -> None:
        """Leave the objective with the weights to be used."""
        if self._best and self._best.step is not None:
            self._load(self.checkpoints.at(self._best.step))
        if self.stepper.average:
            self.stepper.average.exchange()
        distributed.unwrap(self.stepper.objective)

    def _forget_lost_best(self) -> None:
        """Count no more on the best weights if they could not be saved, as where a disk was full."""
        best = self._best.step if self._best else None
        if self._held_out and best is not None and best == self.checkpoints.lost:
            log.warning(
                "the best weights so far, of step %d, are not saved: others take over", best
            )
            self._best = Best(self._held_out)

    def _groups(self) -> Groups:
        average = self.stepper.average
        return {
            "objective": self.stepper.objective.state_dict(),
            "optimizer": optimizer_tensors(self.stepper.optimizer),
            **({"average": average.state_dict()} if average else {}),
        }

    def _load(self, saved: Saved) -> None:
        saved.load("objective", self.stepper.objective.state_dict())
        if self.stepper.average:
            saved.load("average", self.stepper.average.state_dict())

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        average = self.stepper.average
        if average:
            average.exchange()
        yield
        if average:
            average.exchange()


def _loop(run: _Run, loader: Loader, bar: Progress) -> None:
    """Take the steps that are left."""
    config, total, first = run.config, bar.total, run.step
    telemetry = run.stepper.telemetry()
    note = ""
    with _finish_step_on_signal() as received:
        batches = loader.iterate(run.step, run.step if run.ended else total)
        for step, batch in enumerate(batches, run.step):
            telemetry.lap("data")
            stops = distributed.ask(lambda: bool(received))
            run.step = done = step + 1
            rate = learning_rate(config.optimizer, step, loader.steps_per_epoch, total)
            position = Position(step, loader.steps_per_epoch)
            with telemetry.step():
                taken = run.stepper.step(batch, position, rate, telemetry)
            run.curve.add(taken.loss, taken.metrics, taken.norm)
            telemetry.lap("logging")
            if run.evaluates(done):
                run.evaluate(position)
                telemetry.lap("evaluation")
            if done % config.log_every == 0 or done == total or run.ended:
                note = f"loss {run.close(rate, telemetry)['loss']:.3f}"
                telemetry.lap("logging")
            stopped = stops()
            if step == first:
                run.prepare_to_save()
            due = done % config.checkpoint_every == 0 or run.improved
            if stopped or run.ended or due or done == total:
                run.save()
                telemetry.lap("checkpoint")
            if distributed.rank() == 0:
                bar.advance(note=note)
            if stopped:
                run.checkpoints.finish()
                _leave(received[0] if received else signal.SIGTERM, done)
            if run.ended:
                break


def total_steps(config: Training, steps_per_epoch: int) -> int:
    """Give the length of a run in steps."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return config.epochs * steps_per_epoch


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
