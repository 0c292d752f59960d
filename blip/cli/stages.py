"""The verbs that are stages of an experiment: each reads and writes directories."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from blip.cli.options import (
    PARAMS,
    Data,
    Force,
    Inputs,
    Metrics,
    ModelDir,
    OneDataset,
    Out,
    Params,
    Sets,
    Share,
    Validation,
    Versions,
    read_config,
    sections,
    stage,
)


def world(
    out: Annotated[
        Path, typer.Argument(help="Folder for the raw files; params.yaml expects `data`.")
    ],
    params: Params = PARAMS,
    sets: Sets = None,
) -> None:
    """Draw the demo world: images, captions, and the truth about them.

    `world` in params.yaml says how large it is and how wrong its web texts are. Equal settings draw equal files; they
    are checked against the digest in data.dvc.
    """
    from blip.data.world import draw_world
    from blip.errors import ConfigError
    from blip.files import atomic_directory, digest_json, lock, read_json, write_json
    from blip.integrations.pinning import pin_data

    config = read_config(params, sets)
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


def ingest(
    name: Annotated[
        str,
        typer.Argument(help="A key of `ingest.sources` in params.yaml: the collection to take in."),
    ],
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
    part: Share = None,
) -> None:
    """Take a collection in as a dataset version.

    A version is a folder of image shards, caption tables and a manifest that names every file by its digest. Records
    that break a rule of `ingest` go to quarantine.jsonl in it, with the reason. If more than `ingest.max_quarantined`
    of them do, nothing is written.
    """
    from blip.data.ingest import ingest
    from blip.errors import ConfigError

    config = read_config(params, sets)
    if name not in config.ingest.sources:
        known = ", ".join(config.ingest.sources)
        raise ConfigError(f"{params}: ingest.sources has no {name!r}; it has {known}")
    source = config.ingest.sources[name]
    rules = config.ingest.model_dump(mode="json", exclude={"sources"})
    files = [Path(p) for p in (source.annotations, source.images, source.split) if p]
    with stage(
        "ingest",
        out,
        {"source": files},
        {"name": name, "source": source.model_dump(mode="json"), **rules},
        config,
        metrics,
        force,
        part=part,
    ) as running:
        if running:
            places = running.out, running.run_dir, running.journal
            ingest(config.ingest, name, *places, running.part)


def validate(
    data: Annotated[list[Path], typer.Argument(help="Dataset versions to check.")],
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Check dataset versions against the limits of `validate`.

    Every check is on a page, OUT/index.html. Where one fails, it is named, the exit code is 2, so that no stage after
    it runs, and the page is reports/validation.html.
    """
    from blip.integrations.quality import validate
    from blip.integrations.settings import catalog

    config = read_config(params, sets)
    section = config.validate_.model_dump(mode="json")
    with stage("validate", out, {"data": data}, section, config, metrics, force) as running:
        if running:
            validate(
                config.validate_, catalog(), data, running.out, Path("reports"), running.journal
            )


def tokenizer(
    data: Versions,
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    force: Force = False,
) -> None:
    """Train the WordPiece vocabulary, or take the one that is named.

    `tokenizer.vocabulary` is `train` (on the captions of --data), a vocab.txt, or a model on the Hugging Face hub.
    """
    from blip.remote import parse_place
    from blip.train.run import build_tokenizer

    config = read_config(params, sets)
    versions = [parse_place(version) for version in data]
    section = {**config.tokenizer.model_dump(mode="json"), "max_words": config.pretrain.max_words}
    with stage("tokenizer", out, {"data": versions}, section, config, None, force) as running:
        if running:
            build_tokenizer(config, versions, running.out)


