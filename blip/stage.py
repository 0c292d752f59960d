"""One stage of an experiment: directories in, one directory out, whole or absent, never computed twice.

A stage's *key* is the digest of its verb, its part of the configuration and the content of its inputs. What a killed
run needs to go on (checkpoints, finished shards, the journal) lives in `runs/<verb>-<key>/`; the output directory
carries `stage.json`, which says what made it, and nothing that differs between two equal runs. What does (the
commit, the machine) is in `manifest.json` beside the journal, and travels with checkpoints and to MLflow.

Work that goes shard by shard may be cut into *parts*, for as many processes or machines as share the folder: each
finishes its shards there, and the stage itself, run before, during or after, finds them and does the rest.
"""

import contextlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.config import Config, dump_config
from blip.errors import BlipError, ConfigError, DataError
from blip.files import (
    atomic_directory,
    digest_directory,
    digest_json,
    digest_path,
    lock,
    read_json,
    write_text,
)
from blip.files import write_json as write_json_file
from blip.remote import MissingError, join, read_url
from blip.tracker import Journal, NullTracker, Status, Tracker

log = logging.getLogger(__name__)

RECORD = "stage.json"
MANIFEST = "manifest.json"
CHANGES = "changes.diff"


@dataclass(frozen=True)
class Part:
    """A share of a stage's work: every `count`-th shard, from the one numbered `index` on."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read `I/N`.

        Raises:
            ConfigError: It is not of that form, or I is not among 0 to N - 1.
        """
        index, slash, count = text.partition("/")
        if slash and index.isdecimal() and count.isdecimal() and int(index) < int(count):
            return cls(int(index), int(count))
        raise ConfigError(f"--part {text}: must be I/N with I from 0 to N - 1, as 0/8, ..., 7/8")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def share(num_shards: int, part: Part | None) -> range:
    """Give the numbers of the shards that a part does; of all where it is not a part."""
    return range(num_shards) if part is None else range(part.index, num_shards, part.count)


@dataclass(frozen=True)
class Provenance:
    """Where a run comes from, for its manifest.

    Attributes:
        facts: Commit, locked packages, machine, ..., as JSON.
        changes: The difference of the sources from the commit, as git writes it.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    changes: str = ""


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
        provenance: Where the code came from and what it runs on, for the manifest only.
    """

    verb: str
    out: Path
    inputs: Mapping[str, tuple[Path | str, ...]]
    config: Mapping[str, Any]
    runs: Path = Path("runs")
    experiment: str = ""
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def name(self) -> str:
        """The stage's readable name: the verb and the output's name."""
        return f"{self.verb}-{self.out.name}"

    def input_digests(self) -> dict[str, list[str]]:
        """Digest of every input, by role."""
        return {role: [input_digest(path) for path in paths] for role, paths in self.inputs.items()}


@dataclass
class Stage:
    """A stage under way: where to write, where to keep what must survive, whom to tell.

    Where it is a `part` alone, nothing is written to `out`.
    """

    job: Job
    key: str
    out: Path
    run_dir: Path
    journal: Tracker
    part: Part | None = None
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
        raise DataError(f"{path}: does not exist: run the stage that makes it, or mend the path")
    if (path / RECORD).is_file():
        return str(read_json(path / RECORD)["output"])
    return digest_path(path)


