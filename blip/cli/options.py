"""What the verbs share: their options, the configuration, and how a stage is run from a shell."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from blip.config import Config
    from blip.stage import Job, Stage

PARAMS = Path("params.yaml")

Inputs = Mapping[str, Sequence[Path | str]]
"""What a stage reads, by role: files, folders, and URLs of dataset versions."""

Params = Annotated[
    Path, typer.Option("--params", help="The experiment: a complete YAML file, e.g. a preset.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one key, e.g. capfilt.threshold=0.7. May be repeated."),
]
Out = Annotated[
    Path, typer.Option("--out", help="Folder to write; it appears whole or not at all.")
]
Data = Annotated[
    list[Path], typer.Option("--data", help="Dataset version to read. May be repeated.")
]
Versions = Annotated[
    list[str], typer.Option("--data", help="Dataset version: a folder or a URL. May be repeated.")
]
OneDataset = Annotated[Path, typer.Option("--data", help="Dataset version to read.")]
ModelDir = Annotated[Path, typer.Option("--model", help="Folder of the model to use.")]
Validation = Annotated[
    list[Path] | None,
    typer.Option(
        "--validation",
        help="Held-out data, given as for --data; evaluated every `held_out.every` steps. May be repeated.",
    ),
]
Metrics = Annotated[
    Path | None, typer.Option("--metrics", help="Also copy the stage's metrics.json here.")
]
Force = Annotated[bool, typer.Option("--force", help="Do it again, even if the output is there.")]
Share = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="I/N",
        help="Finish only the shards I, I+N, ... (I from 0); the command without it does the rest and writes --out.",
    ),
]


def read_config(params: Path, sets: list[str] | None) -> "Config":
    """Read the experiment with its overrides."""
    from blip.config import load_config, parse_overrides

    return load_config(params, parse_overrides(sets or []))


def sections(section: Any, *names: str) -> dict[str, Any]:
    """Give some parts of a configuration as plain JSON."""
    document = section.model_dump(mode="json")
    return {name: document[name] for name in names}


@contextlib.contextmanager
def stage(
    verb: str,
    out: Path,
    inputs: Inputs,
    section: Mapping[str, Any],
    config: "Config",
    metrics: Path | None = None,
    force: bool = False,
    together: bool = False,
    part: str | None = None,
) -> Iterator["Stage | None"]:
    """Run a verb as a stage: tracked, indexed in the catalogue, its metrics copied to where DVC looks.

    Where it can run `together`, the processes that torchrun started are one stage. Of a `part` there is nothing to
    index yet. Yields None where the output is there already.
    """
    from blip.config import dump_config
    from blip.errors import ConfigError
    from blip.integrations.manifest import provenance
    from blip.integrations.tracking import tracked
    from blip.stage import Job, Part, experiment_name, run_part, run_together

    which = None if part is None else Part.parse(part)
    if which and force:
        raise ConfigError(
            f"--part {which} does not go with --force, which forgets what the parts have finished: "
            "remove the output instead"
        )

    roles = {role: tuple(paths) for role, paths in inputs.items()}
    local = [path for paths in roles.values() for path in paths if isinstance(path, Path)]
    origin = provenance(local)
    job = Job(verb, out, roles, section, experiment=experiment_name(config), provenance=origin)
    if which:
        with tracked(job, dump_config(config)), run_part(job, which) as running:
            yield running
        return
    alone = _stage(job, config, metrics, force)
    with run_together(job, alone) if together else alone as running:
        yield running


@contextlib.contextmanager
def _stage(
    job: "Job", config: "Config", metrics: Path | None, force: bool
) -> Iterator["Stage | None"]:
    from blip.config import dump_config
    from blip.files import read_json, write_json
    from blip.integrations.catalog import add
    from blip.integrations.settings import catalog
    from blip.integrations.tracking import tracked
    from blip.stage import run_stage

    with tracked(job, dump_config(config)), run_stage(job, force=force) as running:
        yield running
    add(catalog(), job.out)
    if metrics is not None:
        write_json(metrics, read_json(job.out / "metrics.json"))
