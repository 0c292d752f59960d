"""The `blip` command: one verb a stage, and what reads their results. Heavy imports live in the verbs."""

from typing import Annotated

import typer

from blip.cli import benchmarks, evaluate, experiment, inference, k8s, models, stages

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def setup(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """BLIP experiments: ingest, validate, pre-train, bootstrap captions, fine-tune, evaluate, promote.

    `blip run` runs a whole experiment; the other verbs are its stages, one by one, and what reads their results.
    """
    from blip.log import setup_logging

    setup_logging(verbose)


for verb in (
    experiment.run,
    stages.world,
    stages.ingest,
    stages.validate,
    stages.tokenizer,
    stages.pretrain,
    stages.finetune,
    inference.caption,
    stages.score,
    stages.select,
    stages.compare,
    stages.promote,
    inference.vqa,
    inference.match,
    inference.features,
    models.convert,
    benchmarks.reproduce,
    experiment.study,
    experiment.report,
    experiment.lineage,
    experiment.manifest,
    experiment.track,
    experiment.ui,
):
    app.command()(verb)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(benchmarks.app, name="benchmark")
app.add_typer(experiment.catalog, name="catalog")
app.add_typer(k8s.k8s, name="k8s")
