"""READ THIS FIRST: from a configuration to a trained model: config -> parts -> fit -> files."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch

from blip import distributed
from blip.config import Augmentation, Config, HeldOut, PairTraining, Training
from blip.data.dataset import open_dataset
from blip.data.loader import PairLoader
from blip.data.text import (
    VOCABULARY,
    Tokenizer,
    clean_caption,
    find_vocabulary,
    train_vocabulary,
)
from blip.errors import ConfigError
from blip.files import digest_file, digest_json, write_json, write_text
from blip.models.blip import Blip
from blip.models.checkpoint import load_model, load_momentum, save_model
from blip.models.device import prepare_device
from blip.models.med import TextTransformer
from blip.models.pretrained import find_weights, load_weights
from blip.models.vit import VisionTransformer
from blip.objectives import Objective
from blip.objectives.finetune import CaptioningObjective, RetrievalObjective
from blip.objectives.pretrain import PretrainObjective
from blip.tracker import Tracker
from blip.train.curve import Point, write_curves
from blip.train.held_out import Evaluate, held_out
from blip.train.trainer import Loader, fit

log = logging.getLogger(__name__)

AnyTraining = TypeVar("AnyTraining", bound=Training)


@dataclass(frozen=True)
class Setup:
    """What a stage has put together and trains.

    Attributes:
        name: What the progress bar calls it.
        training: How it is trained.
        model: What is written in the end; a part of the objective.
        objective: On the host.
        loader: The examples.
        evaluate: The evaluation while training, if there is one.
        inputs: Digests of all that is read.
        vocabulary: Folder with the `vocab.txt` of the model.
    """

    name: str
    training: Training
    model: Blip
    objective: Objective
    loader: Loader
    evaluate: Evaluate | None
    inputs: Sequence[str]
    vocabulary: Path


def build_tokenizer(config: Config, data: Sequence[Path | str], out: Path) -> None:
    """Write `vocab.txt`: learnt from the captions of dataset versions, or the configured one.

    Args:
        config: The experiment; its `tokenizer` and `pretrain.max_words`, as captions are cut.
        data: Dataset versions, folders or URLs.
        out: The folder.

    Raises:
        ConfigError: The configured vocabulary is not there.
    """
    if config.tokenizer.vocabulary == "train":
        tables = (open_dataset(path).captions()["text"] for path in data)
        texts = (text for table in tables for text in table.to_pylist())
        cleaned = (clean_caption(text, config.pretrain.max_words) for text in texts)
        train_vocabulary(cleaned, config.tokenizer.size, out)
    else:
        _copy_vocabulary(find_vocabulary(config.tokenizer.vocabulary), out)
    size = Tokenizer(out / VOCABULARY).vocab_size
    write_json(out / "metrics.json", {"tokenizer": {"size": size}})


def pretrain(
    config: Config,
    data: Sequence[Path | str],
    tokenizer: Path,
    out: Path,
    run_dir: Path,
    tracker: Tracker,
    validation: Sequence[Path] = (),
) -> None:
    """Pre-train a model with ITC, ITM and LM (BLIP.md 2), from a ViT and a BERT or from scratch.

    Args:
        config: The experiment; its `seed`, `threads`, `tokenizer`, `model` and `pretrain`.
        data: Dataset versions; their texts that were not dropped are the pairs.
        tokenizer: Folder with `vocab.txt`.
        out: Receives the model, `vocab.txt`, `metrics.json` and `curves.csv`.
        run_dir: Keeps the checkpoints.
        tracker: Told how training goes.
        validation: Dataset versions to evaluate on while training.

    Raises:
        ConfigError: Texts may be longer than the model's positions, or there are no such starting
            weights.
        CheckpointError: The starting weights do not fit the model.
        BlipError: See `fit`.
    """
    _check_model(config)
    weights = find_weights(config.model)
    device = prepare(config)
    text = Tokenizer(tokenizer / VOCABULARY)
    datasets = [open_dataset(path) for path in data]
    training = config.pretrain
    loader = PairLoader(datasets, text, training, config.seed, device=device)
    model = Blip(config.model, training.image_size, text.vocab_size, text.special, "pretrain")
    load_weights(model, weights)
    objective = PretrainObjective(model, training.contrast)
    evaluate = _evaluation(training, validation, text, config.seed, "", device)
    started_from = [digest_file(path) for path in weights.values()]
    digests = [*(dataset.digest for dataset in datasets), *started_from]
    setup = Setup("pretrain", training, model, objective, loader, evaluate, digests, tokenizer)
    train(setup, config, device, out, run_dir, tracker)


def finetune(
    config: Config,
    task: Literal["captioning", "retrieval"],
    model: Path,
    data: Sequence[Path | str],
    out: Path,
    run_dir: Path,
    tracker: Tracker,
    validation: Sequence[Path] = (),
) -> None:
    """Fine-tune a pre-trained model: the captioner (LM) or the filter (ITC and ITM) (BLIP.md 5).

    For VQA and NLVR2, which learn from annotated photos, see `blip.train.annotated`.

    Args:
        config: The experiment; its `seed`, `threads` and `finetune.<task>`.
        task: Which one.
        model: Folder of the model to start from, with its `vocab.txt`.
        data: Dataset versions, folders or URLs.
        out: Receives the model, `vocab.txt`, `metrics.json` and `curves.csv`.
        run_dir: Keeps the checkpoints.
        tracker: Told how training goes.
        validation: Dataset versions to evaluate on while training.

    Raises:
        ConfigError: Held-out data are named but not `held_out`, or the other way round.
        BlipError: See `fit`.
    """
    device = prepare(config)
    text = Tokenizer(model / VOCABULARY)
    datasets = [open_dataset(path) for path in data]
    training: PairTraining
    objective: Objective
    prompt = ""
    match task:
        case "captioning":
            training = captioning = config.finetune.captioning
            prompt = captioning.prompt
            blip = load_model(model, "captioning", training.image_size)
            length = len(text.prompt(prompt))
            objective = CaptioningObjective(blip, captioning.label_smoothing, length)
        case "retrieval":
            training = retrieval = config.finetune.retrieval
            blip = load_model(model, "retrieval", training.image_size)
            objective = RetrievalObjective(blip, retrieval.contrast, retrieval.negative_all_rank)
            if momentum := load_momentum(model, blip):
                objective.contrast.begin(momentum)
    loader = PairLoader(datasets, text, training, config.seed, prompt, device)
    evaluate = _evaluation(training, validation, text, config.seed, prompt, device)
    digests = [dataset.digest for dataset in datasets]
    setup = Setup(task, training, blip, objective, loader, evaluate, digests, model)
    train(setup, config, device, out, run_dir, tracker)


def train(
    setup: Setup, config: Config, device: torch.device, out: Path, run_dir: Path, tracker: Tracker
) -> None:
    """Train what a stage has put together, and write what comes of it.

    Args:
        setup: What.
        config: The experiment.
        device: Where; from `prepare`.
        out: Receives the model, `vocab.txt`, `metrics.json` and `curves.csv`.
        run_dir: Keeps the checkpoints.
        tracker: Told how training goes.

    Raises:
        BlipError: See `fit`.
    """
    place(setup.objective, setup.training, device)
    curve = fit(
        setup.objective,
        setup.loader,
        setup.training,
        tracker,
        run_dir,
        name=setup.name,
        identity=_identify(config, setup),
        evaluate=setup.evaluate,
    )
    if distributed.rank() == 0:
        _write(setup, curve, out)


def prepare(config: Config) -> torch.device:
    """Fix threads and chance, so that results do not depend on where a stage runs."""
    torch.manual_seed(config.seed)
    return prepare_device(config.threads)


def place(objective: Objective, training: Training, device: torch.device) -> None:
    """Put an objective where it is trained; what is sharded goes there part by part, later."""
    if training.sharding == "ddp" or distributed.world_size() == 1:
        objective.to(device)
    for module in objective.modules():
        if isinstance(module, TextTransformer):
            module.checkpoint_layers = min(training.checkpoint_text, len(module.layers))
        if training.compile and isinstance(module, TextTransformer | VisionTransformer):
            module.compile()


def unaugmented(training: AnyTraining) -> AnyTraining:
    """Give the settings of held-out batches."""
    plain = Augmentation(crop_scale=(1.0, 1.0), flip=0.0, randaugment=False)
    return training.model_copy(update={"augmentation": plain})


def check_held_out(training: Training, validation: Sequence[Path]) -> HeldOut | None:
    """Give the settings of evaluations while training, if there are any.

    Raises:
        ConfigError: Held-out data are named but not `held_out`, or the other way round.
    """
    if training.held_out and not validation:
        raise ConfigError("held_out is set, but no held-out data are named: --validation")
    if validation and not training.held_out:
        raise ConfigError("--validation names held-out data, but held_out is null: set it")
    return training.held_out


def _evaluation(
    training: PairTraining,
    validation: Sequence[Path],
    text: Tokenizer,
    seed: int,
    prompt: str,
    device: torch.device,
) -> Evaluate | None:
    settings = check_held_out(training, validation)
    if settings is None:
        return None
    datasets = [open_dataset(path) for path in validation]
    batches = PairLoader(datasets, text, unaugmented(training), seed, prompt, device)
    return held_out(batches, settings)


def _check_model(config: Config) -> None:
    if config.model.text_weights and config.tokenizer.vocabulary == "train":
        raise ConfigError(
            f"model.text_weights {config.model.text_weights!r} know their own vocabulary, not one "
            "trained here: let tokenizer.vocabulary name it"
        )
    positions = config.model.text.max_positions
    for name, training in (
        ("pretrain", config.pretrain),
        ("finetune.captioning", config.finetune.captioning),
        ("finetune.retrieval", config.finetune.retrieval),
    ):
        if training.max_tokens > positions:
            raise ConfigError(
                f"{name}.max_tokens {training.max_tokens} is more than "
                f"model.text.max_positions {positions}: lower it"
            )


def _identify(config: Config, setup: Setup) -> str:
    """Give the digest of what decides a run."""
    settings = config.model.model_dump(), setup.training.model_dump()
    return digest_json([config.seed, *settings, setup.inputs])


def _write(setup: Setup, curve: list[Point], out: Path) -> None:
    """Write a trained model with its vocabulary, its curve and what training came to."""
    save_model(setup.model, out)
    _copy_vocabulary(setup.vocabulary / VOCABULARY, out)
    write_curves(curve, out / "curves.csv")
    steps = int(curve[-1]["step"])
    sizes = {
        "steps": steps,
        "pairs": setup.loader.num_examples,
        "pairs_seen": steps * setup.training.batch_size,
    }
    losses = {name: value for name, value in curve[-1].items() if name.startswith("loss")}
    write_json(out / "metrics.json", {"training": {**losses, **sizes}})


def _copy_vocabulary(source: Path, out: Path) -> None:
    write_text(out / VOCABULARY, source.read_text(encoding="utf-8"))
