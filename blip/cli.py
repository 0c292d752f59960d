"""The `blip` command: one verb a stage, each reading and writing directories. Heavy imports live in the verbs."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from blip.config import Config
    from blip.stage import Stage

app = typer.Typer(
    help="BLIP experiments: ingest, validate, pre-train, bootstrap captions, fine-tune, evaluate, promote.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Params = Annotated[Path, typer.Option("--params", help="The experiment: a complete YAML file.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override one key: a.b=value. May be repeated.")]
Out = Annotated[Path, typer.Option("--out", help="Directory to write; it appears whole or not at all.")]
Data = Annotated[list[Path], typer.Option("--data", help="Dataset version to read. May be repeated.")]
OneDataset = Annotated[Path, typer.Option("--data", help="Dataset version to read.")]
ModelDir = Annotated[Path, typer.Option("--model", help="Model directory to start from.")]
Metrics = Annotated[Path | None, typer.Option("--metrics", help="Also copy the stage's metrics.json here.")]
Force = Annotated[bool, typer.Option("--force", help="Do it again even if the output is there.")]

PARAMS = Path("params.yaml")


@app.callback()
def setup(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False) -> None:
    """BLIP experiments: ingest, validate, pre-train, bootstrap captions, fine-tune, evaluate, promote."""
    from blip.log import setup_logging

    setup_logging(verbose)


@app.command()
def world(
    out: Annotated[Path, typer.Argument(help="Folder for the raw files, normally `data`.")],
    params: Params = PARAMS,
    sets: Sets = None,
) -> None:
    """Draw the demo world: raw images, captions and the truth about them, checked against the pinned digest."""
    from blip.data.world import draw_world
    from blip.errors import ConfigError
    from blip.files import atomic_directory, digest_json, lock, read_json, write_json
    from blip.integrations.versioning import pin_data

    config = _config(params, sets)
    if config.world is None:
        raise ConfigError(f"{params}: world is null: this experiment brings its own data")
    wanted = config.world.model_dump(mode="json")
    with lock(Path("runs/locks/world"), "drawing the demo world"):
        record = out / "world.json"
        if not record.is_file() or read_json(record) != wanted:
            with atomic_directory(out) as folder:
                draw_world(config.world, folder)
                write_json(folder / "world.json", wanted)
        pin_data(out, digest_json(wanted))


@app.command()
def ingest(
    name: Annotated[str, typer.Argument(help="Which of `ingest.sources` to take in.")],
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Take a collection in: image shards, caption tables, a manifest; what is bad goes to quarantine."""
    from blip.data.ingest import ingest
    from blip.errors import ConfigError

    config = _config(params, sets)
    if name not in config.ingest.sources:
        known = ", ".join(config.ingest.sources)
        raise ConfigError(f"{params}: ingest.sources has no {name!r}; it has {known}")
    source = config.ingest.sources[name]
    rules = config.ingest.model_dump(mode="json", exclude={"sources"})
    files = [Path(p) for p in (source.annotations, source.images, source.split) if p]
    with _stage(
        "ingest", out, {"source": files}, {"name": name, "source": source.model_dump(mode="json"), **rules},
        config, metrics, force,
    ) as stage:
        if stage:
            ingest(config.ingest, name, stage.out, stage.journal)


