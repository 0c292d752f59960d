"""`blip evaluate TASK` for the benchmarks of matching, and of videos: a model, or what one gave."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from blip.cli.evaluate import CHECKPOINT, Predictions, find_source
from blip.cli.options import (
    PARAMS,
    Force,
    Metrics,
    Out,
    Params,
    Sets,
    read_config,
    sections,
    stage,
)

if TYPE_CHECKING:
    from blip.config import Config
    from blip.tracker import Tracker

Checkpoint = Annotated[str | None, CHECKPOINT]
Photos = Annotated[Path | None, typer.Option("--photos", help="The folder of the photos.")]
Videos = Annotated[Path | None, typer.Option("--videos", help="The folder of the videos.")]


class Run(NamedTuple):
    """An evaluation under way, of a checkpoint or of predictions."""

    config: "Config"
    checkpoint: Path | None
    predictions: Path | None
    out: Path
    tracker: "Tracker"


def video_retrieval(
    data: Annotated[
        Path, typer.Option("--data", help="msrvtt_test.jsonl, or MSRVTT_JSFUSION_test.csv.")
    ],
    out: Out,
    checkpoint: Checkpoint = None,
    videos: Videos = None,
    predictions: Predictions = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Text-video retrieval both ways: R@1/5/10, median rank (MSRVTT 1k). Predictions: .npz of v2t, t2v."""
    from blip.benchmarks import video_retrieval as benchmark

    config = read_config(params, sets)
    source = checkpoint, predictions
    with evaluation(
        "video-retrieval", config, source, {"data": data}, {}, out, metrics, force
    ) as run:
        if run and run.checkpoint:
            folder = needed(videos, "--videos")
            benchmark.evaluate_video_retrieval(
                config, run.checkpoint, data, folder, run.out, run.tracker
            )
        elif run and run.predictions:
            benchmark.score_video_retrieval(config, run.predictions, data, run.out, run.tracker)


def video_qa(
    data: Annotated[Path, typer.Option("--data", help="The questions, e.g. msvd_test_qa.json.")],
    out: Out,
    checkpoint: Checkpoint = None,
    videos: Videos = None,
    annotations: Annotated[
        Path | None, typer.Option("--annotations", help="The answers of ActivityNet-QA.")
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            "--answers", help="Rank these, e.g. those of the training set; else they are written."
        ),
    ] = None,
    mapping: Annotated[
        Path | None, typer.Option("--mapping", help="MSVD's names of videos: youtube_mapping.txt.")
    ] = None,
    predictions: Predictions = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Answers about videos: exact match (MSVD-QA, MSRVTT-QA, ActivityNet-QA). Predictions: question_id, answer."""
    from blip.benchmarks import video_qa as benchmark

    config = read_config(params, sets)
    read = {"data": data, "annotations": annotations, "answers": answers, "mapping": mapping}
    source = checkpoint, predictions
    with evaluation("video-qa", config, source, read, {}, out, metrics, force) as run:
        if run and run.checkpoint:
            benchmark.evaluate_video_qa(
                config,
                run.checkpoint,
                data,
                annotations,
                mapping,
                answers,
                needed(videos, "--videos"),
                run.out,
                run.tracker,
            )
        elif run and run.predictions:
            benchmark.score_video_qa(
                config, run.predictions, data, annotations, run.out, run.tracker
            )


def ovad(
    data: Annotated[Path, typer.Option("--data", help="ovad2000.json.")],
    out: Out,
    checkpoint: Checkpoint = None,
    photos: Photos = None,
    predictions: Predictions = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Attributes of objects in given boxes: mAP all, head, medium, tail (OVAD). Predictions: id, scores."""
    from blip.benchmarks import ovad as benchmark

    config = read_config(params, sets)
    source = checkpoint, predictions
    with evaluation("ovad", config, source, {"data": data}, {}, out, metrics, force) as run:
        if run and run.checkpoint:
            folder = needed(photos, "--photos")
            benchmark.evaluate_ovad(config, run.checkpoint, data, folder, run.out, run.tracker)
        elif run and run.predictions:
            benchmark.score_ovad(config, run.predictions, data, run.out, run.tracker)


