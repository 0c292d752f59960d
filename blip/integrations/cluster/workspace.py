"""A stage without a shared volume: the pod fetches its workspace from the DVC remote, and pushes what it made.

Outside, `share` puts everything that git tracks, as it is, into the remote, named by its content, with the data that
the stage reads. The pod (`python -m blip.integrations.cluster.workspace STAGE COMMAND`) unpacks it, pulls what the
stage reads, runs its command, and pushes outputs and run-cache entry as any clone would. `bring` then restores them
outside. What a killed pod needs (checkpoints, finished shards) is kept in the remote as one object, whole or absent.
A part of a stage keeps its shards that way and nothing else; the stage's own pod begins with those of all parts.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blip.errors import BlipError, ConfigError, DataError
from blip.files import read_json
from blip.integrations import dvc_session, sharing, versioning
from blip.integrations.cluster.manifests import INDEX
from blip.integrations.git import archive, snapshot
from blip.integrations.launch import StageFailedError, shell_arguments
from blip.integrations.versioning import Node

REMOTE, TREE, KEY = "BLIP_REMOTE", "BLIP_TREE", "BLIP_KEY"  # what a pod is told
FOLDER = "blip"  # in the remote, beside DVC's own
KEEP_SECONDS = 30.0
RUNS = Path("runs")


def share(folder: Path, node: Node, key: str) -> dict[str, str]:
    """Put what a stage needs into the remote; give the environment that tells its pod where.

    Args:
        folder: The workspace, the current directory.
        node: The stage.
        key: Its digest, which the pod must come to as well.

    Raises:
        ConfigError: The DVC remote is none that pods could reach.
        IntegrationError: It cannot be written.
    """
    remote = sharing.remote_url()
    if not remote.startswith("s3://"):
        raise ConfigError(
            f"pods cannot reach the DVC remote {remote}: storage of kind s3 needs one at s3://..."
        )
    with dvc_session.one_at_a_time:
        tree = snapshot(folder)
        sharing.put(archive(folder, tree), f"{FOLDER}/workspaces/{tree}.tar")
        sharing.push(_all_upstream(node.name))
    return {REMOTE: remote, TREE: tree, KEY: key}


def _all_upstream(name: str) -> list[str]:
    graph = versioning.read_graph()
    needed = {name}
    for each in reversed(list(graph)):
        if each in needed:
            needed.update(graph[each].upstream)
    return sorted(needed - {name})


def bring(node: Node) -> None:
    """Restore the outputs that a stage's pod pushed.

    Raises:
        StageFailedError: They are not in the remote, or belong to other inputs.
    """
    sharing.fetch_run_cache()
    if versioning.prepare(node.name, pull=True).state == "stale":
        raise StageFailedError("its Job ended well, but its result is not in the DVC remote", 1)


def main() -> int:
    """Run a stage in a pod: `workspace STAGE COMMAND`; gives the exit code of the command."""
    stage, command = sys.argv[1:]
    missing = [name for name in (REMOTE, TREE, KEY) if name not in os.environ]
    try:
        if missing:
            raise ConfigError(f"{missing[0]} is not set: begin the stage by blip k8s submit")
        remote, key = os.environ[REMOTE], os.environ[KEY]
        _unpack(remote, os.environ[TREE])
        return _run(stage, command, key, _Kept(remote, key, os.environ.get(INDEX)))
    except BlipError as error:
        sys.stderr.write(f"blip: {error}\n")
        return error.exit_code


def _unpack(remote: str, tree: str) -> None:
    """Make the current directory the workspace of a bundle, whose DVC remote is the one it came from."""
    bundle = _filesystem().cat_file(f"{remote}/{FOLDER}/workspaces/{tree}.tar")
    with tarfile.open(fileobj=io.BytesIO(bundle)) as files:
        files.extractall(filter="data")
    settings = (
        f"[core]\n    no_scm = true\n    remote = store\n['remote \"store\"']\n    url = {remote}\n"
    )
    Path(".dvc/config.local").write_text(settings)
    os.environ.setdefault("DVC_SITE_CACHE_DIR", str(Path(tempfile.gettempdir()) / "dvc"))


def _run(stage: str, command: str, key: str, kept: "_Kept") -> int:
    sharing.fetch_run_cache()
    _fetch_inputs(stage)
    prepared = versioning.prepare(stage, pull=True)
    if prepared.state == "stale":
        if prepared.key != key:
            raise DataError(
                f"stage {stage} depends on files that git does not track: git add them first"
            )
        assert prepared.inputs is not None
        with kept.through():
            if code := _child(command, kept.of_part):
                return code
        if not kept.of_part:
            versioning.record(stage, prepared.inputs)
    if not kept.of_part:
        sharing.push([stage])
        kept.forget()
    return 0


def _fetch_inputs(stage: str) -> None:
    """Pull what a stage reads: its dependencies, and the files of other versions that a dataset among them names."""
    graph = versioning.read_graph()
    node = graph[stage]
    made = [out for name in node.upstream for out in graph[name].outs]
    wanted = []
    for path in node.deps:
        below = [out for out in made if Path(out).is_relative_to(path)]  # `results` is many outputs
        wanted += below or ([] if Path(path).exists() else [path])
    sharing.pull(wanted)
    named = {
        os.path.normpath(manifest.parent / name)
        for manifest in _manifests(node)
        for shard in read_json(manifest)["shards"]
        for name in (shard["images"], shard["records"], shard["captions"])
    }
    sharing.pull(sorted(name for name in named if not Path(name).exists()))


def _manifests(node: Node) -> Iterator[Path]:
    for dependency in map(Path, node.deps):
        for file in (dependency, dependency / "manifest.json"):
            if file.name == "manifest.json" and file.is_file():
                yield file


def _child(command: str, is_part: bool) -> int:
    """Run a command to its end; a SIGTERM that we get is for it."""
    # What parts say is kept with their shards: the stage's own pod carries it to MLflow, as that of one run.
    tracking = {"BLIP_TRACKING": "journal"} if is_part else {}
    child = subprocess.Popen(shell_arguments(command), env={**os.environ, **tracking})
    previous = signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
    try:
        code = child.wait()
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 128 - code if code < 0 else code


class _Kept:
    """The working state under `runs/`, as one object of the remote: a pod that goes on begins with it.

    A part has an object of its own; the stage begins with its own and those of all parts.
    """

    def __init__(self, remote: str, key: str, part: str | None = None) -> None:
        self.of_part = part is not None
        self._folder = f"{remote}/{FOLDER}/runs/{key}"
        self._url = f"{self._folder}/{part or 'stage'}.tar"
        self._files = _filesystem()
        self._done = threading.Event()
        self._last: Any = None

    @contextlib.contextmanager
    def through(self) -> Iterator[None]:
        """Begin with what was kept, and keep what there is, now and then and in the end."""
        for url in [self._url] if self.of_part else self._all():
            self._begin_with(url)
        self._last = self._state()
        keeper = threading.Thread(target=self._keep_on, daemon=True)
        keeper.start()
        try:
            yield
        finally:
            self._done.set()
            keeper.join()
            if self.of_part:
                self._last = None  # the stage is to have the end of its journal, too
            self._keep()

    def forget(self) -> None:
        """Remove it, and what parts left: the result is there."""
        for url in self._all():
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(url)

    def _all(self) -> list[str]:
        self._files.invalidate_cache()
        return list(self._files.find(self._folder))

    def _begin_with(self, url: str) -> None:
        with (
            tempfile.NamedTemporaryFile(dir=".", prefix=".runs-") as file,
            contextlib.suppress(FileNotFoundError),  # nothing was kept
        ):
            self._files.get_file(url, file.name)
            with tarfile.open(file.name) as kept:
                kept.extractall(filter="data")

    def _keep_on(self) -> None:
        while not self._done.wait(KEEP_SECONDS):
            self._keep()

    def _keep(self) -> None:
        state = self._state()
        if not state or state == self._last:
            return
        try:
            with tempfile.NamedTemporaryFile(dir=".", prefix=".runs-") as file:
                with tarfile.open(fileobj=file, mode="w") as kept:
                    kept.add(RUNS)
                file.flush()
                if self._state() == state:  # nothing came or went meanwhile
                    self._files.put_file(file.name, self._url)
                    self._last = state
        except OSError as error:  # the next time will do; a result does not depend on it
            sys.stderr.write(f"blip: the working state could not be kept: {error}\n")

    def _state(self) -> Any:
        """Tell apart states of the folder that matter: the journal grows all the time. None while names vanish."""
        with contextlib.suppress(FileNotFoundError):
            found = [path for path in RUNS.rglob("*") if path.is_file() and path.suffix != ".jsonl"]
            return {str(path): path.stat().st_mtime_ns for path in found}
        return None


def _filesystem() -> Any:
    import fsspec

    return fsspec.filesystem("s3")


if __name__ == "__main__":
    sys.exit(main())
