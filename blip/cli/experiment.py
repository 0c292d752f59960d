"""The verbs about whole experiments: run one, report on it, ask where a caption comes from, look at it."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from blip.cli.options import PARAMS, Params, Sets, read_config

catalog = typer.Typer(
    help="The index of all results, which `blip lineage` reads.",
    no_args_is_help=True,
)


def run(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            help="Stages (select) or groups of them (finetune), with all they need; default: all."
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Start from blip/presets/PRESET.yaml, not from params.yaml.")
    ] = None,
    sets: Sets = None,
    name: Annotated[str | None, typer.Option(help="A name of your own for the experiment.")] = None,
    slots: Annotated[
        int | None, typer.Option(help="Stages to run at once; default: cores divided by `threads`.")
    ] = None,
    launcher: Annotated[
        Literal["local", "kubernetes"],
        typer.Option(help="Where stages run: as processes here, or as Jobs."),
    ] = "local",
    share: Annotated[
        bool,
        typer.Option(
            help="Fetch known results from the DVC remote first, push new ones at the end."
        ),
    ] = False,
) -> None:
    """Run an experiment: every stage that is out of date.

    Stages that do not need each other run side by side. With --preset, --set or --name the experiment runs in a git
    worktree of its own below .blip/experiments, and shares the cache, MLflow and the catalogue with the others. Where
    PREFECT_API_URL is set, it runs as a Prefect flow.
    """
    import os

    from blip.config import parse_overrides

    overrides = parse_overrides(sets or [])
    if os.environ.get("PREFECT_API_URL"):
        if targets:
            raise typer.BadParameter(
                "targets are for runs without a Prefect API; deploy the flow of a part instead"
            )
        flow = {
            "name": name,
            "preset": preset,
            "overrides": overrides,
            "launcher": launcher,
            "slots": slots,
        }
        _run_flow({**flow, "share": share})
    import sys

    from blip.integrations.console import Console
    from blip.integrations.experiment import describe, run_experiment
    from blip.integrations.runner import summary
    from blip.report.terminal import format_results

    console = Console(sys.stderr)
    outcomes, code = run_experiment(
        Path.cwd(), name, preset, overrides,
        targets=tuple(targets or ()), slots=slots, launcher=launcher, share=share,
        say=console.say, done=console.done,
    )  # fmt: skip
    typer.echo(f"\n{summary(outcomes)}")
    if code == 0 and not targets:
        workspace = describe(Path.cwd(), name, preset, overrides).workspace
        typer.echo(f"\n{format_results(workspace)}")
    raise typer.Exit(code)


def _run_flow(parameters: dict[str, object]) -> None:
    """Become the process of the Prefect flow, which gets our signals; this package never imports Prefect."""
    import os
    import sys

    from blip.integrations.launch import TELEMETRY_OFF

    quiet = {
        **TELEMETRY_OFF,
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "blip",
    }
    command = [sys.executable, "-m", "flows", "experiment", json.dumps(parameters)]
    os.execve(sys.executable, command, {**quiet, **os.environ})  # noqa: S606 - our own interpreter


def study(
    spec: Annotated[Path, typer.Argument(help="YAML: preset, seeds, variations.")] = Path(
        "docs/study.yaml"
    ),
    slots: Annotated[
        int | None, typer.Option(help="Experiments to run at once; default: one for each core.")
    ] = None,
    page_only: Annotated[
        bool, typer.Option("--page-only", help="Run nothing; sum up what is finished.")
    ] = False,
) -> None:
    """Run variations over several seeds, and sum them up on a page.

    The page lies beside the spec (docs/study.md). The same command goes on where it was stopped.
    """
    from blip.integrations.runner import default_slots
    from blip.integrations.study import load_study, run_study, write_page

    plan, page = load_study(spec), spec.with_suffix(".md")
    if not page_only:
        run_study(Path.cwd(), plan, slots or default_slots(1), typer.echo)
    write_page(Path.cwd(), plan, page)
    typer.echo(f"wrote {page}")


def report(
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path(
        "reports/report.html"
    ),
    pictures: Annotated[
        Path | None, typer.Option(help="Also write each figure as SVG into this folder.")
    ] = None,
    params: Params = PARAMS,
    sets: Sets = None,
) -> None:
    """Write the report of the experiment: one HTML page.

    It is self-contained, opens from disk, and shows what the arms gained, the texts kept and dropped, and the filter.
    """
    from blip.config import dump_config
    from blip.files import digest_file
    from blip.integrations.tracking import tracked
    from blip.integrations.tracking.summary import summarise
    from blip.report.page import write_report
    from blip.stage import Job, experiment_name
    from blip.tracker import Journal

    config = read_config(params, sets)
    write_report(config, Path.cwd(), out, pictures)
    job, key = Job("report", out, {}, {}, experiment=experiment_name(config)), digest_file(out)
    with tracked(job, dump_config(config)):
        journal = Journal(job.runs / f"report-{key[:16]}" / "journal.jsonl")
        journal.start(
            stage="report", name="report", key=key, experiment=job.experiment, params={}, inputs={}
        )
        journal.artifact(out, "results")
        journal.metrics(summarise(Path("results")))
        journal.end("FINISHED", key)
    typer.echo(f"wrote {out}")


def lineage(
    query: Annotated[
        str | None,
        typer.Argument(
            help="An image (its file, key or name in the source) or a text (its id or exact words)."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Instead: what this checkpoint wrote and judged.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print where a caption comes from, and what learned from it.

    A tree: the image, its texts, who wrote and who judged each, the versions that kept it, the models trained on them.
    """
    from blip.errors import ConfigError
    from blip.integrations.catalog import reading
    from blip.integrations.lineage import format_tree, texts_by_model, to_json
    from blip.integrations.lineage import lineage as trace
    from blip.integrations.settings import catalog

    if (query is None) == (model is None):
        raise ConfigError("blip lineage takes an image, a text or --model, one of them")
    with reading(catalog()) as session:
        answer = texts_by_model(session, model) if model is not None else trace(session, str(query))
        typer.echo(to_json(answer) if as_json else format_tree(answer))


