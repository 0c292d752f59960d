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
TEST_SET = 'A dataset version, or a JSON file of {"image", "caption": [...]}.'
TestSet = Annotated[Path, typer.Option("--data", help=TEST_SET)]
Photos = Annotated[
    Path | None, typer.Option("--photos", help="With a JSON file: the folder of its images.")
]

OneOf = Annotated[
    str | None,
    typer.Option("--checkpoint", help="What to measure, as for retrieval."),
]
Predictions = Annotated[
    Path | None,
    typer.Option(
        "--predictions", help='Without a checkpoint: captions, [{"image_id", "caption"}].'
    ),
]
Annotations = Annotated[
    Path | None,
    typer.Option("--annotations", help="The captions of people, in COCO's format, by image id."),
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
    out: Out,
    checkpoint: OneOf = None,
    data: Annotated[Path | None, typer.Option("--data", help=TEST_SET)] = None,
    photos: Photos = None,
    annotations: Annotations = None,
    predictions: Predictions = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Captions against human ones: BLEU, CIDEr, ROUGE-L; of files also METEOR, SPICE (COCO, Flickr30k)."""
    from blip.benchmarks.coco_captions import evaluate_coco_captions, score_coco_captions
    from blip.errors import ConfigError
    from blip.evaluate.captioning import evaluate_captioning
    from blip.evaluate.evaluation_set import open_evaluation_set
    from blip.metrics.java import computable

    config = read_config(params, sets)
    one_of(checkpoint, predictions)
    read = annotations or data
    if read is None or (checkpoint and data is None):
        raise ConfigError("name the test set, what people wrote of its images: --data FILE")
    section = {
        "task": "captioning",
        "prompt": config.finetune.captioning.prompt,
        **sections(config, "seed", "threads", "evaluate"),
    }
    if read.suffix == ".json":
        section["java"] = computable()
    elif predictions or annotations:
        raise ConfigError(f"{read}: captions are read from JSON: name such a file")
    if predictions:
        inputs = {"predictions": [predictions], "data": [read]}
        with stage("evaluate", out, inputs, section, config, metrics, force) as running:
            if running:
                score_coco_captions(config, predictions, read, running.out, running.journal)
        return
    assert checkpoint, "one of the two"
    assert data, "named with a checkpoint"
    model = find_checkpoint(checkpoint)
    # Photos are known by name: COCO has 6 GB of them.
    inputs = {"model": [model], "data": [data, *([annotations] if annotations else [])]}
    with stage("evaluate", out, inputs, section, config, metrics, force) as running:
        if running:
            images = open_evaluation_set(data, photos)
            if read.suffix == ".json":
                evaluate_coco_captions(
                    config, model, images, annotations, running.out, running.journal
                )
            else:
                evaluate_captioning(config, model, images, running.out, running.journal)


@app.command()
def nocaps(
    out: Out,
    checkpoint: OneOf = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="nocaps_val.json or nocaps_test.json.")
    ] = None,
    photos: Photos = None,
    annotations: Annotations = None,
    predictions: Predictions = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Captions of NoCaps for its server; scored by domain with nocaps_val_4500_captions.json."""
    from blip.benchmarks.nocaps import evaluate_nocaps, score_nocaps
    from blip.errors import ConfigError
    from blip.metrics.java import computable

    config = read_config(params, sets)
    one_of(checkpoint, predictions)
    section = {
        "task": "nocaps",
        "prompt": config.finetune.captioning.prompt,
        "java": computable(),
        **sections(config, "seed", "threads", "evaluate"),
    }
    told = [annotations] if annotations else []
    if predictions:
        if annotations is None:
            raise ConfigError("name the captions of people: --annotations FILE")
        inputs = {"predictions": [predictions], "data": told}
        with stage("evaluate", out, inputs, section, config, metrics, force) as running:
            if running:
                score_nocaps(config, predictions, annotations, running.out, running.journal)
        return
    assert checkpoint, "one of the two"
    if data is None or photos is None:
        raise ConfigError(
            "name the photos of NoCaps, and their folder: --data FILE --photos FOLDER"
        )
    model = find_checkpoint(checkpoint)
    with stage(
        "evaluate",
        out,
        {"model": [model], "data": [data, *told]},
        section,
        config,
        metrics,
        force,
    ) as running:
        if running:
            evaluate_nocaps(config, model, data, photos, annotations, running.out, running.journal)


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


def one_of(checkpoint: str | None, predictions: Path | None) -> None:
    """See that there is a model to measure, or what one gave.

    Raises:
        ConfigError: There is none of them, or both.
    """
    from blip.errors import ConfigError

    if (checkpoint is None) == (predictions is None):
        raise ConfigError("give --checkpoint, a model to measure, or --predictions, what one gave")


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