def pretrain(
    data: Versions,
    tokenizer: Annotated[
        Path,
        typer.Option("--tokenizer", help="Folder with vocab.txt, as `blip tokenizer` writes it."),
    ],
    out: Out,
    validation: Validation = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Pre-train BLIP with its three losses: ITC, ITM and LM.

    The same command continues a stopped or killed run from its last checkpoint. On several GPUs:
    torchrun --standalone --nproc-per-node 8 --max-restarts 3 -m blip pretrain ...
    """
    from blip.models.pretrained import find_weights
    from blip.remote import parse_place
    from blip.train.run import pretrain

    config = read_config(params, sets)
    versions = [parse_place(version) for version in data]
    weights = {key: [path] for key, path in find_weights(config.model).items()}
    inputs: Inputs = {
        "data": versions,
        "tokenizer": [tokenizer],
        **weights,
        **held_out(validation),
    }
    section = sections(config, "seed", "threads", "model", "pretrain")
    with stage("pretrain", out, inputs, section, config, metrics, force, together=True) as running:
        if running:
            places = running.out, running.run_dir, running.journal
            pretrain(config, versions, tokenizer, *places, validation or ())


def finetune(
    task: Annotated[
        Literal["captioning", "retrieval", "vqa", "nlvr"],
        typer.Argument(
            help="captioning (LM) makes the captioner, retrieval (ITC, ITM) the filter; vqa; nlvr (NLVR2)."
        ),
    ],
    model: ModelDir,
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            help="Dataset version: a folder or a URL. For vqa and nlvr: an annotation file. May be repeated.",
        ),
    ],
    out: Out,
    photos: Annotated[
        list[str] | None,
        typer.Option(
            "--photos",
            help="vqa, nlvr: folder of the photos. VQA with Visual Genome: vqa=FOLDER, and again vg=FOLDER.",
        ),
    ] = None,
    validation: Validation = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Fine-tune a pre-trained model for a task.

    `finetune.TASK` in params.yaml has its settings; the presets base_* and large_* have the paper's. The same command
    continues a killed run. On several GPUs, use torchrun as for `blip pretrain`.
    """
    from blip.errors import ConfigError
    from blip.remote import parse_place
    from blip.train.annotated import finetune_annotated
    from blip.train.run import finetune

    config = read_config(params, sets)
    versions = [parse_place(version) for version in data]
    inputs: Inputs = {"model": [model], "data": versions, **held_out(validation)}
    section = {"task": task, **sections(config, "seed", "threads")}
    section[task] = sections(config.finetune, task)[task]
    if photos and task in ("captioning", "retrieval"):
        raise ConfigError(f"--photos is for vqa and nlvr; {task} reads a dataset version")
    folders = {}
    for folder in photos or []:
        name, _, path = folder.rpartition("=")
        folders[name] = Path(path)
    with stage("finetune", out, inputs, section, config, metrics, force, together=True) as running:
        if running:
            places = running.out, running.run_dir, running.journal
            if task == "captioning" or task == "retrieval":
                finetune(config, task, model, versions, *places, validation or ())
            else:
                files = [Path(file) for file in data]
                finetune_annotated(config, task, model, files, folders, *places, validation or ())


def held_out(validation: list[Path] | None) -> dict[str, list[Path]]:
    """Give the role of held-out data, where there are any."""
    return {"validation": validation} if validation else {}


def caption_stage(
    model: Path,
    data: Path,
    out: Path,
    params: Path,
    sets: list[str] | None,
    metrics: Path | None,
    force: bool,
    part: str | None,
) -> None:
    """CapFilt, first half: the captioner writes one synthetic caption for every image.

    A use of `blip caption`.
    """
    from blip.capfilt import caption

    config = read_config(params, sets)
    section = {
        **sections(config, "seed", "threads"),
        **sections(config.capfilt, "decoding", "precision"),
        "prompt": config.finetune.captioning.prompt,
    }
    inputs = {"model": [model], "data": [data]}
    with stage("caption", out, inputs, section, config, metrics, force, part=part) as running:
        if running:
            places = running.out, running.run_dir, running.journal
            caption(config, model, data, *places, running.part)
            if not running.part:
                running.journal.artifact(running.out, "captions")


def score(
    model: ModelDir,
    data: Data,
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
    part: Share = None,
) -> None:
    """Let the filter judge every text, web and synthetic.

    The second half of CapFilt: each text gets its match probability and its cosine.
    """
    from blip.capfilt import score

    config = read_config(params, sets)
    section = {
        "threads": config.threads,
        "batch_size": config.capfilt.score_batch_size,
        "precision": config.capfilt.precision,
        "max_tokens": config.finetune.retrieval.max_tokens,
        "max_words": config.finetune.retrieval.max_words,
    }
    inputs = {"model": [model], "data": data}
    with stage("score", out, inputs, section, config, metrics, force, part=part) as running:
        if running:
            places = running.out, running.run_dir, running.journal
            score(config, model, data, *places, running.part)


def select(
    data: OneDataset,
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Keep the texts that the filter scored above the threshold.

    `capfilt.threshold` is compared with the match probability, 0 to 1; `capfilt.keep` chooses both kinds of text,
    `filter` (only web texts) or `captioner` (synthetic ones beside all web texts). Dropped texts stay in the tables,
    with the reason.
    """
    from blip.capfilt import select

    config = read_config(params, sets)
    section = {"threshold": config.capfilt.threshold, "keep": config.capfilt.keep}
    with stage("select", out, {"data": [data]}, section, config, metrics, force) as running:
        if running:
            select(config, data, running.out, running.journal)
            running.journal.artifact(running.out, "captions")


def compare(
    baseline: Annotated[Path, typer.Option("--baseline", help="Results of one arm: results/ARM.")],
    candidate: Annotated[Path, typer.Option("--candidate", help="Results of the other arm.")],
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Compare two arms by a paired bootstrap over the test images.

    An arm is one way of training: unfiltered, human or bootstrapped. Prints the differences with their intervals.
    """
    from blip.evaluate.compare import compare, format_comparison
    from blip.files import read_json

    config = read_config(params, sets)
    section = {"seed": config.seed, **sections(config.evaluate, "bootstrap_samples", "confidence")}
    inputs = {"baseline": [baseline], "candidate": [candidate]}
    with stage("compare", out, inputs, section, config, metrics, force) as running:
        if running:
            compare(config, baseline, candidate, running.out, running.journal)
    typer.echo(format_comparison(read_json(out / "metrics.json"), baseline.name, candidate.name))


def promote(
    task: Annotated[
        Literal["captioning", "retrieval"], typer.Argument(help="Which model of mlflow.yaml.")
    ],
    model: ModelDir,
    results: Annotated[
        Path, typer.Option("--results", help="Output of `blip evaluate` on this model.")
    ],
    out: Out,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
) -> None:
    """Register a model; the gate in mlflow.yaml makes it champion.

    Every model becomes the `candidate` of its name. It becomes the `champion` too if it passes the gate: a floor for
    the metric, and a paired comparison with the present champion.
    """
    from blip.files import read_json
    from blip.integrations.registry import promote
    from blip.integrations.tracking.settings import SETTINGS, load_settings

    config = read_config(params, sets)
    settings = load_settings(SETTINGS)
    inputs = {"model": [model], "results": [results], "gates": [SETTINGS]}
    with stage("promote", out, inputs, {"task": task}, config, metrics, force) as running:
        if running:
            promote(settings, task, model, results, running.out, running.journal)
    decision = read_json(out / "metrics.json")["promotion"]
    typer.echo(f"{decision['model']} version {decision['version']}: {decision['reason']}")