def manifest(
    path: Annotated[
        Path, typer.Argument(help="A run's folder below runs/, a checkpoint, or a stage's output.")
    ],
) -> None:
    """Print what a run came from, as JSON.

    Commit and uncommitted changes, packages, data, configuration, seed, machine, and where MLflow and DVC have it.
    """
    from blip.integrations.manifest import load_manifest

    typer.echo(json.dumps(load_manifest(path), indent=2, sort_keys=True))


def track() -> None:
    """Carry to MLflow what is still in the journals below runs/.

    Needed only after its server was away: running stages do this by themselves.
    """
    from blip.errors import IntegrationError
    from blip.integrations.tracking.settings import load_settings
    from blip.integrations.tracking.shipping import ship

    shipped = ship(Path("runs"), load_settings(), last=True)
    typer.echo(f"points carried: {shipped.points}")
    if shipped.problem:
        raise IntegrationError(f"stages that wait: {len(shipped.waiting)}; {shipped.problem}")


def ui() -> None:
    """Start the MLflow and Prefect pages on free loopback ports.

    Prints their addresses; Ctrl-C ends both. A server that is configured already (an http tracking_uri,
    PREFECT_API_URL) is only pointed to.
    """
    from blip.integrations.tracking.settings import load_settings
    from blip.integrations.ui import serve

    serve(load_settings(), typer.echo)


@catalog.command()
def rebuild() -> None:
    """Empty the catalogue and fill it from this project's files."""
    from blip.integrations import settings
    from blip.integrations.catalog import rebuild

    typer.echo(f"{rebuild(settings.catalog(), Path.cwd())} stage outputs indexed")


@catalog.command()
def add(paths: Annotated[list[Path], typer.Argument(help="Folders of stage outputs.")]) -> None:
    """Index stage outputs, as those that `dvc pull` brought."""
    from blip.integrations import settings
    from blip.integrations.catalog import add

    engine = settings.catalog()
    for path in paths:
        add(engine, path)


@catalog.command()
def stats() -> None:
    """Count the rows of each table."""
    from blip.integrations import settings
    from blip.integrations.catalog import count_rows

    for table, rows in count_rows(settings.catalog()).items():
        typer.echo(f"{rows:>10,}  {table}")