def ads(
    data: Annotated[Path, typer.Option("--data", help="The pairs, e.g. test_50k.tsv.")],
    out: Out,
    checkpoint: Checkpoint = None,
    photos: Annotated[Path | None, typer.Option("--photos", help="image_base64.tsv.")] = None,
    predictions: Predictions = None,
    label_column: Annotated[
        int, typer.Option("--label-column", help="Which column, from 0, says 1 or 0.")
    ] = 8,
    skip_missing: Annotated[
        bool,
        typer.Option("--skip-missing", help="Leave out, and count, pairs without a photo."),
    ] = False,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Queries and photos of ads: ROC-AUC (CommercialAdsDataset). Predictions: row, score."""
    from blip.benchmarks import ads as benchmark

    config = read_config(params, sets)
    read = {"data": data, "photos": photos}
    section = {"label_column": label_column, "skip_missing": skip_missing, **limits(config)}
    source = checkpoint, predictions
    with evaluation("ads", config, source, read, section, out, metrics, force) as run:
        if run and run.checkpoint:
            benchmark.evaluate_ads(
                config,
                run.checkpoint,
                data,
                needed(photos, "--photos"),
                label_column,
                skip_missing,
                run.out,
                run.tracker,
            )
        elif run and run.predictions:
            benchmark.score_ads(config, run.predictions, data, label_column, run.out, run.tracker)


def sugarcrepe(
    data: Annotated[
        Path, typer.Option("--data", help="The folder of the official files, or one of them.")
    ],
    out: Out,
    checkpoint: Checkpoint = None,
    photos: Photos = None,
    predictions: Predictions = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Captions against negatives: accuracy by category. Predictions: category, id, positive, negative."""
    from blip.benchmarks import sugarcrepe as benchmark

    config = read_config(params, sets)
    source, section = (checkpoint, predictions), limits(config)
    with evaluation(
        "sugarcrepe", config, source, {"data": data}, section, out, metrics, force
    ) as run:
        if run and run.checkpoint:
            folder = needed(photos, "--photos")
            benchmark.evaluate_sugarcrepe(
                config, run.checkpoint, data, folder, run.out, run.tracker
            )
        elif run and run.predictions:
            benchmark.score_sugarcrepe(config, run.predictions, data, run.out, run.tracker)


def judgments(
    data: Annotated[
        Path, typer.Option("--data", help="ExpertAnnotations.txt, or CrowdFlowerAnnotations.txt.")
    ],
    judges: Annotated[
        Literal["expert", "crowd"], typer.Option("--judges", help="Who judged: expert or crowd.")
    ],
    out: Out,
    checkpoint: Checkpoint = None,
    annotations: Annotated[
        Path | None, typer.Option("--annotations", help="The captions: Flickr8k.token.txt.")
    ] = None,
    photos: Photos = None,
    predictions: Predictions = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Scores against human judgments: rank correlations (Flickr8k). Predictions: image, caption_id, score."""
    from blip.benchmarks import judgments as benchmark

    config = read_config(params, sets)
    read = {"data": data, "annotations": annotations}
    section = {"judges": judges, **limits(config)}
    source = checkpoint, predictions
    with evaluation("judgments", config, source, read, section, out, metrics, force) as run:
        if run and run.checkpoint:
            benchmark.evaluate_judgments(
                config,
                run.checkpoint,
                data,
                judges,
                annotations,
                needed(photos, "--photos"),
                run.out,
                run.tracker,
            )
        elif run and run.predictions:
            benchmark.score_judgments(
                config, run.predictions, data, judges, annotations, run.out, run.tracker
            )


@contextlib.contextmanager
def evaluation(
    task: str,
    config: "Config",
    source: tuple[str | None, Path | None],
    read: Mapping[str, Path | None],
    section: Mapping[str, Any],
    out: Path,
    metrics: Path | None,
    force: bool,
) -> Iterator[Run | None]:
    """Run an evaluation as a stage, of a checkpoint or of predictions; None where it is done already.

    Folders of photos and videos are known by the names in the annotations, not by content: they are
    gigabytes.

    Args:
        task: Its name.
        config: The experiment.
        source: A checkpoint, or predictions.
        read: The files that are read, by role.
        section: What else decides the result, beside `evaluate`.
        out: The folder to write.
        metrics: Where else to put the metrics.
        force: Do it again.

    Raises:
        ConfigError: Neither of the sources is named, or both are.
    """
    model, given = find_source(*source)
    whole = {"task": task, **section, **sections(config, "seed", "threads", "evaluate")}
    inputs = {**given, **{role: [path] for role, path in read.items() if path}}
    with stage("evaluate", out, inputs, whole, config, metrics, force) as running:
        if running is None:
            yield None
        else:
            yield Run(config, model, source[1], running.out, running.journal)


def limits(config: "Config") -> dict[str, Any]:
    """Give what cuts the texts that are matched."""
    text = config.finetune.retrieval
    return {"text": [text.max_tokens, text.max_words]}


def needed(path: Path | None, option: str) -> Path:
    """Give what a model looks at.

    Raises:
        ConfigError: It was not named.
    """
    from blip.errors import ConfigError

    if path is None:
        raise ConfigError(f"a model looks at files of yours: say where they lie: {option} PLACE")
    return path


COMMANDS = (video_retrieval, video_qa, ovad, ads, sugarcrepe, judgments)
