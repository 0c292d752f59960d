"""Checkpoints: all that a killed run needs to go on as if nothing had happened, whole or absent.

    checkpoints/step-00000100/
      rank-00000-of-00002.safetensors   of each process: the tensors it stores, or its shards of them
      state.json                        step, progress, best, what the run is; digests of config, code
      digests.json                      sha256 of all others

A step is only delayed by a copy to host memory; a thread writes, and renames when all is on disk.
The order of checkpoints is that of their steps: no clock is asked.
"""

import json
import logging
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from blip import distributed
from blip.errors import CheckpointError, DataError
from blip.files import digest_file, digest_json, read_json, sync_directory, sync_file
from blip.train.saved import STATE, Saved
from blip.train.snapshot import Groups, Snapshot

log = logging.getLogger(__name__)

DIGESTS = "digests.json"
GRACE = 20.0  # seconds for the save under way when the loop of several processes has failed


class Checkpoints:
    """The checkpoints of one run; as a context, it waits at the end for the save under way.

    Every process of the run builds one and makes the same calls. Host memory for one copy of what
    it stores is kept all the time.

    Args:
        folder: Where they lie; all processes see it.
        identity: Digest of what the run is: configuration, data, seed.
        keep: How many of the newest are kept, beside the best.
        about: What else travels with each, as JSON: configuration, manifest.

    Raises:
        DataError: The folder cannot be made.
    """

    def __init__(self, folder: Path, identity: str, keep: int, about: Any = None) -> None:
        self.folder = folder
        self.identity = identity
        self.keep = keep
        self._about = about
        self._code = code_digest()
        self._channel = distributed.Channel()
        self._snapshot = Snapshot()
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None
        self._begun = -1  # step of the last save
        self._whole: int | None = None  # step of the last one that went well
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: cannot be written: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        elif self._writer:  # where another process hangs, not for ever
            self._writer.join(None if distributed.world_size() == 1 else GRACE)

    def prepare(self, groups: Groups, *, own: Mapping[str, Tensor]) -> None:
        """Get the memory that saving these needs, in a thread, so that the first save finds it."""
        self._wait()
        self._start(self._snapshot.prepare, groups, own)

    def save(
        self,
        step: int,
        groups: Groups,
        progress: Any,
        *,
        own: Mapping[str, Tensor],
        best: int | None = None,
    ) -> None:
        """Begin to save the state after `step` steps: copied when this returns, written later.

        One save is under way at a time: this one waits for the last. If that has failed, a warning
        has said so, and this is the next try.

        Args:
            step: Steps done.
            groups: Tensors that are the same in every process, or sharded, by group and name. Those
                that share memory are stored once.
            progress: What else the run keeps, as JSON: that of the first process.
            own: Tensors of this process alone, such as the states of its generators.
            best: Step of the best checkpoint so far, which is kept.
        """
        self._wait()
        if step == self._begun and self._error is None:
            return
        self._error, self._begun = None, step
        self._snapshot.take(groups, own)
        state = {
            "step": step,
            "progress": progress,
            "best": best,
            "identity": self.identity,
            "code": self._code,
            "torch": torch.__version__,
            "about": self._about,
        }
        # As text at once: the run goes on changing it.
        self._start(self._write, step, json.dumps(state), best)

    def finish(self) -> None:
        """Wait for the save under way.

        Raises:
            DataError: The last save has failed; the older checkpoints stay.
        """
        self._wait()
        if self._error:
            raise self._error

    @property
    def lost(self) -> int | None:
        """The step of the last save if it has failed; the one under way is waited for."""
        self._wait()
        return self._begun if self._error else None

    def last(self) -> Saved | None:
        """Open the last whole checkpoint; damaged ones after it are set aside, with a warning.

        Returns:
            The same for all processes; None where none was ever saved.

        Raises:
            CheckpointError: It is one of another run, or all are damaged.
        """
        if distributed.rank() == 0:
            for partial in self.folder.glob(".*.partial"):
                shutil.rmtree(partial)  # a save that was killed
        steps = self._channel.gather(self._steps())[0]
        damaged: list[Path] = []
        for step in steps:
            path = self._path(step)
            if problem := self._problem(path):
                log.warning("%s: damaged, going on from the one before: %s", path, problem)
                damaged.append(path)
                continue
            self._check_identity(path)
            self._set_aside(damaged)
            self._begun = self._whole = step
            return Saved(path)
        if damaged:
            raise CheckpointError(
                f"{self.folder}: all {len(damaged)} checkpoints are damaged: bring one back from "
                "a copy, or remove the folder to begin anew"
            )
        return None

    def at(self, step: int) -> Saved:
        """Open the checkpoint of a step, such as the best.

        Raises:
            CheckpointError: It is not there or damaged.
        """
        if problem := self._problem(self._path(step)):
            raise CheckpointError(f"{self._path(step)}: missing or damaged: {problem}")
        return Saved(self._path(step))

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        take_gpu = distributed.gpu_of_this_thread()

        def run() -> None:
            take_gpu()
            work(*arguments)

        self._writer = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._writer.start()

    def _write(self, step: int, state: str, best: int | None) -> None:
        """Write what was copied and let it take its name; in a thread."""
        path = self._path(step)
        partial = path.with_name(f".{path.name}.partial")
        first = distributed.rank() == 0
        try:
            digests = dict(self._together(lambda: self._write_tensors(partial)))
            self._together(lambda: self._complete(path, state, digests) if first else None)
            self._whole = step
            if first:
                self._remove_old(step, best)
        except OSError as error:
            reason = error.strerror or str(error)
            self._error = DataError(
                f"{path}: cannot be written: {reason}: {self._last_words()}; make room and run the "
                "same command again"
            )
            if first:
                shutil.rmtree(partial, ignore_errors=True)
                log.warning(
                    "%s: cannot be written: %s: training goes on, %s; make room before the next one "
                    "is due",
                    path,
                    reason,
                    self._last_words(),
                )
        except BaseException as error:  # a fault of ours: for the training thread to raise
            self._error = error

    def _last_words(self) -> str:
        if self._whole is None:
            return "there is no checkpoint yet"
        return f"the last checkpoint is that of step {self._whole}"

    def _write_tensors(self, partial: Path) -> tuple[str, str]:
        """Write this process's file; give its name and digest."""
        partial.mkdir(parents=True, exist_ok=True)
        needed, free = self._snapshot.num_bytes, shutil.disk_usage(partial).free
        if free < needed:  # to fill the disk first would harm others
            raise OSError(f"{needed:,} bytes are needed, {free:,} are free")
        name = f"rank-{distributed.rank():05}-of-{distributed.world_size():05}.safetensors"
        return name, self._snapshot.write(partial / name)

    def _complete(self, path: Path, state: str, digests: dict[str, str]) -> None:
        """Write what makes it whole, and let it take its name."""
        partial = path.with_name(f".{path.name}.partial")
        (partial / STATE).write_text(state)
        digests[STATE] = digest_file(partial / STATE)
        (partial / DIGESTS).write_text(json.dumps(digests))
        for name in (STATE, DIGESTS):
            sync_file(partial / name)
        sync_directory(partial)
        if path.exists():
            _remove(path)
        partial.rename(path)
        sync_directory(self.folder)

    def _remove_old(self, step: int, best: int | None) -> None:
        """Remove what is not kept, and what was damaged before a step that the run has passed."""
        try:
            for old in self._steps()[self.keep :]:
                if old != best:
                    _remove(self._path(old))
            for damaged in self.folder.glob("step-*.damaged"):
                if damaged.stem <= self._path(step).name:
                    shutil.rmtree(damaged)
        except OSError as error:
            log.warning("%s: old checkpoints cannot be removed: %s", self.folder, error)

    def _together(self, work: Callable[[], Any]) -> list[Any]:
        """Do this process's share; give what all came to, or raise the first one's error."""
        result: Any
        try:
            result = work()
        except OSError as error:
            result = error
        results = self._channel.gather(result)
        for result in results:
            if isinstance(result, OSError):
                raise result
        return results

    def _wait(self) -> None:
        """Wait for the thread; a fault that is not the disk's is raised."""
        if self._writer:
            self._writer.join()
            self._writer = None
        if self._error and not isinstance(self._error, DataError):
            raise self._error

    def _problem(self, path: Path) -> str | None:
        """Tell what is damaged, if anything; each process reads through its share of the files."""
        problem = None
        try:
            _check_files(path)
        except DataError as error:
            problem = str(error)
        return next(filter(None, self._channel.gather(problem)), None)

    def _set_aside(self, damaged: list[Path]) -> None:
        """Take their names from damaged checkpoints, which would else count as the newest."""
        if distributed.rank() == 0:
            for path in damaged:
                aside = path.with_suffix(".damaged")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
        self._channel.gather(None)

    def _check_identity(self, path: Path) -> None:
        state = read_json(path / STATE)
        if state["identity"] != self.identity:
            raise CheckpointError(
                f"{path}: belongs to a run with another configuration or other data: "
                "remove it, or give another run folder"
            )
        if (state["code"], state["torch"]) != (self._code, torch.__version__):
            log.warning(
                "%s: made by another version of this program or of torch: "
                "the run goes on, but may not end in the same bits",
                path,
            )

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08}"

    def _steps(self) -> list[int]:
        """Give the steps of the checkpoints there are, newest first."""
        found = (re.fullmatch(r"step-(\d+)", path.name) for path in self.folder.iterdir())
        return sorted((int(match[1]) for match in found if match), reverse=True)


def code_digest() -> str:
    """Give the digest of the package's sources."""
    package = Path(__file__).parents[1]
    sources = sorted(package.rglob("*.py"))
    return digest_json({p.relative_to(package).as_posix(): digest_file(p) for p in sources})


def _check_files(path: Path) -> None:
    """Read this process's share of a checkpoint's files: each is read through by one.

    Raises:
        DataError: A file is missing or is not what was written.
    """
    digests = read_json(path / DIGESTS)
    if not isinstance(digests, dict) or STATE not in digests:
        raise DataError(f"{DIGESTS} is not what was written")
    for name in sorted(digests)[distributed.rank() :: distributed.world_size()]:
        if digest_file(path / name) != digests[name]:
            raise DataError(f"{name} is not what was written")


def _remove(path: Path) -> None:
    """Remove a checkpoint: at once by name, then by and by."""
    removed = path.with_name(f".{path.name}.removed.partial")
    path.rename(removed)
    shutil.rmtree(removed)
