"""The stages as DVC knows them: reads the graph, asks what is up to date, restores and records."""

import contextlib
import difflib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from blip.errors import DataError
from blip.integrations.dvc_session import find_stage, locked, opened, through_dvc

MADE_FROM = "made_from"  # what made pinned data, under `meta` of its .dvc file


@dataclass(frozen=True)
class Node:
    """A stage as `dvc.yaml` describes it, or data that a `.dvc` file pins (without a command).

    Attributes:
        name: What DVC calls it, e.g. `finetune@captioner`.
        command: What to run, with every parameter in place.
        description: What it is for, in a few words.
        upstream: Names of the nodes whose outputs it reads.
        deps: Paths that it reads: data, models, code.
        params: Keys of `params.yaml` that it reads.
        outs: Paths that it writes.
        reports: Those among them that git keeps and not the cache: small metrics.
        weight: Its rough share of the time, to run the longest chain first.
        retries: How often a crash is tried again.
        timeout: Seconds after which it is stopped; None for no limit.
        pinned: Whether it is data that a `.dvc` file pins.
        made_from: For pinned data, the digest of the settings of their generator, if they have one.
    """

    name: str
    command: str | None
    description: str = ""
    upstream: tuple[str, ...] = ()
    deps: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    outs: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()
    weight: float = 1.0
    retries: int = 0
    timeout: float | None = None
    pinned: bool = False
    made_from: str = ""


@dataclass(frozen=True)
class Prepared:
    """A node just before it would run.

    Attributes:
        state: `cached`: nothing to do. `restored`: the result of an equal run was put back.
            `stale`: it must run; its old outputs are gone, unless it has begun.
        key: Digest of the command and of everything it depends on; equal for equal work in any
            workspace.
        inputs: The digest of each thing it depends on, to see whether one changes while it runs.
    """

    state: Literal["cached", "restored", "stale"]
    key: str = ""
    inputs: Mapping[str, str] | None = None


@through_dvc
def read_graph() -> dict[str, Node]:
    """Read the graph of the workspace, upstream before downstream.

    Raises:
        IntegrationError: No DVC project here, or `dvc.yaml` cannot be read.
    """
    with opened() as repo:
        return _graph(repo)


@through_dvc
def survey() -> tuple[dict[str, Node], set[str]]:
    """Read the graph, and name the nodes that differ from what `dvc.lock` records.

    A node whose upstream is yet to run again is not named for that alone.
    """
    with opened() as repo, locked(repo):  # outside of the lock DVC would read everything twice
        return _graph(repo), set(repo.status())


def _graph(repo: Any) -> dict[str, Node]:
    import networkx

    graph = repo.index.graph  # an edge leads from a stage to its upstream
    order = networkx.lexicographical_topological_sort(graph.reverse(), key=lambda s: s.addressing)
    return {stage.addressing: _node(stage, graph) for stage in order}


def _node(stage: Any, graph: Any) -> Node:
    meta = stage.meta or {}
    return Node(
        name=stage.addressing,
        command="\n".join(stage.cmd) if isinstance(stage.cmd, list) else stage.cmd,
        description=stage.desc or "",
        upstream=tuple(sorted(upstream.addressing for upstream in graph.successors(stage))),
        deps=tuple(dep.def_path for dep in stage.deps if dep not in stage.params),
        params=tuple(key for dep in stage.params for key in dep.params),
        outs=tuple(out.def_path for out in stage.outs),
        reports=tuple(out.def_path for out in stage.outs if not out.use_cache),
        weight=float(meta.get("weight", 1.0)),
        retries=int(meta.get("retries", 0)),
        timeout=meta.get("timeout_seconds"),
        pinned=stage.is_data_source,
        made_from=str(meta.get(MADE_FROM, "")),
    )


def suggest(name: str, graph: Iterable[str]) -> str:
    """Say, for an error, which stages were meant by a name that none has: the end of a sentence."""
    groups = {stage: stage.split("@")[0] for stage in graph}
    close = [stage for stage, group in groups.items() if group == name]
    close = close or difflib.get_close_matches(name, {**groups, **dict.fromkeys(groups.values())})
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there are {', '.join(dict.fromkeys(groups.values()))}"


