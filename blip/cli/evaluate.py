"""`blip evaluate TASK`: a model, or predictions, against a test set; each task is a stage."""

from pathlib import Path
from typing import Annotated

import typer

from blip.cli.options import (
    PARAMS,
    Force,
    Metrics,
    OneDataset,
    Out,
    Params,
    Sets,
    read_config,
    sections,
    stage,
)

CHECKPOINT = typer.Option(
    "--checkpoint",
    help="A folder of ours or of transformers, a .pth of salesforce/BLIP, or models:/NAME@ALIAS.",
)
Checkpoint = Annotated[str, CHECKPOINT]
Predictions = Annotated[
    Path | None,
    typer.Option("--predictions", help="Instead of a checkpoint: what a model gave, to be scored."),
]
TestSet = Annotated[
    Path,
    typer.Option(
        "--data", help='A dataset version, or a JSON file of {"image", "caption": [...]}.'
    ),
]
Photos = Annotated[
    Path | None, typer.Option("--photos", help="With a JSON file: the folder of its images.")
]

app = typer.Typer(no_args_is_help=True, help="Measure a model on a test set, with intervals.")


@app.command()
def retrieval(
    data: TestSet,
    out: Out,
    checkpoint: Annotated[str | None, CHECKPOINT] = None,
    photos: Photos = None,
    predictions: Predictions = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Image-text retrieval both ways: R@1/5/10 (COCO, Flickr30k, or a dataset version).

    The paper ranks evaluate.k = 256 candidates on COCO, 128 on Flickr30k. Predictions: .npz of i2t, t2i.
    """
    from blip.benchmarks.retrieval import score_retrieval
    from blip.evaluate.evaluation_set import open_evaluation_set
    from blip.evaluate.retrieval import evaluate_retrieval

    config = read_config(params, sets)
    limits = config.finetune.retrieval
    section = {
        "task": "retrieval",
        "text": [limits.max_tokens, limits.max_words],
        **sections(config, "seed", "threads", "evaluate"),
    }
    model, given = find_source(checkpoint, predictions)
    inputs = {**given, "data": [data]}  # photos are known by name: COCO has 6 GB of them
    with stage("evaluate", out, inputs, section, config, metrics, force) as running:
        if running and model:
            images = open_evaluation_set(data, photos)
            evaluate_retrieval(config, model, images, running.out, running.journal)
        elif running and predictions:
            score_retrieval(config, predictions, data, running.out, running.journal)


@app.command()
def captioning(
    checkpoint: Checkpoint,
    data: TestSet,
    out: Out,
    photos: Photos = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Captions against human ones: BLEU, CIDEr, ROUGE-L (COCO, or a dataset version)."""
    from blip.evaluate.captioning import evaluate_captioning
    from blip.evaluate.evaluation_set import open_evaluation_set

    config = read_config(params, sets)
    section = {
        "task": "captioning",
        "prompt": config.finetune.captioning.prompt,
        **sections(config, "seed", "threads", "evaluate"),
    }
    model = find_checkpoint(checkpoint)
    inputs = {"model": [model], "data": [data]}  # photos are known by name: COCO has 6 GB of them
    with stage("evaluate", out, inputs, section, config, metrics, force) as running:
        if running:
            images = open_evaluation_set(data, photos)
            evaluate_captioning(config, model, images, running.out, running.journal)


@app.command("filter")
def filter_(
    data: OneDataset,
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """The filter's verdicts against the truth about the web texts."""
    from blip.evaluate.filter import evaluate_filter

    config = read_config(params, sets)
    section = {
        "task": "filter",
        "threshold": config.capfilt.threshold,
        **sections(config, "seed", "threads", "evaluate"),
    }
    truth = config.evaluate.truth
    inputs = {"data": [data], "truth": [Path(truth)] if truth else []}
    with stage("evaluate", out, inputs, section, config, metrics, force) as running:
        if running:
            evaluate_filter(config, data, running.out, running.journal)


def find_checkpoint(checkpoint: str) -> Path:
    """Give the place of a checkpoint, fetched first if it is named in the registry."""
    if not checkpoint.startswith("models:"):
        return Path(checkpoint)
    from blip.integrations.registry import fetch_model
    from blip.integrations.tracking.settings import load_settings

    return fetch_model(load_settings(), checkpoint)


def find_source(
    checkpoint: str | None, predictions: Path | None
) -> tuple[Path | None, dict[str, list[Path]]]:
    """Give the place of a checkpoint, if there is one, and what a stage reads, a model or predictions.

    Raises:
        ConfigError: Neither is named, or both are.
    """
    from blip.errors import ConfigError

    if predictions is not None and checkpoint is None:
        return None, {"predictions": [predictions]}
    if checkpoint is None or predictions is not None:
        raise ConfigError("give --checkpoint, a model to measure, or --predictions, what one gave")
    model = find_checkpoint(checkpoint)
    return model, {"model": [model]}
