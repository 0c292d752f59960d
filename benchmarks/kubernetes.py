"""`python -m benchmarks.kubernetes`: what a stage as a Job costs over the same stage on this machine.

Run it in a copy of a project that lies on the volume shared with the pods of the cluster (BLIP_CLUSTER), its stages
done up to the vocabulary: it deletes `runs` and what the timed stages made. Every command runs by turns here and as a
Job, by the launchers that runs use.
"""

import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer

from blip.integrations import versioning
from blip.integrations.cluster.launcher import KubernetesLauncher
from blip.integrations.cluster.settings import load_cluster
from blip.integrations.launch import Launcher, LocalLauncher, stage_environment
from blip.integrations.versioning import Node
from blip.tracker import read_journal

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    stage: Annotated[str, typer.Option(help="A stage of the project to time.")] = "validate",
    training: Annotated[str, typer.Option(help="And one to begin.")] = "pretrain@human",
    repeats: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Print medians of the seconds of an empty command, of a stage, and to a training's first point."""
    graph = versioning.read_graph()
    empty = Node("empty", "true")
    here = LocalLauncher(Path.cwd(), stage_environment(Path.cwd()))
    there = KubernetesLauncher(Path.cwd(), load_cluster())
    for what, node in (("empty", empty), (stage, graph[stage])):
        _tell(what, [(_launch(here, node), _launch(there, node)) for _ in range(repeats)])
    node = graph[training]
    points = [(_first_point(here, node), _first_point(there, node)) for _ in range(repeats)]
    _tell(f"{training}: first point", points)


def _tell(what: str, pairs: list[tuple[float, float]]) -> None:
    here, there = (statistics.median(times) for times in zip(*pairs, strict=True))
    least, most = (
        min(there - here for here, there in pairs),
        max(there - here for here, there in pairs),
    )
    sys.stdout.write(
        f"{what:30} here {here:6.2f} s  Job {there:6.2f} s  more {there - here:5.2f} s"
        f" ({least:.2f} to {most:.2f})\n"
    )
    sys.stdout.flush()


def _launch(launcher: Launcher, node: Node) -> float:
    """Give the seconds of a command from its launch to its end, with nothing of it done before."""
    for done in (*node.outs, "runs"):
        shutil.rmtree(done, ignore_errors=True)
    began = time.monotonic()
    launcher.launch(node, uuid4().hex, lambda _: None)
    return time.monotonic() - began


def _first_point(launcher: Launcher, node: Node) -> float:
    """Give the seconds from the launch of a training to the first point of its curve."""
    began = time.time()
    _launch(launcher, node)
    return min(_points()) - began


def _points() -> Iterator[float]:
    for journal in Path("runs").rglob("*.jsonl"):
        for event in read_journal(journal)[0]:
            if event["event"] == "metrics":
                yield float(event["time"])


if __name__ == "__main__":
    app()
