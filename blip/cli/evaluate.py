"""`blip evaluate TASK`: a model, or predictions, against a test set; each task is a stage."""

from pathlib import Path
from typing import Annotated

import typer

from blip.cli import answering, matching
from blip.cli.evaluation import Checkpoint, Predictions, evaluation, limits
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

TEST_SET = 'A dataset version, or a JSON file of {"image", "caption": [...]}.'

Photos = Annotated[
    Path | None, typer.Option("--photos", help="With a JSON file: the folder of its images.")
]
Annotations = Annotated[
    Path | None,
    typer.Option("--annotations", help="The captions of people, in COCO's format, by image id."),
]


def retrieval(
    data: Annotated[Path, typer.Option("--data", help=TEST_SET)],
    out: Out,
    checkpoint: Checkpoint = None,
    photos: Photos = None,
    predictions: Predictions = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Image-text retrieval both ways: R@1/5/10.

    The paper ranks evaluate.k = 256 candidates on COCO, 128 on Flickr30k. Predictions: .npz of i2t, t2i.
    """
    from blip.benchmarks.retrieval import score_retrieval
    from blip.evaluate.evaluation_set import open_evaluation_set
    from blip.evaluate.retrieval import evaluate_retrieval

    config = read_config(params, sets)
    source, read = (checkpoint, predictions), {"data": data}
    with evaluation(
        "retrieval", config, source, read, out, metrics, force, section=limits(config)
    ) as run:
        if run and run.checkpoint:
            images = open_evaluation_set(data, photos)
            evaluate_retrieval(config, run.checkpoint, images, run.out, run.tracker)
        elif run and run.predictions:
            score_retrieval(config, run.predictions, data, run.out, run.tracker)


def captioning(
    out: Out,
    checkpoint: Checkpoint = None,
    data: Annotated[Path | None, typer.Option("--data", help=TEST_SET)] = None,
    photos: Photos = None,
    annotations: Annotations = None,
    predictions: Predictions = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Captions against human ones: BLEU, METEOR, CIDEr, SPICE.

    Of a dataset version BLEU-4, CIDEr and ROUGE-L; of files (COCO, Flickr30k) all that the official tool gives, METEOR
    and SPICE where Java and their jars are found. Predictions: [{"image_id", "caption"}].
    """
    from blip.benchmarks.coco_captions import evaluate_coco_captions, score_coco_captions
    from blip.errors import ConfigError
    from blip.evaluate.captioning import evaluate_captioning
    from blip.evaluate.evaluation_set import open_evaluation_set
    from blip.metrics.java import computable

    config = read_config(params, sets)
    told = annotations or data
    if told is None or (checkpoint and data is None):
        raise ConfigError("name the test set, what people wrote of its images: --data FILE")
    section: dict[str, object] = {"prompt": config.finetune.captioning.prompt}
    if told.suffix == ".json":
        section["java"] = computable()
    elif predictions or annotations:
        raise ConfigError(f"{told}: captions are read from JSON: name such a file")
    source, read = (checkpoint, predictions), {"data": data, "annotations": annotations}
    with evaluation(
        "captioning", config, source, read, out, metrics, force, section=section
    ) as run:
        if run and run.predictions:
            score_coco_captions(config, run.predictions, told, run.out, run.tracker)
        elif run and run.checkpoint and data:
            images = open_evaluation_set(data, photos)
            if told.suffix == ".json":
                evaluate_coco_captions(
                    config, run.checkpoint, images, annotations, run.out, run.tracker
                )
            else:
                evaluate_captioning(config, run.checkpoint, images, run.out, run.tracker)


def nocaps(
    out: Out,
    checkpoint: Checkpoint = None,
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
    """NoCaps: captions scored by domain, and the submission.

    Scored with --annotations nocaps_val_4500_captions.json; without, only the submission is written. Predictions:
    [{"image_id", "caption"}], as the server takes them.
    """
    from blip.benchmarks.nocaps import evaluate_nocaps, score_nocaps
    from blip.errors import ConfigError
    from blip.metrics.java import computable

    config = read_config(params, sets)
    if predictions and annotations is None:
        raise ConfigError("name the captions of people: --annotations FILE")
    if checkpoint and data is None:
        raise ConfigError("name the images of NoCaps: --data FILE")
    section = {"prompt": config.finetune.captioning.prompt, "java": computable()}
    source, read = (checkpoint, predictions), {"data": data, "annotations": annotations}
    seen = "--photos", photos
    with evaluation("nocaps", config, source, read, out, metrics, force, seen, section) as run:
        if run and run.predictions and annotations:
            score_nocaps(config, run.predictions, annotations, run.out, run.tracker)
        elif run and run.checkpoint and data:
            evaluate_nocaps(
                config, run.checkpoint, data, run.seen, annotations, run.out, run.tracker
            )


def filter_(
    data: OneDataset,
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """The filter's verdicts against the truth about web texts."""
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


app = typer.Typer(no_args_is_help=True)


@app.callback()
def setup() -> None:
    """Measure a model, or score its predictions, with intervals.

    Benchmarks take --checkpoint, or --predictions of any model. They write metrics.json, per_example.parquet and, where
    a server scores, the submission file.

    `blip benchmark list` has the benchmarks' files, --params blip/presets/base_129m.yaml the paper's settings, and
    `blip reproduce` its tables.
    """


for task in (
    retrieval,
    captioning,
    nocaps,
    answering.vqa,
    answering.nlvr,
    answering.visdial,
    matching.video_retrieval,
    matching.video_qa,
    matching.ovad,
    matching.ads,
    matching.sugarcrepe,
    matching.judgments,
):
    app.command()(task)
app.command("filter")(filter_)
