"""What the commands of `blip evaluate` share: their options, and how one is run as a stage."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from blip.cli.options import sections, stage

if TYPE_CHECKING:
    from blip.config import Config
    from blip.tracker import Tracker

Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        help="A folder of this program or of transformers, a .pth of salesforce/BLIP, or models:/NAME@ALIAS.",
    ),
]
Predictions = Annotated[
    Path | None,
    typer.Option(
        "--predictions", help="Instead of a checkpoint: what any model gave, to be scored."
    ),
]
Photos = Annotated[Path | None, typer.Option("--photos", help="The folder of the photos.")]
Videos = Annotated[Path | None, typer.Option("--videos", help="The folder of the videos.")]


class Run(NamedTuple):
    """An evaluation under way, of a checkpoint or of predictions.

    Attributes:
        checkpoint: The model to measure.
        predictions: What to score instead.
        seen: What the model looks at: a folder of photos or videos.
        out: The folder to write into.
        tracker: Told the metrics.
    """

    checkpoint: Path | None
    predictions: Path | None
    seen: Path
    out: Path
    tracker: "Tracker"


@contextlib.contextmanager
def evaluation(
    task: str,
    config: "Config",
    source: tuple[str | None, Path | None],
    read: Mapping[str, Path | None],
    out: Path,
    metrics: Path | None,
    force: bool,
    seen: tuple[str, Path | None] | None = None,
    section: Mapping[str, Any] | None = None,
) -> Iterator[Run | None]:
    """Run an evaluation as a stage, of a checkpoint or of predictions; None where it is done already.

    The processes that torchrun started are one stage, and share the work on a checkpoint.
    Folders of photos and videos are known by the names in the annotations, not by content: they are
    gigabytes.

    Args:
        task: Its name.
        config: The experiment.
        source: A checkpoint, or predictions.
        read: The files that are read, by role.
        out: The folder to write.
        metrics: Where else to put the metrics.
        force: Do it again.
        seen: What a model looks at, and the option that names it, where it must be named.
        section: What else decides the result, beside `evaluate`.

    Raises:
        ConfigError: Neither of the sources is named, or both are; or a model has nothing to look at.
    """
    from blip.errors import ConfigError

    checkpoint, predictions = source
    if (checkpoint is None) == (predictions is None):
        raise ConfigError("give --checkpoint, a model to measure, or --predictions, what one gave")
    option, folder = seen or ("", Path())
    if checkpoint is not None and folder is None:
        raise ConfigError(f"a model looks at files of yours: say where they lie: {option} PLACE")
    model = find_checkpoint(checkpoint) if checkpoint is not None else None
    named = {"model": model, "predictions": predictions, **read}
    inputs = {role: [path] for role, path in named.items() if path is not None}
    whole = {"task": task, **(section or {}), **sections(config, "seed", "threads", "evaluate")}
    with stage("evaluate", out, inputs, whole, config, metrics, force, together=True) as running:
        if running is None:
            yield None
        else:
            yield Run(model, predictions, folder or Path(), running.out, running.journal)


def find_checkpoint(checkpoint: str) -> Path:
    """Give the place of a checkpoint, fetched first if it is named in the registry."""
    if not checkpoint.startswith("models:"):
        return Path(checkpoint)
    from blip.integrations.registry import fetch_model
    from blip.integrations.tracking.settings import load_settings

    return fetch_model(load_settings(), checkpoint)


def limits(config: "Config") -> dict[str, Any]:
    """Give what cuts the texts that are matched."""
    text = config.finetune.retrieval
    return {"text": [text.max_tokens, text.max_words]}
