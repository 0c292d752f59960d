"""What joins a run to all that decided it: commit and changes, packages, data, machine, MLflow, DVC.

    runs/<verb>-<key16>/manifest.json   what is known when the run starts
    runs/<verb>-<key16>/changes.diff    the changes of its sources since the commit, if any

Training talks to no server, and DVC records a stage when it is over. So the two ends meet when the
manifest is read: the run in MLflow is where the follower carried the journal to, and the entry of
`dvc.lock` is that of the stage with this output.
"""

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from blip.errors import DataError
from blip.files import digest_file, digest_json, read_json
from blip.stage import MANIFEST, RECORD, Provenance

LOCK = Path("requirements.lock")
DVC_LOCK = Path("dvc.lock")

SOURCES = ("*.py", "*.yaml", "*.toml", "*.lock")  # of files that git does not know yet
WRITTEN = (":!dvc.lock", ":!reports")  # what stages write is no change of what they run


def provenance(inputs: Sequence[Path] = ()) -> Provenance:
    """Say where a run that starts now, here, comes from.

    Args:
        inputs: What it reads; of those that DVC has pinned the hash is told, by which they can be
            fetched.
    """
    commit = _git("rev-parse", "HEAD")
    changes = _changes() if commit else ""
    facts = {
        "code": commit and {"commit": commit, "changes": digest_json(changes) if changes else None},
        "lock": digest_file(LOCK) if LOCK.exists() else None,
        "machine": _machine(),
        "dvc": _pinned(inputs),
    }
    return Provenance(facts, changes)


def load_manifest(path: Path) -> dict[str, Any]:
    """Read a run's manifest, joined with its run in MLflow and its entry in `dvc.lock`.

    Args:
        path: The run's folder, one of its checkpoints, or what the run made.

    Raises:
        DataError: There is no manifest.
    """
    manifest, run_dir = _find(path)
    shipped = read_json(run_dir / "shipped.json") if (run_dir / "shipped.json").exists() else {}
    name, entry = _entry(manifest["output"])
    return {
        **manifest,
        "mlflow_run": shipped.get("run_id") or None,
        "dvc_stage": name and {"name": name, "entry": digest_json(entry)},
    }


def _find(path: Path) -> tuple[dict[str, Any], Path]:
    if (path / RECORD).exists():
        record = read_json(path / RECORD)
        path = Path("runs") / f"{record['stage']}-{record['key'][:16]}"
    if (path / MANIFEST).exists():
        return read_json(path / MANIFEST), path
    if (path / "state.json").exists():
        about = read_json(path / "state.json")["about"]
        if "output" in about:  # else it is not that of a stage
            return about, path.parents[1]
    raise DataError(
        f"{path}: no {MANIFEST}: name a folder below runs/, a checkpoint in it, or the output of a "
        "stage that ran in this workspace"
    )


def _changes() -> str:
    """Give the difference of the sources from the commit, files that git does not know included."""
    index = _git("rev-parse", "--git-path", "index")
    others = _git("ls-files", "-z", "--others", "--exclude-standard", "--", *SOURCES)
    with tempfile.TemporaryDirectory() as folder:
        # An index of our own: the user's is not touched, nor locked against other stages.
        ours = Path(folder) / "index"
        if Path(index).exists():
            ours.write_bytes(Path(index).read_bytes())
        if others:
            # On standard input: there may be more names than a command line holds.
            add = ("add", "--intent-to-add", "--pathspec-from-file=-", "--pathspec-file-nul")
            _git(*add, index=ours, words=others)
        return _git("diff", "HEAD", "--binary", "--no-color", "--no-ext-diff", "--", ".", *WRITTEN,
                    index=ours, strip=False)  # fmt: skip


def _git(*arguments: str, index: Path | None = None, words: str = "", strip: bool = True) -> str:
    """Give what git says; nothing where it has nothing to say or is not there."""
    environment = {**os.environ, **({"GIT_INDEX_FILE": str(index)} if index else {})}
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", *arguments],
            input=os.fsencode(words),
            capture_output=True,
            check=False,
            env=environment,
        )
    except FileNotFoundError:
        return ""
    text = "" if done.returncode else done.stdout.decode(errors="replace")
    return text.strip() if strip else text


def _machine() -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        **_gpus(),
    }


def _cpu() -> str:
    """Name the processor's model, on which the last bits depend."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _gpus() -> dict[str, Any]:
    """Name GPUs and CUDA where the stage has loaded torch: else it does not compute on them."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {"cuda": None, "gpus": []}
    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_name(number) for number in range(count)]
    return {"cuda": torch.version.cuda, "gpus": names}


def _pinned(paths: Sequence[Path]) -> dict[str, str]:
    """Give the hashes of those paths that stages of `dvc.lock` made."""
    made = {
        out["path"]: out["md5"]
        for entry in _stages().values()
        for out in entry.get("outs", ())
        if "md5" in out  # a remote that keeps versions itself has none of a folder
    }
    names = (path.as_posix() for path in paths)
    return {name: made[name] for name in names if name in made}


def _entry(out: str) -> tuple[str | None, Mapping[str, Any]]:
    for name, entry in _stages().items():
        if any(made["path"] == out for made in entry.get("outs", ())):
            return name, entry
    return None, {}


def _stages() -> dict[str, Any]:
    if not DVC_LOCK.exists():
        return {}
    # C's parser: the file is long, and a stage short.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        document = yaml.load(DVC_LOCK.read_bytes(), loader)  # noqa: S506 - both are safe
        return dict((document or {}).get("stages") or {})
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise DataError(
            f"{DVC_LOCK}: cannot be read ({' '.join(str(error).split())}): "
            "it is DVC's record of results; finish a merge, or take it from the last commit"
        ) from None
