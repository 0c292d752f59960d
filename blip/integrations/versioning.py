"""The one adapter to DVC: reads the graph, asks what is up to date, restores and records.

Everything here works on the workspace that is the current directory (DVC's own interface does too),
opens DVC anew for every call (a shared one loses lock entries), and lets one call of this process
in at a time.
"""

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from blip.errors import DataError, IntegrationError

P = ParamSpec("P")
R = TypeVar("R")

one_at_a_time = threading.RLock()  # of this process, for what reads or writes DVC's files

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


def _through_dvc(function: Callable[P, R]) -> Callable[P, R]:
    """Let one call in at a time, and give DVC's refusals as an `IntegrationError`."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        from dvc.exceptions import DvcException

        with one_at_a_time:
            try:
                return function(*args, **kwargs)
            except DvcException as error:
                raise IntegrationError(f"DVC: {_causes(error)}") from error

    return call


@_through_dvc
def read_graph() -> dict[str, Node]:
    """Read the graph of the workspace, upstream before downstream.

    Raises:
        IntegrationError: No DVC project here, or `dvc.yaml` cannot be read.
    """
    with _open() as repo:
        return _graph(repo)


@_through_dvc
def survey() -> tuple[dict[str, Node], set[str]]:
    """Read the graph, and name the nodes that differ from what `dvc.lock` records.

    A node whose upstream is yet to run again is not named for that alone.
    """
    with _open() as repo, _locked(repo):  # outside of the lock DVC would read everything twice
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


@_through_dvc
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

    with _open() as repo, _locked(repo):
        stage = _stage(repo, name)
        changes = stage.status().get(stage.addressing, [])
        if not changes:
            return Prepared("cached")
        if all("changed outs" in change for change in changes) and _as_recorded(stage):
            stage.commit()  # it is all there, only the cache has lost it
            return Prepared("cached")
        _check_inputs(stage)
        stage.save_deps()
        stale = Prepared("stale", _key(stage), _inputs(stage))
        if begun(stale.key):
            return stale
        repo._reset()  # DVC would take the new inputs for the cause of the recorded outputs
        stage = _stage(repo, name)
        stage.remove_outs(ignore_remove=False, force=False)
        try:
            repo.stage_cache.restore(stage, pull=pull)
        except RunCacheNotFoundError:
            return stale
        repo.commit(name, force=True)
        return Prepared("restored")


@_through_dvc
def stage_digest(name: str) -> str:
    """Give the key that `prepare` would give a stale stage, and change nothing.

    Raises:
        DataError: Something that it depends on is not there.
    """
    with _open() as repo, _locked(repo):
        stage = _stage(repo, name)
        _check_inputs(stage)
        stage.save_deps()
        return _key(stage)


@_through_dvc
def record(name: str, inputs: Mapping[str, str]) -> None:
    """Write what a stage read and made into `dvc.lock` and the run cache.

    Raises:
        DataError: Something it depends on changed while it ran: its result belongs to neither
            state.
        IntegrationError: An output is missing.
    """
    with _open() as repo, _locked(repo):
        stage = _stage(repo, name)
        stage.save_deps()
        changed = [path for path, digest in _inputs(stage).items() if inputs.get(path) != digest]
        if changed:
            raise DataError(
                f"stage {name}: {', '.join(changed)} changed while it ran, "
                "so its result is not recorded: run again"
            )
        repo.commit(name, force=True)


@_through_dvc
def keep_data(name: str) -> Literal["cached", "restored", "missing", "changed"]:
    """Bring pinned data and the cache into line: each gives the other what it lacks.

    Returns:
        `cached`: the data are there as pinned. `restored`: they were put back from the cache.
        `missing`: neither has them. `changed`: they are not what is pinned.
    """
    with _open() as repo, _locked(repo):
        stage = _stage(repo, name)
        if _as_recorded(stage):
            if not stage.outs_cached():
                stage.commit()
            return "cached"
        if any(out.exists for out in stage.outs):
            return "changed"
        if not stage.outs_cached():
            return "missing"
        stage.checkout()
        return "restored"


def pin_data(folder: Path, made_from: str) -> None:
    """Check generated data against `<folder>.dvc` if that was made from the same, else write it.

    Args:
        folder: The data, in the current directory.
        made_from: Digest of the settings that the generator was given.

    Raises:
        DataError: The same settings gave other bytes than those pinned.
    """
    pin = Path(f"{folder}.dvc")
    pinned = read_graph().get(pin.as_posix()) if pin.exists() else None
    if pinned and pinned.made_from == made_from:
        if keep_data(pin.as_posix()) == "changed":
            raise DataError(
                f"{folder}: the same settings gave other bytes than {pin} pins: the generator or a "
                f"library of its behaves differently here; delete {pin} to accept them"
            )
        return
    _pin(folder, {MADE_FROM: made_from})


def pin_file(path: Path) -> bool:
    """Have a `.dvc` file pin fetched data; False where they lie outside of a DVC project."""
    root, place = Path.cwd(), path.resolve()
    if not ((root / ".dvc").is_dir() and place.is_relative_to(root)):
        return False
    _pin(place, None)
    return True


@_through_dvc
def _pin(path: Path, meta: Mapping[str, str] | None) -> None:
    with _open() as repo:
        (stage,) = repo.add(str(path))
        stage.meta = meta
        stage.dump()


def forget_generated_data() -> None:
    """Remove the pins of generated data from a workspace whose experiment brings its own."""
    for node in read_graph().values():
        if node.made_from:
            Path(node.name).unlink()


@_through_dvc
def checkout() -> None:
    """Put back every recorded output that the cache has; what it lacks stays absent."""
    from dvc.exceptions import CheckoutError

    with _open(logging.ERROR) as repo, contextlib.suppress(CheckoutError):
        repo.checkout(force=True, allow_missing=True)


@_through_dvc
def fetch_run_cache() -> None:
    """Fetch from the remote which stages ran elsewhere: the records, not yet their objects."""
    with _open() as repo:
        cache = repo.stage_cache
        cache.transfer(_remote(repo), repo.cache.legacy, force=False)


@_through_dvc
def push(names: list[str]) -> int:
    """Push results to the remote, so that any clone can restore them; count the objects sent.

    Objects go before the records that name them, so that no record is ever seen without its
    objects. DVC's own `push --run-cache` sends all records each time, and only the objects of the
    current workspace.
    """
    with _open() as repo, _locked(repo):
        remote = _remote(repo)
        stages = [_stage(repo, name) for name in names]
        records = [
            entry
            for entry in map(_record, stages)
            if entry and Path(repo.stage_cache._get_cache_path(*entry)).exists()
        ]
        used = [repo.stage_cache.get_used_objs(records), *(s.get_used_objs() for s in stages)]
        sent = [repo.cloud.push(o, odb=store) for each in used for store, o in each.items()]
        for entry in records:
            _push_record(repo, remote, entry)
        return sum(len(result.transferred) for result in sent)


@_through_dvc
def pull(paths: list[str]) -> None:
    """Bring outputs, or files of them, from the remote.

    Raises:
        IntegrationError: The remote lacks one of them.
    """
    if paths:
        with _open() as repo:
            repo.pull(targets=paths)


@_through_dvc
def remote_url() -> str:
    """Give the URL of the remote."""
    with _open() as repo:
        remote = _remote(repo)
        return str(remote.fs.unstrip_protocol(remote.path))


@_through_dvc
def put(data: bytes, name: str) -> None:
    """Put a file into the remote, beside DVC's own, unless one of its name is there."""
    with _open() as repo:
        remote = _remote(repo)
        path = remote.fs.join(remote.path, *name.split("/"))
        if not remote.fs.exists(path):
            remote.fs.makedirs(remote.fs.parent(path), exist_ok=True)
            remote.fs.fs.pipe_file(path, data)