@app.command()
def validate(
    data: Annotated[list[Path], typer.Argument(help="Dataset versions to check.")],
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Check dataset versions against the gate; a failing expectation is named with its page, and exits 2."""
    from blip.integrations.catalog import open_catalog
    from blip.integrations.quality import validate

    config = _config(params, sets)
    section = config.validate_.model_dump(mode="json")
    with _stage("validate", out, {"data": data}, section, config, metrics, force) as stage:
        if stage:
            engine = open_catalog(_catalog_url())
            validate(config.validate_, engine, data, stage.out, Path("reports"), stage.journal)


@app.command()
def tokenizer(
    data: Data,
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    force: Force = False,
) -> None:
    """Train the WordPiece vocabulary on the captions, or take the named one."""
    from blip.train.run import build_tokenizer

    config = _config(params, sets)
    section = {**config.tokenizer.model_dump(mode="json"), "max_words": config.pretrain.max_words}
    with _stage("tokenizer", out, {"data": data}, section, config, None, force) as stage:
        if stage:
            build_tokenizer(config, data, stage.out)


@app.command()
def pretrain(
    data: Data,
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="Directory with vocab.txt.")],
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Pre-train BLIP with ITC, ITM and LM; a killed run goes on from its last checkpoint."""
    from blip.train.run import pretrain

    config = _config(params, sets)
    inputs = {"data": data, "tokenizer": [tokenizer]}
    section = _sections(config, "seed", "threads", "model", "pretrain")
    with _stage("pretrain", out, inputs, section, config, metrics, force) as stage:
        if stage:
            pretrain(config, data, tokenizer, stage.out, stage.run_dir, stage.journal)


@app.command()
def finetune(
    task: Annotated[Literal["captioning", "retrieval"], typer.Argument(help="captioning: LM; retrieval: ITC + ITM.")],
    model: ModelDir,
    data: OneDataset,
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Fine-tune a pre-trained model: the captioner (captioning) or the filter (retrieval), or for a benchmark."""
    from blip.train.run import finetune

    config = _config(params, sets)
    inputs = {"model": [model], "data": [data]}
    section = {"task": task, **_sections(config, "seed", "threads")}
    section[task] = getattr(config.finetune, task).model_dump(mode="json")
    with _stage("finetune", out, inputs, section, config, metrics, force) as stage:
        if stage:
            finetune(config, task, model, data, stage.out, stage.run_dir, stage.journal)


@app.command()
def caption(
    model: ModelDir,
    data: OneDataset,
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """CapFilt, first half: the captioner writes one synthetic caption for every image."""
    from blip.capfilt import caption

    config = _config(params, sets)
    section = {
        **_sections(config, "seed", "threads"),
        "decoding": config.capfilt.decoding.model_dump(mode="json"),
        "prompt": config.finetune.captioning.prompt,
    }
    inputs = {"model": [model], "data": [data]}
    with _stage("caption", out, inputs, section, config, metrics, force) as stage:
        if stage:
            caption(config, model, data, stage.out, stage.run_dir, stage.journal)


@app.command()
def score(
    model: ModelDir,
    data: Data,
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """CapFilt, second half: the filter judges every text, web and synthetic."""
    from blip.capfilt import score

    config = _config(params, sets)
    section = {
        "threads": config.threads,
        "batch_size": config.capfilt.score_batch_size,
        "max_tokens": config.finetune.retrieval.max_tokens,
        "max_words": config.finetune.retrieval.max_words,
    }
    inputs = {"model": [model], "data": data}
    with _stage("score", out, inputs, section, config, metrics, force) as stage:
        if stage:
            score(config, model, data, stage.out, stage.run_dir, stage.journal)


@app.command()
def select(
    data: OneDataset,
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Keep the texts whose match probability is above the threshold; all stay in the tables, with the reason."""
    from blip.capfilt import select

    config = _config(params, sets)
    section = {"threshold": config.capfilt.threshold, "keep": config.capfilt.keep}
    with _stage("select", out, {"data": [data]}, section, config, metrics, force) as stage:
        if stage:
            select(config, data, stage.out, stage.journal)


@app.command()
def evaluate(
    task: Annotated[Literal["retrieval", "captioning", "filter"], typer.Argument(help="What to measure.")],
    data: OneDataset,
    out: Out,
    model: Annotated[Path | None, typer.Option("--model", help="The model (not for `filter`).")] = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Measure a model on a test set, or the filter's verdicts against the truth, with bootstrap intervals."""
    from blip.errors import ConfigError

    config = _config(params, sets)
    section = {"task": task, **_sections(config, "seed", "threads", "evaluate")}
    if task == "filter":
        from blip.evaluate.filter import evaluate_filter

        truth = config.evaluate.truth
        inputs = {"data": [data], "truth": [Path(truth)] if truth else []}
        section["threshold"] = config.capfilt.threshold
        with _stage("evaluate", out, inputs, section, config, metrics, force) as stage:
            if stage:
                evaluate_filter(config, data, stage.out, stage.journal)
        return
    if model is None:
        raise ConfigError(f"evaluate {task} needs --model")
    if task == "retrieval":
        from blip.evaluate.retrieval import evaluate_retrieval as measure

        section["text"] = [config.finetune.retrieval.max_tokens, config.finetune.retrieval.max_words]
    else:
        from blip.evaluate.captioning import evaluate_captioning as measure

        section["prompt"] = config.finetune.captioning.prompt
    with _stage("evaluate", out, {"model": [model], "data": [data]}, section, config, metrics, force) as stage:
        if stage:
            measure(config, model, data, stage.out, stage.journal)


@app.command()
def compare(
    baseline: Annotated[Path, typer.Option("--baseline", help="Results of one arm: results/ARM.")],
    candidate: Annotated[Path, typer.Option("--candidate", help="Results of the other arm.")],
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Compare two arms by a paired bootstrap over the test images."""
    from blip.evaluate.compare import compare, format_comparison
    from blip.files import read_json

    config = _config(params, sets)
    section = {"seed": config.seed, **_sections(config.evaluate, "bootstrap_samples", "confidence")}
    inputs = {"baseline": [baseline], "candidate": [candidate]}
    with _stage("compare", out, inputs, section, config, metrics, force) as stage:
        if stage:
            compare(config, baseline, candidate, stage.out, stage.journal)
    typer.echo(format_comparison(read_json(out / "metrics.json"), baseline.name, candidate.name))


@contextlib.contextmanager
def _stage(
    verb: str,
    out: Path,
    inputs: Mapping[str, list[Path]],
    section: Mapping[str, Any],
    config: "Config",
    metrics: Path | None,
    force: bool,
) -> Iterator["Stage | None"]:
    """Run a verb as a stage: tracked, indexed in the catalogue, its metrics copied to where DVC looks."""
    from blip.config import dump_config
    from blip.files import digest_json, read_json, write_json
    from blip.integrations.catalog import index
    from blip.integrations.tracking import tracked
    from blip.stage import Job, run_stage

    document = dump_config(config)
    experiment = f"{config.name}-{digest_json(document)[:8]}"
    job = Job(verb, out, {role: tuple(paths) for role, paths in inputs.items()}, section, experiment=experiment)
    with tracked(job, document), run_stage(job, force=force) as stage:
        yield stage
    index(out)
    if metrics is not None:
        write_json(metrics, read_json(out / "metrics.json"))


def _config(params: Path, sets: list[str] | None) -> "Config":
    from blip.config import load_config, parse_overrides

    return load_config(params, parse_overrides(sets or []))


def _sections(section: Any, *names: str) -> dict[str, Any]:
    document = section.model_dump(mode="json")
    return {name: document[name] for name in names}
