"""A step in pieces, in 16 bits, averaged, recomputed, compiled: equal to the plain one."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from blip.batch import Batch, QuestionBatch, SpecialTokens, StatementBatch
from blip.config import PRESETS, Training, load_config
from blip.errors import BlipError, ConfigError
from blip.models.blip import Blip, Parts
from blip.objectives import Objective, Position
from blip.objectives.finetune import (
    CaptioningObjective,
    NlvrObjective,
    RetrievalObjective,
    VqaObjective,
)
from blip.objectives.pretrain import PretrainObjective
from blip.train.average import WeightAverage
from blip.train.run import place
from blip.train.step import AnyBatch, Stepper
from blip.train.telemetry import Telemetry
from blip.train.trainer import fit

Build = Callable[..., Training]

SPECIAL = SpecialTokens(pad=0, cls=2, sep=3, dec=400, enc=401)
DEMO = load_config(PRESETS / "demo.yaml")
POSITION = Position(1000, 10)  # negatives by similarity, alpha at its height


def texts(count: int, shortest: int, longest: int) -> tuple[Tensor, Tensor]:
    lengths = torch.randint(shortest, longest, (count,))
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    token_ids = torch.randint(5, 400, mask.shape) * mask
    token_ids[:, 0] = SPECIAL.cls
    return token_ids, mask


def draw(task: str, size: int) -> AnyBatch:
    torch.manual_seed(3)
    images = torch.randn(size, 3, 64, 64)
    if task == "vqa":
        answers = torch.arange(size) % 3 + 1
        count = int(answers.sum())
        asked, answered = texts(size, 4, 12), texts(count, 3, 6)
        questions = torch.repeat_interleave(torch.arange(size), answers)
        return QuestionBatch(images, *asked, *answered, torch.rand(count), questions)
    if task == "nlvr":
        pairs = torch.randn(size, 2, 3, 64, 64)
        return StatementBatch(pairs, *texts(size, 4, 12), torch.randint(0, 2, (size,)))
    return Batch(images, *texts(size, 5, 12), torch.arange(size))


def build(task: Parts, **contrast: Any) -> Objective:
    torch.manual_seed(0)
    model = Blip(DEMO.model, 64, 402, SPECIAL, task)
    settings = DEMO.pretrain.contrast.model_copy(update={"queue_size": 12, **contrast})
    match task:
        case "pretrain":
            return PretrainObjective(model, settings)
        case "captioning":
            return CaptioningObjective(model, 0.1, 4)
        case "retrieval":
            return RetrievalObjective(model, settings, True)
        case "vqa":
            return VqaObjective(model, 0.1)
        case _:
            return NlvrObjective(model)


def gradients(objective: Objective) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}


def worst(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Give the largest difference, over the largest value of its tensor or 1."""
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[n] - theirs[n]).abs().max() / theirs[n].abs().max().clamp(min=1)) for n in ours
    )


@pytest.mark.parametrize("task", ["captioning", "vqa", "nlvr"])
@pytest.mark.parametrize("pieces", [2, 3, 7])
def test_pieces_of_a_batch_are_the_batch(training: Build, task: Parts, pieces: int) -> None:
    batch = draw(task, 7)
    outcomes = []
    for accumulate in (1, pieces):
        objective = build(task)
        stepper = Stepper(objective, training(accumulate=accumulate))
        taken = stepper.step(batch, POSITION, 1e-4, stepper.telemetry())
        assert taken.norm is not None
        outcomes.append({"norm": taken.norm, **gradients(objective)})
    assert worst(outcomes[1], outcomes[0]) < 1e-6  # measured: 1.3e-7


def test_pieces_are_contrasted_apart(training: Build) -> None:
    """One move of the twin, candidates of the piece, the queue in turn: as two forward passes."""
    batch = draw("pretrain", 6)
    objective, plain = build("pretrain"), build("pretrain")
    assert isinstance(plain, PretrainObjective)
    assert isinstance(objective, PretrainObjective)
    torch.manual_seed(1)
    stepper = Stepper(objective, training(accumulate=2))
    stepper.step(batch, POSITION, 1e-4, stepper.telemetry())
    torch.manual_seed(1)
    plain.begin_step()
    tokens = plain.count_tokens(batch)
    for piece in batch.split(2):
        losses = plain(piece, POSITION)
        assert losses.lm is not None
        share = plain.count_tokens(piece) / tokens
        ((losses.total - losses.lm) / 2 + losses.lm * share).backward()
    assert worst(gradients(objective), gradients(plain)) < 2e-6  # measured: 0
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            objective.contrast.state_dict().values(),
            plain.contrast.state_dict().values(),
            strict=True,
        )
    )
    assert objective.contrast.queue.position == 6


def test_a_step_has_a_pair_for_each_piece(training: Build) -> None:
    with pytest.raises(ConfigError, match="batch_size 3 is less than a pair for each of the 4"):
        Stepper(build("captioning"), training(accumulate=4, batch_size=3))


def test_questions_keep_their_answers() -> None:
    batch = draw("vqa", 5)
    assert isinstance(batch, QuestionBatch)
    pieces = batch.split(3)
    assert [len(piece) for piece in pieces] == [2, 2, 1]
    assert torch.equal(torch.cat([p.answer_ids for p in pieces]), batch.answer_ids)
    firsts = [0, 2, 4]
    numbers = [p.questions + first for p, first in zip(pieces, firsts, strict=True)]
    assert torch.equal(torch.cat(numbers), batch.questions)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_step_nearly_alike(training: Build, precision: str) -> None:
    batch = draw("captioning", 6)
    norms = []
    for each in ("fp32", precision):
        stepper = Stepper(build("captioning"), training(precision=each))
        taken = stepper.step(batch, POSITION, 1e-4, stepper.telemetry())
        assert taken.norm is not None
        norms.append(float(taken.norm))
        assert (stepper.scaler.get_scale() > 1) == (each == "fp16")
    assert norms[1] == pytest.approx(norms[0], rel=0.02)  # measured: 1.4e-3