@_through_dvc
def share_cache(checkout: Path) -> None:
    """Make the workspace use the cache and the local settings of a checkout."""
    from dvc.repo import Repo

    with contextlib.closing(Repo(str(checkout))) as other, _open() as repo:
        directory = Path(other.cache.local_cache_dir).resolve()
        with repo.config.edit("local") as config:
            config.update(other.config.load_one("local"))
            config.setdefault("cache", {})["dir"] = str(directory)


@_through_dvc
def save_experiment(name: str, reports: list[str]) -> None:
    """Save the workspace as a DVC experiment; `dvc exp show` lists it in every worktree.

    Args:
        name: The experiment's name; an earlier one of that name is replaced.
        reports: Files to keep in it whether git tracks them yet or not.
    """
    with _open(logging.ERROR) as repo:
        repo.experiments.save(name=name, force=True, include_untracked=reports)


@contextlib.contextmanager
def _open(level: int = logging.WARNING) -> Iterator[Any]:
    from dvc.logger import set_loggers_level
    from dvc.repo import Repo

    with set_loggers_level(level), contextlib.closing(Repo(_wait_for_lock=True)) as repo:
        yield repo


@contextlib.contextmanager
def _locked(repo: Any) -> Iterator[None]:
    from dvc.repo import lock_repo

    with lock_repo(repo):
        yield


def _stage(repo: Any, name: str) -> Any:
    (stage,) = repo.stage.collect(name)
    return stage


def _check_inputs(stage: Any) -> None:
    missing = [str(dependency) for dependency in stage.deps if not dependency.exists]
    if missing:
        raise DataError(
            f"stage {stage.addressing} needs {', '.join(missing)}, which is not there: "
            "make or fetch it first"
        )


def _as_recorded(stage: Any) -> bool:
    """Tell whether the outputs here are those recorded, whether the cache has them or not."""
    return not any(out.workspace_status() for out in stage.outs)


def _inputs(stage: Any) -> dict[str, str]:
    return {str(dependency): str(dependency.hash_info) for dependency in stage.deps}


def _key(stage: Any) -> str:
    from dvc.stage.cache import _can_hash, _get_stage_hash

    return str(_get_stage_hash(stage)) if _can_hash(stage) else ""


def _record(stage: Any) -> tuple[str, str] | None:
    from dvc.stage.cache import _get_cache_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    key = _key(stage)
    return (key, str(_get_cache_hash(to_single_stage_lockfile(stage)))) if key else None


def _remote(repo: Any) -> Any:
    from dvc.config import NoRemoteError, RemoteConfigError

    try:
        return repo.cloud.get_remote_odb(None, "push", hash_name="md5-dos2unix")
    except (NoRemoteError, RemoteConfigError):
        raise IntegrationError(
            "no DVC remote to share results through: dvc remote add -d NAME URL"
        ) from None


def _push_record(repo: Any, remote: Any, entry: tuple[str, str]) -> None:
    from dvc.fs import generic

    source = repo.stage_cache._get_cache_path(*entry)
    store = repo.cache.legacy
    target = remote.fs.join(remote.path, *store.fs.parts(store.fs.relpath(source, store.path)))
    if not remote.fs.exists(target):
        generic.copy(store.fs, source, remote.fs, target)


def _causes(error: BaseException) -> str:
    """Give an error's message with those it came from, on one line."""
    messages: list[str] = []
    cause: BaseException | None = error
    while cause:
        text = " ".join(str(cause).split())
        if text and text not in messages:
            messages.append(text)
        cause = cause.__cause__
    return ": ".join(messages)