def stage_key(job: Job) -> str:
    """Give the digest that names this work: verb, configuration and inputs, and nothing of where or when."""
    return _key(job, job.input_digests())


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
        BlipError: The same stage is running already, or one elsewhere that writes the same output.
    """
    inputs = job.input_digests()
    key = _key(job, inputs)
    run_dir = _run_dir(job, key)
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
        journal = _start(job, key, inputs, run_dir, "journal.jsonl")
        with _ending(journal) as output:
            with atomic_directory(job.out) as out:
                stage = Stage(job, key, out, run_dir, journal)
                yield stage
                record = {"stage": job.verb, "key": key, "inputs": inputs, "config": job.config}
                record["output"] = digest_directory(out, without=frozenset({RECORD}))
                write_json_file(out / RECORD, record)
            journal.metrics({"perf/seconds": stage.seconds})
            output.append(str(record["output"]))
        _forget(run_dir)


@contextlib.contextmanager
def run_part(job: Job, part: Part) -> Iterator[Stage | None]:
    """Run a part of a stage: yields None where the stage's output is already there.

    The body keeps what it finishes in `stage.run_dir`, whole and under its name at once: other parts, and the stage
    itself, may be at work there. The same part waits for its other self, as one whose machine is taken for lost.

    Raises:
        DataError: An input is missing.
    """
    inputs = job.input_digests()
    key = _key(job, inputs)
    run_dir = _run_dir(job, key)
    name = f"{part.index}-of-{part.count}"
    with lock(run_dir / f"lock-{name}", f"part {part} of stage {job.name}", wait=True):
        if finished(job, key):
            log.info("%s is up to date", job.name)
            yield None
            return
        journal = _start(job, key, inputs, run_dir, f"journal-{name}.jsonl")
        with _ending(journal):
            stage = Stage(job, key, job.out, run_dir, journal, part)
            try:
                yield stage
            except BlipError:
                if not finished(job, key):
                    raise
                # The stage, which waits for no part, has removed what this one was writing into.
                log.info("%s was finished meanwhile", job.name)
            journal.metrics({"perf/seconds": stage.seconds}, step=part.index)


@contextlib.contextmanager
def run_together(
    job: Job, running: contextlib.AbstractContextManager[Stage | None]
) -> Iterator[Stage | None]:
    """Run a stage in all the processes that torchrun started; as it is where there is only one.

    The first process runs it as ever: lock, journal and output are its own. The others wait for it
    to begin, share its folder for what must survive, and write and tell nothing.

    Args:
        job: What to do.
        running: `run_stage` of it.

    Raises:
        LostPeerError: Another process ended or hung.
    """
    from blip import distributed  # needs torch, which other stages do not

    with distributed.processes(), contextlib.ExitStack() as stack:
        if distributed.rank() == 0:
            stage = run_dir = None
            try:
                stage = stack.enter_context(running)
                run_dir = stage and stage.run_dir
            finally:
                distributed.broadcast(run_dir)
        else:
            logging.getLogger("blip").setLevel(logging.ERROR)
            run_dir = distributed.broadcast(None)
            out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stage = Stage(job, "", out, run_dir, NullTracker()) if run_dir else None
        yield stage


def read_manifest(run_dir: Path) -> dict[str, Any] | None:
    """Read what a run says of itself; None where it is not that of a stage."""
    path = run_dir / MANIFEST
    return dict(read_json(path)) if path.exists() else None


def _key(job: Job, inputs: Mapping[str, list[str]]) -> str:
    return digest_json([job.verb, job.config, inputs])


def _run_dir(job: Job, key: str) -> Path:
    return job.runs / f"{job.verb}-{key[:16]}"


def _start(
    job: Job, key: str, inputs: Mapping[str, list[str]], run_dir: Path, name: str
) -> Journal:
    """Open a journal and say what begins, and where it comes from."""
    journal = Journal(run_dir / name)
    journal.start(
        stage=job.verb,
        name=job.name,
        key=key,
        experiment=job.experiment,
        params=job.config,
        inputs={
            r: [[str(p), d] for p, d in zip(job.inputs[r], ds, strict=True)]
            for r, ds in inputs.items()
        },
        manifest=_write_manifest(job, key, inputs, run_dir),
    )
    for about in (MANIFEST, CHANGES):
        if (run_dir / about).exists():
            journal.artifact(run_dir / about)
    return journal


@contextlib.contextmanager
def _ending(journal: Journal) -> Iterator[list[str]]:
    """Say in a journal how the body ended; it puts the digest of what it made, if anything, into the list."""
    status: Status = "KILLED"
    output: list[str] = []
    try:
        yield output
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        journal.end(status, *output)


def _write_manifest(
    job: Job, key: str, inputs: Mapping[str, list[str]], run_dir: Path
) -> dict[str, Any]:
    """Write what joins a run to all that decided it; a resumed run's is that of its last start."""
    manifest = {
        **job.provenance.facts,
        "stage": job.name,
        "key": key,
        "experiment": job.experiment,
        "config": digest_json(job.config),
        "seed": job.config.get("seed"),
        "output": str(job.out),
        "inputs": {
            role: {str(p): d for p, d in zip(job.inputs[role], digests, strict=True)}
            for role, digests in inputs.items()
        },
    }
    if job.provenance.changes:
        write_text(run_dir / CHANGES, job.provenance.changes)
    else:
        (run_dir / CHANGES).unlink(missing_ok=True)
    write_json_file(run_dir / MANIFEST, manifest)
    return manifest


def _forget(run_dir: Path) -> None:
    """Remove the working state of a stage; its journal and lock stay."""
    for entry in run_dir.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)


def _slug(path: Path) -> str:
    return digest_json(str(path.resolve()))[:16]
