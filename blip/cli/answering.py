"""`blip evaluate vqa|nlvr|visdial`: answers, verdicts and ranks of a model, or those that are there."""

from pathlib import Path
from typing import Annotated

import typer

from blip.cli.evaluation import Checkpoint, Photos, Predictions, evaluation
from blip.cli.options import PARAMS, Force, Metrics, Out, Params, Sets, read_config


def vqa(
    out: Out,
    checkpoint: Checkpoint = None,
    predictions: Predictions = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="v2_OpenEnded_mscoco_*_questions.json, vqa_val.json, vqa_test.json."
        ),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option("--annotations", help="v2_mscoco_*_annotations.json: what people answered."),
    ] = None,
    photos: Photos = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            "--answers", help="Choose from this list (answer_list.json) instead of writing."
        ),
    ] = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """VQA v2: the official accuracy, and the submission.

    A model is asked the questions of --data. Predictions: [{"question_id", "answer"}], scored by --annotations, or by
    vqa_val.json as --data.
    """
    from blip.benchmarks.vqa import evaluate_vqa, open_questions, read_asked, score_vqa
    from blip.errors import ConfigError

    config = read_config(params, sets)
    told = annotations or data
    if told is None or (checkpoint and data is None):
        raise ConfigError("name the questions: --data FILE; predictions need --annotations alone")
    source, seen = (checkpoint, predictions), ("--photos", photos)
    read = {"data": data, "annotations": annotations, "answers": answers}
    with evaluation("vqa", config, source, read, out, metrics, force, seen) as run:
        if run and run.checkpoint and data:
            asked = open_questions(data, annotations)
            evaluate_vqa(config, run.checkpoint, asked, run.seen, answers, run.out, run.tracker)
        elif run and run.predictions:
            score_vqa(config, run.predictions, read_asked(told), run.out, run.tracker)


def nlvr(
    data: Annotated[
        Path, typer.Option("--data", help="dev.json, test1.json, or nlvr_dev.json, nlvr_test.json.")
    ],
    out: Out,
    checkpoint: Checkpoint = None,
    predictions: Predictions = None,
    balanced: Annotated[
        Path | None,
        typer.Option("--balanced", help="balanced_dev.json: score this part and the rest as well."),
    ] = None,
    categories: Annotated[
        Path | None,
        typer.Option(
            "--categories", help="annotated_dev_examples.txt: score each category as well."
        ),
    ] = None,
    photos: Photos = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """NLVR2: the official accuracy and consistency."""
    from blip.benchmarks.nlvr import evaluate_nlvr, open_statements, score_nlvr

    config = read_config(params, sets)
    source, seen = (checkpoint, predictions), ("--photos", photos)
    read = {"data": data, "balanced": balanced, "categories": categories}
    with evaluation("nlvr", config, source, read, out, metrics, force, seen) as run:
        if run is None:
            return
        statements = open_statements(data, balanced, categories)
        if run.checkpoint:
            evaluate_nlvr(config, run.checkpoint, statements, run.seen, run.out, run.tracker)
        elif run.predictions:
            score_nlvr(config, run.predictions, statements, run.out, run.tracker)


def visdial(
    data: Annotated[
        Path, typer.Option("--data", help="visdial_1.0_val.json or visdial_1.0_test.json.")
    ],
    out: Out,
    checkpoint: Checkpoint = None,
    predictions: Predictions = None,
    annotations: Annotated[
        Path | None,
        typer.Option("--annotations", help="visdial_1.0_val_dense_annotations.json, for NDCG."),
    ] = None,
    photos: Photos = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """VisDial v1.0: MRR, R@1/5/10, mean rank, NDCG."""
    from blip.benchmarks.visdial import evaluate_visdial, score_visdial
    from blip.data.dialogs import open_dialogs

    config = read_config(params, sets)
    source, seen = (checkpoint, predictions), ("--photos", photos)
    read = {"data": data, "annotations": annotations}
    with evaluation("visdial", config, source, read, out, metrics, force, seen) as run:
        if run is None:
            return
        dialogs = open_dialogs(data, annotations)
        if run.checkpoint:
            evaluate_visdial(config, run.checkpoint, dialogs, run.seen, run.out, run.tracker)
        elif run.predictions:
            score_visdial(config, run.predictions, dialogs, run.out, run.tracker)
