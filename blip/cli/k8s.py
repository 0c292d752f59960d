"""The verbs about a Kubernetes cluster: what a stage's Job looks like there, and how it is doing."""

from pathlib import Path
from typing import Annotated

import typer

k8s = typer.Typer(help="Stages as Jobs on a Kubernetes cluster.", no_args_is_help=True)

Stage = Annotated[str, typer.Argument(help="A stage of dvc.yaml, e.g. pretrain@unfiltered.")]
ClusterFile = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        help="What the cluster's Jobs look like; default: BLIP_CLUSTER, else k8s/overlays/local/jobs.yaml.",
    ),
]
Nodes = Annotated[int | None, typer.Option(min=1, help="Pods of a training.")]
Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs of a pod.")]
Parts = Annotated[
    int | None, typer.Option(min=1, help="Pods that share out the shards: ingest, caption, score.")
]


@k8s.command()
def render(
    stage: Stage,
    nodes: Nodes = None,
    gpus: Gpus = None,
    parts: Parts = None,
    cluster: ClusterFile = None,
) -> None:
    """Print the manifests of a stage, for `kubectl apply -f -`. Changes nothing, here or there."""
    from blip.errors import ConfigError, DataError
    from blip.integrations import versioning
    from blip.integrations.cluster import manifests
    from blip.integrations.cluster.settings import load_cluster

    settings = load_cluster(cluster)
    graph = versioning.read_graph()
    if stage not in graph:
        raise ConfigError(f"no stage is called {stage!r}; there are {', '.join(graph)}")
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