def test_an_overflow_is_skipped_and_the_scale_halved(toy: Any, training: Build) -> None:
    objective, loader = toy
    stepper = Stepper(objective, training(precision="fp16"))
    before = [p.clone() for p in objective.parameters()]
    (batch,) = loader.iterate(0, 1)
    stepper.scaler.scale(torch.zeros(()))  # begins it
    stepper.scaler.update(2.0**127)
    scale = stepper.scaler.get_scale()
    stepper.step(batch, Position(0, 7), 1e-3, stepper.telemetry())
    assert all(map(torch.equal, objective.parameters(), before))
    assert stepper.scaler.get_scale() == scale / 2


def test_a_gradient_that_never_is_finite_ends_the_run(
    toy: Any, training: Build, points: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps are all skipped, and its loss looks as ever."""
    # The rate of fp16 on this processor takes seconds to measure.
    monkeypatch.setattr(
        "blip.train.step.Telemetry",
        lambda *args, counts_flops: Telemetry(*args, counts_flops=False),
    )
    objective, loader = toy
    objective.second.weight.register_hook(lambda gradient: gradient * torch.inf)
    settings = training(precision="fp16", steps=100, log_every=10)
    with pytest.raises(BlipError, match=r"step 30: no gradient is finite .* a loss times 6e-05"):
        fit(objective, loader, settings, points, tmp_path)
    assert [step for step, _ in points.told] == [10, 20]


class Brought(TorchDispatchMode):
    """Notes what is made of numbers of the host, for which a GPU would make it wait."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.lift_fresh.default:
            ours = [f for f in traceback.extract_stack() if "/blip/" in f.filename]
            self.lines.add(f"{ours[-1].name}: {ours[-1].line}" if ours else "elsewhere")
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("task", ["pretrain", "captioning", "retrieval", "vqa", "nlvr"])
def test_a_step_brings_no_numbers_to_the_device(training: Build, task: Parts) -> None:
    stepper = Stepper(build(task), training(accumulate=2, precision="bf16"))
    watch, batch = stepper.telemetry(), draw(task, 4)
    with Brought() as brought:
        stepper.step(batch, POSITION, 1e-4, watch)
    assert not brought.lines
    assert stepper.objective.count_tokens(batch.to(torch.device("meta"))).is_meta


def test_the_average_follows(toy: Any) -> None:
    objective, _ = toy
    average = WeightAverage(objective, 0.5)
    weight = objective.first.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    average.update(step=100)
    average.exchange()
    torch.testing.assert_close(weight.detach(), before + 0.5)
    average.exchange()
    torch.testing.assert_close(weight.detach(), before + 1.0)
    average.update(step=0)  # in the beginning nine tenths of the way
    average.exchange()
    torch.testing.assert_close(weight.detach(), before + 0.95)
    names = {name for name, _ in average.named_buffers()}
    assert names == {"first/weight", "first/bias", "second/weight", "second/bias"}  # once each


@pytest.mark.parametrize("task", ["pretrain", "captioning", "retrieval", "vqa", "nlvr"])
def test_recomputed_layers_have_the_same_gradients(training: Build, task: Parts) -> None:
    batch = draw(task, 4)
    outcomes = []
    dropout = DEMO.model.text.model_copy(update={"dropout": 0.1})
    for layers in (0, 1, 12):
        objective = build(task)
        objective.train()
        for module in objective.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout.dropout
        settings = training(checkpoint_text=layers)
        place(objective, settings, torch.device("cpu"))
        torch.manual_seed(1)
        stepper = Stepper(objective, settings)
        stepper.step(batch, POSITION, 1e-4, stepper.telemetry())
        outcomes.append(gradients(objective))
    assert worst(outcomes[1], outcomes[0]) < 1e-6  # measured: 0
    assert worst(outcomes[2], outcomes[0]) < 1e-6  # measured: 0


def test_recomputation_keeps_less(training: Build) -> None:
    """What autograd keeps of the text stacks shrinks; a memory selected per text is not kept."""
    kept = []
    for layers in (0, 12):
        objective = build("pretrain")
        place(objective, training(checkpoint_text=layers), torch.device("cpu"))
        objective.train()
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            objective(draw("pretrain", 8), POSITION)
        kept.append(total)
    assert kept[1] < 0.5 * kept[0]  # measured: 0.45


@pytest.mark.slow
def test_compiled_encoders_give_the_same_losses(training: Build) -> None:
    """Of one layer each: the compiler takes half a minute for a graph of this size."""
    outcomes = []
    for compiled in (False, True):
        objective = build("captioning")
        assert isinstance(objective, CaptioningObjective)
        objective.model.vision.blocks = objective.model.vision.blocks[:1]
        objective.model.text_decoder.layers = objective.model.text_decoder.layers[:1]
        settings = training(compile=compiled)
        place(objective, settings, torch.device("cpu"))
        stepper = Stepper(objective, settings)
        batch = draw("captioning", 4)
        steps = [stepper.step(batch, POSITION, 1e-4, stepper.telemetry()) for _ in range(3)]
        outcomes.append([float(taken.loss) for taken in steps])
    assert outcomes[1] == pytest.approx(outcomes[0], abs=1e-5)  # measured: 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
