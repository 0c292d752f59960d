"""The `blip` command: one verb a stage, and what reads their results. Heavy imports live in the verbs."""

from typing import Annotated

import typer

from blip.cli import benchmarks, evaluate, experiment, inference, k8s, models, stages
from blip.cli.examples import epilog
from blip.cli.verbs import Verbs

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def setup(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log more; stands before the command.")
    ] = False,
) -> None:
    """BLIP experiments: clean a noisy image-text collection by bootstrapping, and measure what that gains.

    `blip run` runs the whole experiment that params.yaml describes. Every stage of it is a command, too: it reads and
    writes folders, does nothing where its output is there already, and goes on where a killed run stopped.

    Exit codes: 0 done; 1 a bug or a crash; 2 something for you to mend, said in one message; 75 another process of
    the run was lost, try again; 130 Ctrl-C; 143 stopped by SIGTERM after a checkpoint.
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


def _add_examples(commands: typer.Typer, group: str = "") -> None:
    """Let every command's help end with its examples."""
    for command in commands.registered_commands:
        name = command.name or getattr(command.callback, "__name__", "").replace("_", "-")
        command.epilog = epilog(group + name)
    for inner in commands.registered_groups:
        if inner.typer_instance is not None:
            _add_examples(inner.typer_instance, f"{inner.name} ")


_add_examples(app)
