"""One stage of an experiment: directories in, one directory out, whole or absent, never computed twice.

A stage's *key* is the digest of its verb, its part of the configuration and the content of its inputs. What a killed
run needs to go on (checkpoints, finished shards, the journal) lives in `runs/<verb>-<key>/`; the output directory
carries `stage.json`, which says what made it, and nothing that differs between two equal runs.
"""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.config import Config, dump_config
from blip.errors import DataError
from blip.files import (
    atomic_directory,
    digest_directory,
    digest_json,
    digest_path,
    lock,
    read_json,
)
from blip.files import write_json as write_json_file
from blip.remote import MissingError, join, read_url
from blip.tracker import Journal, Status

log = logging.getLogger(__name__)

RECORD = "stage.json"


@dataclass(frozen=True)
class Job:
    """What a stage is to do, before it does it.

    Attributes:
        verb: The command, e.g. `pretrain`.
        out: The directory it writes.
        inputs: Directories and files it reads, by role, e.g. `{"data": (Path("datasets/web"),)}`; a dataset version
            may be a URL.
        config: Its part of the configuration, as plain JSON.
        runs: The folder that holds the working state of unfinished stages.
        experiment: The experiment's name and digest, for tracking only.
        tags: Where the code came from, for tracking only.
    """

    verb: str
    out: Path
    inputs: Mapping[str, tuple[Path | str, ...]]
    config: Mapping[str, Any]
    runs: Path = Path("runs")
    experiment: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The stage's readable name: the verb and the output's name."""
        return f"{self.verb}-{self.out.name}"

    def input_digests(self) -> dict[str, list[str]]:
        """Digest of every input, by role."""
        return {role: [input_digest(path) for path in paths] for role, paths in self.inputs.items()}


@dataclass
class Stage:
    """A stage under way: where to write, where to keep what must survive, whom to tell."""

    job: Job
    key: str
    out: Path
    run_dir: Path
    journal: Journal
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since the stage (or its last resumption) began."""
        return time.monotonic() - self.started


def experiment_name(config: Config) -> str:
    """Name an experiment by its configuration: its own name and the first digits of the digest of the whole."""
    return f"{config.name}-{digest_json(dump_config(config))[:8]}"


def input_digest(path: Path | str) -> str:
    """Give the digest of an input: the recorded one of a stage's output, else that of its content.

    Behind a URL is a dataset version; without a record, it has the digest that its manifest names it by.

    Raises:
        DataError: There is nothing at the path.
    """
    if isinstance(path, str):
        with contextlib.suppress(MissingError):
            return str(json.loads(read_url(join(path, RECORD)))["output"])
        return str(json.loads(read_url(join(path, "manifest.json")))["digest"])
    if not path.exists():
        raise DataError(f"{path}: does not exist: run the stage that makes it first")
    if (path / RECORD).is_file():
        return str(read_json(path / RECORD)["output"])
    return digest_path(path)


def stage_key(job: Job) -> str:
    """Give the digest that names this work: verb, configuration and inputs, and nothing of where or when."""
    return digest_json([job.verb, job.config, job.input_digests()])


def finished(job: Job, key: str) -> bool:
    """Tell whether the output is there already and was made by this very work."""
    record = job.out / RECORD
    return record.is_file() and read_json(record).get("key") == key


@contextlib.contextmanager
def run_stage(job: Job, *, force: bool = False) -> Iterator[Stage | None]:
    """Run one stage: yields None where its output is already there, else the `Stage` to fill.

    The body writes into `stage.out`. When it returns, the output takes its name and the working state is removed,
    except the journal; when it raises or is killed, the output is absent and the working state stays.

    Raises:
        DataError: An input is missing.
        BlipError: The same stage is running already.
    """
    key = stage_key(job)
    run_dir = job.runs / f"{job.verb}-{key[:16]}"
    writing = lock(job.runs / "locks" / _slug(job.out), f"a stage that writes {job.out}")
    # The working state is shared by workspaces: where another one does the same just now, it goes first.
    working = lock(run_dir / "lock", f"stage {job.name}", wait=True)
    with writing, working:
        if finished(job, key) and not force:
            log.info("%s is up to date", job.name)
            yield None
            return
        if force:
            _forget(run_dir)
        journal = Journal(run_dir / "journal.jsonl")
        inputs = job.input_digests()
        journal.start(
            stage=job.verb,
            name=job.name,
            key=key,
            experiment=job.experiment,
            params=job.config,
            tags=job.tags,
            inputs={
                r: [[str(p), d] for p, d in zip(job.inputs[r], ds, strict=True)]
                for r, ds in inputs.items()
            },
        )
        status: Status = "KILLED"
        output = None
        try:
            with atomic_directory(job.out) as out:
                stage = Stage(job, key, out, run_dir, journal)
                yield stage
                record = {"stage": job.verb, "key": key, "inputs": inputs, "config": job.config}
                record["output"] = digest_directory(out, without=frozenset({RECORD}))
                write_json_file(out / RECORD, record)
            journal.metrics({"perf/seconds": stage.seconds})
            status, output = "FINISHED", str(record["output"])
        except Exception:
            status = "FAILED"
            raise
        finally:
            journal.end(status, output)
        _forget(run_dir)


def _forget(run_dir: Path) -> None:
    """Remove the working state of a stage; its journal and lock stay."""
    for entry in run_dir.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)


def _slug(path: Path) -> str:
    return digest_json(str(path.resolve()))[:16]
