"""One optimizer step: forward and backward of each piece of a batch, clipping, AdamW, average."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip import distributed
from blip.batch import Batch, QuestionBatch, StatementBatch
from blip.config import Training
from blip.errors import BlipError, ConfigError
from blip.models.device import DTYPES, autocast
from blip.objectives import Losses, Objective, Position
from blip.train.average import WeightAverage
from blip.train.optim import build_optimizer, set_learning_rate
from blip.train.telemetry import Telemetry

AnyBatch = Batch | QuestionBatch | StatementBatch

MIN_SCALE = 1e-4  # of the loss in fp16, which begins at 65536 and halves at every overflow


@dataclass(frozen=True)
class Taken:
    """The outcome of a step in this process.

    Attributes:
        loss: What was minimised, a detached scalar.
        metrics: Detached scalars by name.
        norm: Of the gradient of all processes before clipping.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    norm: Tensor


class Stepper:
    """What a step moves: weights, optimizer, loss scale, average.

    A step of several processes, or of several pieces, minimises what one of the whole batch would:
    the mean over its tokens of the LM loss, that over its examples of any other. But for what a
    piece is compared with: candidates for contrast are those of the piece and the queue, and
    negatives those of the piece. All pieces of a step meet the same twin, and join the queue in
    turn.

    Args:
        objective: What is trained.
        config: Optimizer, precision, pieces, sharding, average.

    Attributes:
        objective: As given; the weights that are trained.
        optimizer: AdamW.
        scaler: Of the loss, in fp16.
        average: Of the weights, if configured.

    Raises:
        ConfigError: There are fewer pairs in a step than pieces.
    """

    def __init__(self, objective: Objective, config: Training) -> None:
        _check_pieces(config)
        self.objective = objective.train()
        self._config = config
        self._wrapped = distributed.wrap(objective, config.sharding, objective.units())
        self.optimizer = build_optimizer(objective, config.optimizer)
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._device = self._parameters[0].device
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=config.precision == "fp16")
        self.average = None
        if config.ema_decay is not None:
            self.average = WeightAverage(objective, config.ema_decay)

    def step(self, batch: AnyBatch, position: Position, rate: float, telemetry: Telemetry) -> Taken:
        """Do one step on this process's part of a batch."""
        set_learning_rate(self.optimizer, rate)
        self.objective.begin_step()
        self.optimizer.zero_grad(set_to_none=True)
        pieces: Sequence[AnyBatch]
        pieces = batch.split(self._config.accumulate) if self._config.accumulate > 1 else [batch]
        weights = self._weights(pieces)
        outcomes = []
        for number, piece in enumerate(pieces):
            distributed.average_gradients(self._wrapped, now=number == len(pieces) - 1)
            with self.autocast():
                losses: Losses = self._wrapped(piece, position)
            telemetry.lap("forward")
            self.scaler.scale(_weighted(losses, weights, number)).backward()  # type: ignore[no-untyped-call]
            telemetry.lap("backward")
            outcomes.append({"loss": losses.total.detach(), **losses.metrics})
        norm = self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(position.step)
        telemetry.lap("optimizer")
        metrics = _mean(outcomes, [len(piece) for piece in pieces])
        return Taken(metrics.pop("loss"), metrics, norm)

    def check_scale(self, done: int) -> None:
        """Stop a run whose every gradient overflows, however small the loss is made: it learns nothing.

        Args:
            done: Steps done, for the error.

        Raises:
            BlipError: The scale of the loss has fallen too far.
        """
        if self.scaler.is_enabled() and (scale := self.scaler.get_scale()) < MIN_SCALE:
            raise BlipError(
                f"step {done}: no gradient is finite in fp16, even of a loss times {scale:.1g}: "
                "take precision bf16 or fp32, lower optimizer.lr, or look for broken pairs; the "
                "last checkpoint is whole"
            )

    def telemetry(self) -> Telemetry:
        """Give a stopwatch; arithmetic is counted where that cannot change what is computed."""
        watched = not self._config.compile and (
            self._config.sharding == "ddp" or distributed.world_size() == 1
        )
        return Telemetry(self._device, DTYPES[self._config.precision], counts_flops=watched)

    def autocast(self) -> torch.autocast:
        """Give the context of forward passes."""
        return autocast(self._device, self._config.precision)

    def _weights(self, pieces: Sequence[AnyBatch]) -> Tensor | None:
        """Give the (P, 2) shares of the step's examples and tokens that the pieces have.

        They are times the number of processes, as gradients are averaged over these. None where the
        piece is the step.
        """
        if len(pieces) == 1 and distributed.world_size() == 1:
            return None
        tokens = torch.stack([self.objective.count_tokens(piece) for piece in pieces])
        # Filled in on the device: to bring numbers there would make the host wait for it.
        examples = torch.stack([torch.full_like(tokens[0], len(piece)) for piece in pieces])
        counts = torch.stack([examples, tokens], dim=1).float()
        whole = distributed.total(counts.sum(dim=0)).clamp(min=1)
        return counts * distributed.world_size() / whole

    def _clip(self) -> Tensor:
        limit = self._config.optimizer.clip_norm
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = distributed.total_norm(gradients)
        if limit:
            share = (limit / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_([distributed.local(gradient) for gradient in gradients], share)
        return norm


def _weighted(losses: Losses, weights: Tensor | None, number: int) -> Tensor:
    if weights is None:
        return losses.total
    examples, tokens = weights[number]
    if losses.lm is None:
        return losses.total * examples
    return (losses.total - losses.lm) * examples + losses.lm * tokens


def _mean(outcomes: list[dict[str, Tensor]], sizes: list[int]) -> dict[str, Tensor]:
    """Give the means over pieces of what they came to."""
    if len(outcomes) == 1:
        return outcomes[0]
    shares = [size / sum(sizes) for size in sizes]
    return {
        name: sum((o[name] * s for o, s in zip(outcomes, shares, strict=True)), torch.zeros(()))
        for name in outcomes[0]
    }


def _check_pieces(config: Training) -> None:
    processes = distributed.world_size()
    if config.batch_size < processes * config.accumulate:
        raise ConfigError(
            f"batch_size {config.batch_size} is less than a pair for each of the "
            f"{config.accumulate} pieces of {processes} processes: raise it, or lower accumulate "
            "or the number of processes"
        )
