"""`blip evaluate TASK` for the benchmarks of matching, and of videos: a model, or what one gave."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from blip.cli.evaluation import Checkpoint, Photos, Predictions, Videos, evaluation, limits
from blip.cli.options import PARAMS, Force, Metrics, Out, Params, Sets, read_config


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
    """Videos and texts of MSRVTT 1k, both ways: R@1/5/10.

    Also the median rank. Predictions: .npz of v2t, t2v.
    """
    from blip.benchmarks import video_retrieval as benchmark

    config = read_config(params, sets)
    source = checkpoint, predictions
    read, seen = {"data": data}, ("--videos", videos)
    with evaluation("video-retrieval", config, source, read, out, metrics, force, seen) as run:
        if run and run.checkpoint:
            benchmark.evaluate_video_retrieval(
                config, run.checkpoint, data, run.seen, run.out, run.tracker
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
    """Questions about videos: exact match.

    MSVD-QA, MSRVTT-QA, ActivityNet-QA. Predictions: question_id, answer.
    """
    from blip.benchmarks import video_qa as benchmark

    config = read_config(params, sets)
    read = {"data": data, "annotations": annotations, "answers": answers, "mapping": mapping}
    source, seen = (checkpoint, predictions), ("--videos", videos)
    with evaluation("video-qa", config, source, read, out, metrics, force, seen) as run:
        if run and run.checkpoint:
            benchmark.evaluate_video_qa(
                config,
                run.checkpoint,
                data,
                annotations,
                mapping,
                answers,
                run.seen,
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
    """OVAD, boxes given: mAP all, head, medium, tail.

    Predictions: id, scores.
    """
    from blip.benchmarks import ovad as benchmark

    config = read_config(params, sets)
    source, read, seen = (checkpoint, predictions), {"data": data}, ("--photos", photos)
    with evaluation("ovad", config, source, read, out, metrics, force, seen) as run:
        if run and run.checkpoint:
            benchmark.evaluate_ovad(config, run.checkpoint, data, run.seen, run.out, run.tracker)
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
    """CommercialAdsDataset, queries and photos: ROC-AUC.

    Predictions: row, score.
    """
    from blip.benchmarks import ads as benchmark

    config = read_config(params, sets)
    read = {"data": data, "photos": photos}
    section = {"label_column": label_column, "skip_missing": skip_missing, **limits(config)}
    source, seen = (checkpoint, predictions), ("--photos", photos)
    with evaluation("ads", config, source, read, out, metrics, force, seen, section) as run:
        if run and run.checkpoint:
            benchmark.evaluate_ads(
                config,
                run.checkpoint,
                data,
                run.seen,
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
    """SugarCrepe, hard negatives: accuracy by category.

    Predictions: category, id, positive, negative.
    """
    from blip.benchmarks import sugarcrepe as benchmark

    config = read_config(params, sets)
    source, read, seen = (checkpoint, predictions), {"data": data}, ("--photos", photos)
    section = limits(config)
    with evaluation("sugarcrepe", config, source, read, out, metrics, force, seen, section) as run:
        if run and run.checkpoint:
            benchmark.evaluate_sugarcrepe(
                config, run.checkpoint, data, run.seen, run.out, run.tracker
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
    """Human judgments of Flickr8k: rank correlations.

    Predictions: image, caption_id, score.
    """
    from blip.benchmarks import judgments as benchmark

    config = read_config(params, sets)
    read = {"data": data, "annotations": annotations}
    section = {"judges": judges, **limits(config)}
    source, seen = (checkpoint, predictions), ("--photos", photos)
    with evaluation("judgments", config, source, read, out, metrics, force, seen, section) as run:
        if run and run.checkpoint:
            benchmark.evaluate_judgments(
                config,
                run.checkpoint,
                data,
                judges,
                annotations,
                run.seen,
                run.out,
                run.tracker,
            )
        elif run and run.predictions:
            benchmark.score_judgments(
                config, run.predictions, data, judges, annotations, run.out, run.tracker
            )
