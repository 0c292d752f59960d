"""The verbs about a Kubernetes cluster: what a stage's Job looks like there, and how it is doing."""

from pathlib import Path
from typing import Annotated

import typer

k8s = typer.Typer(help="Run stages as Jobs on a Kubernetes cluster.", no_args_is_help=True)

Stage = Annotated[str, typer.Argument(help="A stage of dvc.yaml, e.g. pretrain@unfiltered.")]
ClusterFile = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        help="What the cluster's Jobs look like. Default: BLIP_CLUSTER, else k8s/overlays/local/jobs.yaml.",
    ),
]
Nodes = Annotated[int | None, typer.Option(min=1, help="Pods that train or evaluate together.")]
Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs of each pod.")]
Parts = Annotated[
    int | None, typer.Option(min=1, help="Pods that share out the shards (ingest, caption, score).")
]


@k8s.command()
def render(
    stage: Stage,
    nodes: Nodes = None,
    gpus: Gpus = None,
    parts: Parts = None,
    cluster: ClusterFile = None,
) -> None:
    """Print the manifests of a stage, for `kubectl apply -f -`.

    Changes nothing, here or on the cluster.
    """
    from blip.errors import ConfigError, DataError
    from blip.integrations import versioning
    from blip.integrations.cluster import manifests
    from blip.integrations.cluster.settings import load_cluster

    settings = load_cluster(cluster)
    graph = versioning.read_graph()
    if stage not in graph:
        raise ConfigError(f"no stage is called {stage!r}; {versioning.suggest(stage, graph)}")
    try:
        key = versioning.stage_digest(stage)
    except DataError as error:
        typer.echo(f"blip: {error}; until then its name has no digest", err=True)
        key = ""
    workspace = manifests.seen_by_pods(Path.cwd(), settings)
    documents = manifests.render(
        graph[stage], key, settings, workspace, nodes=nodes, gpus=gpus, parts=parts
    )
    typer.echo(manifests.to_yaml(documents, settings), nl=False)


@k8s.command()
def submit(
    stage: Stage,
    nodes: Nodes = None,
    gpus: Gpus = None,
    parts: Parts = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow it to its end, and record its result.")
    ] = True,
    cluster: ClusterFile = None,
) -> None:
    """Run a stage as a Job, or join the Job that runs already.

    The outputs of the stages before it must be there. With --no-wait, the Job is started and left alone: the same
    command without it, or `blip run`, takes the result.
    """
    from blip.errors import ConfigError
    from blip.integrations import versioning
    from blip.integrations.cluster.launcher import KubernetesLauncher
    from blip.integrations.cluster.settings import load_cluster
    from blip.integrations.experiment import STATE, following, open_experiment
    from blip.integrations.runner import Run, attempt, exit_code, stop_on_signal, summary

    settings = load_cluster(cluster)
    with open_experiment(Path.cwd()) as experiment:
        graph = versioning.read_graph()
        if stage not in graph:
            raise ConfigError(f"no stage is called {stage!r}; {versioning.suggest(stage, graph)}")
        node = graph[stage]
        launcher = KubernetesLauncher(
            experiment.workspace, settings, nodes=nodes, gpus=gpus, parts=parts
        )
        if not wait:
            prepared = versioning.prepare(stage, lambda key: launcher.begun(node, key))
            if prepared.state != "stale":
                typer.echo(f"{stage} is {prepared.state}")
                return
            name = launcher.begin(node, prepared.key, typer.echo)
            typer.echo(f"job {name}; its log: blip k8s logs -f {stage}")
            return
        run = Run(launcher, experiment.checkout / STATE / "claims")
        with following(experiment), stop_on_signal(run) as signals:
            outcome = attempt(node, run, typer.echo)
    typer.echo(summary([outcome]), err=True)
    raise typer.Exit(exit_code([outcome], signals))


@k8s.command()
def status(
    stage: Annotated[str | None, typer.Argument(help="A stage; default: all.")] = None,
    cluster: ClusterFile = None,
) -> None:
    """Tell how Jobs are doing.

    A line for each: waiting and for what, running, done, or failed and why.
    """
    from blip.integrations.cluster import jobs
    from blip.integrations.cluster.api import connect
    from blip.integrations.cluster.settings import load_cluster

    api = connect(load_cluster(cluster).namespace)
    for line in jobs.table(api, jobs.of_stage(api, stage)):
        typer.echo(line)


@k8s.command()
def logs(
    stage: Stage,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Follow it until it ends, and exit with its code."),
    ] = False,
    cluster: ClusterFile = None,
) -> None:
    """Print the log of a stage's newest Job."""
    import threading

    from blip.integrations.cluster import jobs
    from blip.integrations.cluster.api import connect
    from blip.integrations.cluster.logs import said
    from blip.integrations.cluster.settings import load_cluster

    settings = load_cluster(cluster)
    api = connect(settings.namespace)
    found = jobs.of_stage(api, stage)
    if not found:
        raise _no_job(stage, settings.namespace)
    if not follow:
        for line in said(api, found[-1]):
            typer.echo(line)
        return
    name = found[-1]["metadata"]["name"]
    ended = jobs.follow(api, name, typer.echo, patience=float("inf"), stopped=threading.Event())
    if ended is not None and ended.code:
        typer.echo(f"blip: {stage}: {ended.reason}", err=True)
        raise typer.Exit(ended.code)


@k8s.command()
def cancel(stage: Stage, cluster: ClusterFile = None) -> None:
    """Delete the Jobs of a stage; checkpoints stay.

    Returns when their pods are gone.
    """
    from blip.integrations.cluster import jobs
    from blip.integrations.cluster.api import connect
    from blip.integrations.cluster.settings import load_cluster

    settings = load_cluster(cluster)
    api = connect(settings.namespace)
    names = [job["metadata"]["name"] for job in jobs.of_stage(api, stage)]
    if not names:
        raise _no_job(stage, settings.namespace)
    jobs.cancel(api, names)
    typer.echo(f"deleted {', '.join(names)}")


def _no_job(stage: str, namespace: str) -> Exception:
    from blip.errors import ConfigError

    return ConfigError(f"no Job of {stage} is in namespace {namespace}: see blip k8s status")
