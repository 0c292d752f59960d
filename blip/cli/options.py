"""What the verbs share: their options, the configuration, and how a stage is run from a shell."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from blip.config import Config
    from blip.stage import Stage

PARAMS = Path("params.yaml")

Inputs = Mapping[str, Sequence[Path | str]]
"""What a stage reads, by role: files, folders, and URLs of dataset versions."""

Params = Annotated[Path, typer.Option("--params", help="The experiment: a complete YAML file.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Override one key: a.b=value. May be repeated.")
]
Out = Annotated[
    Path, typer.Option("--out", help="Directory to write; it appears whole or not at all.")
]
Data = Annotated[
    list[Path], typer.Option("--data", help="Dataset version to read. May be repeated.")
]
Versions = Annotated[
    list[str], typer.Option("--data", help="Dataset version, a folder or URL. May be repeated.")
]
OneDataset = Annotated[Path, typer.Option("--data", help="Dataset version to read.")]
ModelDir = Annotated[Path, typer.Option("--model", help="Model directory to start from.")]
Metrics = Annotated[
    Path | None, typer.Option("--metrics", help="Also copy the stage's metrics.json here.")
]
Force = Annotated[bool, typer.Option("--force", help="Do it again even if the output is there.")]


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
) -> Iterator["Stage | None"]:
    """Run a verb as a stage: tracked, indexed in the catalogue, its metrics copied to where DVC looks.

    Yields None where the output is there already.
    """
    from blip.config import dump_config
    from blip.files import read_json, write_json
    from blip.integrations.catalog import add
    from blip.integrations.settings import catalog
    from blip.integrations.tracking import provenance, tracked
    from blip.stage import Job, experiment_name, run_stage

    roles = {role: tuple(paths) for role, paths in inputs.items()}
    job = Job(verb, out, roles, section, experiment=experiment_name(config), tags=provenance())
    with tracked(job, dump_config(config)), run_stage(job, force=force) as running:
        yield running
    add(catalog(), out)
    if metrics is not None:
        write_json(metrics, read_json(out / "metrics.json"))
