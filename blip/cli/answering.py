"""`blip evaluate vqa|nlvr|visdial`: answers, verdicts and ranks of a model, or those that are there."""

from pathlib import Path
from typing import Annotated

import typer

from blip.cli.evaluate import find_checkpoint
from blip.cli.options import (
    PARAMS,
    Force,
    Inputs,
    Metrics,
    Out,
    Params,
    Sets,
    read_config,
    sections,
    stage,
)
from blip.errors import ConfigError

Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        help="A folder of ours or of transformers, a .pth of salesforce/BLIP, or models:/NAME@ALIAS.",
    ),
]
Predictions = Annotated[
    Path | None,
    typer.Option(
        "--predictions", help="Instead of a checkpoint: what to score, as a server takes it."
    ),
]
Photos = Annotated[
    Path | None,
    typer.Option(
        "--photos", help="With a checkpoint: the folder above that of the split's photos."
    ),
]


def vqa(
    data: Annotated[
        Path,
        typer.Option(
            "--data", help="v2_OpenEnded_mscoco_*_questions.json, vqa_val.json, vqa_test.json."
        ),
    ],
    out: Out,
    checkpoint: Checkpoint = None,
    predictions: Predictions = None,
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
    """VQA v2: accuracy as the official evaluator computes it, and the submission."""
    from blip.benchmarks.vqa import evaluate_vqa, open_questions, read_asked, score_vqa

    config = read_config(params, sets)
    inputs = _inputs(
        checkpoint, predictions, photos, data=data, annotations=annotations, answers=answers
    )
    section = {"task": "vqa", **sections(config, "seed", "threads", "evaluate")}
    with stage("evaluate", out, inputs, section, config, metrics, force) as running:
        if not running:
            return
        if predictions is None:
            assert photos is not None
            (model,) = map(Path, inputs["model"])
            questions = open_questions(data, annotations)
            evaluate_vqa(config, model, questions, photos, answers, running.out, running.journal)
            return
        asked = read_asked(data) if annotations is None else open_questions(data, annotations).asked
        assert asked is not None
        score_vqa(config, predictions, asked, running.out, running.journal)


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
    """NLVR2: accuracy and consistency, as the official script computes them."""
    from blip.benchmarks.nlvr import evaluate_nlvr, open_statements, score_nlvr

    config = read_config(params, sets)
    inputs = _inputs(
        checkpoint, predictions, photos, data=data, balanced=balanced, categories=categories
    )
    section = {"task": "nlvr", **sections(config, "seed", "threads", "evaluate")}
    with stage("evaluate", out, inputs, section, config, metrics, force) as running:
        if not running:
            return
        statements = open_statements(data, balanced, categories)
        if predictions is None:
            assert photos is not None
            (model,) = map(Path, inputs["model"])
            evaluate_nlvr(config, model, statements, photos, running.out, running.journal)
        else:
            score_nlvr(config, predictions, statements, running.out, running.journal)


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
    """VisDial v1.0: MRR, R@1/5/10, mean rank and NDCG, and the submission."""
    from blip.benchmarks.visdial import evaluate_visdial, score_visdial
    from blip.data.dialogs import open_dialogs

    config = read_config(params, sets)
    inputs = _inputs(checkpoint, predictions, photos, data=data, annotations=annotations)
    section = {"task": "visdial", **sections(config, "seed", "threads", "evaluate")}
    with stage("evaluate", out, inputs, section, config, metrics, force) as running:
        if not running:
            return
        dialogs = open_dialogs(data, annotations)
        if predictions is None:
            assert photos is not None
            (model,) = map(Path, inputs["model"])
            evaluate_visdial(config, model, dialogs, photos, running.out, running.journal)
        else:
            score_visdial(config, predictions, dialogs, running.out, running.journal)


def _inputs(
    checkpoint: str | None, predictions: Path | None, photos: Path | None, **files: Path | None
) -> Inputs:
    """Give what a stage reads, by role; the photos are known by name, for there are many."""
    given = {role: [file] for role, file in files.items() if file is not None}
    if checkpoint is not None and predictions is None:
        if photos is None:
            raise ConfigError("a model looks at photos: say where they lie: --photos FOLDER")
        return {"model": [find_checkpoint(checkpoint)], **given}
    if checkpoint is None and predictions is not None:
        return {"predictions": [predictions], **given}
    raise ConfigError("name what to measure: a model by --checkpoint, or --predictions to score")