@through_dvc
def prepare(
    name: str, begun: Callable[[str], bool] = lambda key: False, *, pull: bool = False
) -> Prepared:
    """Ask whether a stage must run; restore the result of an equal run, or remove the old one.

    Args:
        name: The stage; what it depends on is in place.
        begun: Tells whether the work of a key is under way or done, not recorded yet: then what is
            there of its outputs stays.
        pull: Fetch the objects of a known result from the remote where the cache lacks them.

    Raises:
        DataError: Something that it depends on is not there.
    """
    from dvc.stage.cache import RunCacheNotFoundError

    with opened() as repo, locked(repo):
        stage = find_stage(repo, name)
        changes = stage.status().get(stage.addressing, [])
        if not changes:
            return Prepared("cached")
        if all("changed outs" in change for change in changes) and as_recorded(stage):
            stage.commit()  # it is all there, only the cache has lost it
            return Prepared("cached")
        _check_inputs(stage)
        stage.save_deps()
        stale = Prepared("stale", stage_key(stage), _inputs(stage))
        if begun(stale.key):
            return stale
        repo._reset()  # DVC would take the new inputs for the cause of the recorded outputs
        stage = find_stage(repo, name)
        stage.remove_outs(ignore_remove=False, force=False)
        try:
            repo.stage_cache.restore(stage, pull=pull)
        except RunCacheNotFoundError:
            return stale
        repo.commit(name, force=True)
        return Prepared("restored")


@through_dvc
def stage_digest(name: str) -> str:
    """Give the key that `prepare` would give a stale stage, and change nothing.

    Raises:
        DataError: Something that it depends on is not there.
    """
    with opened() as repo, locked(repo):
        stage = find_stage(repo, name)
        _check_inputs(stage)
        stage.save_deps()
        return stage_key(stage)


@through_dvc
def record(name: str, inputs: Mapping[str, str]) -> None:
    """Write what a stage read and made into `dvc.lock` and the run cache.

    Raises:
        DataError: Something it depends on changed while it ran: its result belongs to neither
            state.
        IntegrationError: An output is missing.
    """
    with opened() as repo, locked(repo):
        stage = find_stage(repo, name)
        stage.save_deps()
        changed = [path for path, digest in _inputs(stage).items() if inputs.get(path) != digest]
        if changed:
            raise DataError(
                f"stage {name}: {', '.join(changed)} changed while it ran, "
                "so its result is not recorded: run again"
            )
        repo.commit(name, force=True)


@through_dvc
def checkout() -> None:
    """Put back every recorded output that the cache has; what it lacks stays absent."""
    from dvc.exceptions import CheckoutError

    with opened(logging.ERROR) as repo, contextlib.suppress(CheckoutError):
        repo.checkout(force=True, allow_missing=True)


@through_dvc
def save_experiment(name: str, reports: list[str]) -> None:
    """Save the workspace as a DVC experiment; `dvc exp show` lists it in every worktree.

    Args:
        name: The experiment's name; an earlier one of that name is replaced.
        reports: Files to keep in it whether git tracks them yet or not.
    """
    with opened(logging.ERROR) as repo:
        repo.experiments.save(name=name, force=True, include_untracked=reports)


def as_recorded(stage: Any) -> bool:
    """Tell whether the outputs here are those recorded, whether the cache has them or not."""
    return not any(out.workspace_status() for out in stage.outs)


def stage_key(stage: Any) -> str:
    """Give the digest of the command of a stage and of everything it depends on, as saved; empty where DVC has none."""
    from dvc.stage.cache import _can_hash, _get_stage_hash

    return str(_get_stage_hash(stage)) if _can_hash(stage) else ""


def _check_inputs(stage: Any) -> None:
    missing = [str(dependency) for dependency in stage.deps if not dependency.exists]
    if missing:
        raise DataError(
            f"stage {stage.addressing} needs {', '.join(missing)}, which is not there: "
            "make or fetch it first"
        )


def _inputs(stage: Any) -> dict[str, str]:
    return {str(dependency): str(dependency.hash_info) for dependency in stage.deps}
