"""The verbs that use a model on images: one line of standard output for each result."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from blip.cli.evaluation import find_checkpoint
from blip.cli.options import PARAMS, Force, Metrics, Params, Sets, Share
from blip.cli.stages import caption_stage

if TYPE_CHECKING:
    from blip.data.pictures import Picture
    from blip.evaluate.network import Need
    from blip.inference import Predictor

NAMES = "Image files, folders (with all images below), or - for standard input: one image, or file names, one a line."
Images = Annotated[list[str], typer.Argument(help=NAMES, metavar="IMAGE")]
CHECKPOINT = (
    "A folder of this program or of transformers, a .pth of salesforce/BLIP, "
    "or models:/NAME@ALIAS or models:/NAME/VERSION of the registry."
)
Checkpoint = Annotated[str, typer.Option("--checkpoint", help=CHECKPOINT)]
Vocabulary = Annotated[
    str | None,
    typer.Option(
        help="A vocab.txt, or a model on the Hugging Face hub. Default: the checkpoint's, else BERT's."
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(min=1, help="Side of the images in pixels. Default: as in its training."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in one pass.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object a line, not columns between tabs.")
]

_STAGE = {"model", "data", "out", "params", "sets", "metrics", "force", "part"}


def caption(
    context: typer.Context,
    images: Annotated[list[str] | None, typer.Argument(help=NAMES, metavar="IMAGE")] = None,
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", help=CHECKPOINT)] = None,
    prompt: Annotated[str, typer.Option(help="What captions begin with.")] = "a picture of ",
    method: Annotated[
        Literal["beam", "greedy", "nucleus"], typer.Option(help="How captions are written.")
    ] = "beam",
    num_beams: Annotated[int, typer.Option(min=1, help="Beam search: its width.")] = 3,
    min_length: Annotated[int, typer.Option(min=0, help="In tokens, the prompt included.")] = 5,
    max_length: Annotated[int, typer.Option(min=1, help="In tokens, the prompt included.")] = 20,
    top_p: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Nucleus: probability of the tokens to draw from."),
    ] = 0.9,
    repetition_penalty: Annotated[float, typer.Option(min=1.0, help="1 is none.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Nucleus: seed of the draws.")] = 0,
    vocabulary: Vocabulary = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = 16,
    as_json: AsJson = False,
    model: Annotated[Path | None, typer.Option("--model", help="Stage: the captioner.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Stage: the dataset version to read.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Stage: folder to write; it appears whole or not at all."),
    ] = None,
    params: Params = PARAMS,
    sets: Sets = None,
    metrics: Metrics = None,
    force: Force = False,
    part: Share = None,
) -> None:
    """Write captions: for any images, or for a dataset version.

    With images and --checkpoint, it prints a line for each image: path, a tab, caption.

    With --model, --data and --out, it is a stage, the first half of CapFilt: one synthetic caption for every image of
    a dataset version, written as `capfilt.decoding` in params.yaml says.
    """
    from blip.errors import ConfigError

    _refuse_mixture(context)
    if model and data and out:
        caption_stage(model, data, out, params, sets, metrics, force, part)
        return
    if not images or checkpoint is None:
        raise ConfigError("caption takes images and --checkpoint, or --model, --data and --out")
    from blip.config import Decoding
    from blip.models.generation import seeded_generator

    decoding = Decoding(
        method=method,
        num_beams=num_beams,
        top_p=top_p,
        top_k=0,
        repetition_penalty=repetition_penalty,
        length_rule="reference",
        min_length=min_length,
        max_length=max_length,
        batch_size=batch_size,
    )
    predictor = _load(checkpoint, "captioning", vocabulary, image_size)
    with _reading(images, predictor, batch_size, "captioning") as batches:
        for batch in batches:
            # By its content: what is drawn for an image depends on no other, nor on where it lies.
            draws = [seeded_generator(seed, picture.digest) for picture in batch]
            texts = predictor.caption(_pixels(batch), prompt, decoding, draws)
            for picture, text in zip(batch, texts, strict=True):
                _write(as_json, {"image": picture.name, "caption": text})


def vqa(
    images: Images,
    question: Annotated[list[str], typer.Option("--question", help="In words. May be repeated.")],
    checkpoint: Checkpoint,
    answers: Annotated[
        Path | None,
        typer.Option(
            help="Choose from this file: one answer a line, or a JSON list. Default: write freely."
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            "--k",
            min=1,
            help="With --answers: how many to score in full. Default: 128, or all if fewer.",
        ),
    ] = None,
    vocabulary: Vocabulary = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = 16,
    as_json: AsJson = False,
) -> None:
    """Answer questions about images.

    Prints a line for each image and question: path, question, answer, between tabs.
    """
    from blip.errors import ConfigError

    if k is not None and answers is None:
        raise ConfigError("--k is how many of --answers to score: give --answers")
    candidates = [] if answers is None else _read_answers(answers)
    predictor = _load(checkpoint, "vqa", vocabulary, image_size)
    questions = predictor.questions(question)
    tokenised = predictor.whole_texts(candidates) if candidates else None
    with _reading(images, predictor, batch_size, "answering") as batches:
        for batch in batches:
            if tokenised is None:
                found = predictor.answer(_pixels(batch), questions)
            else:
                k = k or min(128, len(candidates))
                ranked = predictor.rank(_pixels(batch), questions, tokenised, k)
                found = [[candidates[index] for index in row] for row in ranked]
            for picture, row in zip(batch, found, strict=True):
                for asked, answer in zip(question, row, strict=True):
                    _write(as_json, {"image": picture.name, "question": asked, "answer": answer})


def match(
    images: Images,
    text: Annotated[list[str], typer.Option("--text", help="In words. May be repeated.")],
    checkpoint: Checkpoint,
    heatmaps: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a PNG of each pair: where the model looks (Grad-CAM), on average and word by word."
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="For --heatmaps: layer of the text encoder, from 0. Default: 7, or the last but one of a small model; "
            "in the last one words have no map.",
        ),
    ] = None,
    vocabulary: Vocabulary = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = 16,
    as_json: AsJson = False,
) -> None:
    """Tell how well every image matches every text.

    Prints a line for each pair: path, text, match probability (0 to 1), cosine (-1 to 1), between tabs; with
    --heatmaps, the picture's path in a fifth column.
    """
    import torch

    predictor = _load(checkpoint, "matching", vocabulary, image_size)
    texts = predictor.captions(text)
    if layer is None:
        layer = min(7, max(0, len(predictor.model.text_encoder.layers) - 2))
    pictures = 0
    with _reading(images, predictor, batch_size, "matching") as batches:
        for batch in batches:
            pairs = torch.cartesian_prod(torch.arange(len(batch)), torch.arange(len(text)))
            found = predictor.match(_pixels(batch), texts, pairs)
            for (image, words), probability, cosine in zip(
                pairs.tolist(), found.probability.tolist(), found.cosine.tolist(), strict=True
            ):
                name = batch[image].name
                record = {"image": name, "text": text[words]}
                record |= {"match_probability": probability, "cosine": cosine}
                if heatmaps is not None:
                    number = f"{pictures + image + 1:05}-{words + 1}"
                    place = heatmaps / f"{number}-{Path(name).stem[:80]}.png"
                    _draw(predictor, batch[image], text[words], layer, place)
                    record["heatmap"] = str(place)
                _write(as_json, record)
            pictures += len(batch)


def features(
    images: Images,
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("--out", help="The .safetensors file to write.")],
    text: Annotated[
        list[str] | None, typer.Option("--text", help="In words. May be repeated.")
    ] = None,
    vocabulary: Vocabulary = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = 16,
    as_json: AsJson = False,
) -> None:
    """Write the features of images and texts to a file.

    Prints a line for each image: path, a tab, its row in the file.

    The file has image_cls (I, D) and image_embed (I, E) for I images; with --text also text_cls (T, W), text_embed
    (T, E) and multimodal_cls (I, T, W). `cls` is the first token of an encoder. `embed` is its unit vector in the space
    in which images and texts are compared, where the model has one. The metadata has `images` and `texts`, JSON lists.
    """
    import torch

    from blip.models.tensors import write_safetensors

    predictor = _load(checkpoint, "features", vocabulary, image_size)
    texts = predictor.whole_texts(text) if text else None
    alone = {} if texts is None else predictor.text_features(texts)
    names: list[str] = []
    parts: list[dict[str, torch.Tensor]] = []
    with _reading(images, predictor, batch_size, "encoding") as batches:
        for batch in batches:
            parts.append(predictor.image_features(_pixels(batch), texts))
            for picture in batch:
                _write(as_json, {"image": picture.name, "row": len(names)})
                names.append(picture.name)
        if parts:
            whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            metadata = {"images": json.dumps(names), "texts": json.dumps(text or [])}
            write_safetensors(whole | alone, out, metadata)


def _refuse_mixture(context: typer.Context) -> None:
    """Demand that what was typed belongs to one of the two uses of `caption`."""
    from blip.errors import ConfigError

    given = {}
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            given[name] = "IMAGE" if name == "images" else parameter.opts[0]
    stage = [shown for name, shown in given.items() if name in _STAGE]
    other = [shown for name, shown in given.items() if name not in _STAGE]
    if stage and other:
        raise ConfigError(
            f"caption takes images and --checkpoint, or --model, --data and --out, not both: "
            f"{', '.join(stage)} does not go with {', '.join(other)}"
        )


def _load(
    checkpoint: str, need: "Need", vocabulary: str | None, image_size: int | None
) -> "Predictor":
    """Read a checkpoint, out of the registry if it is named so."""
    from blip.inference import load_predictor

    return load_predictor(find_checkpoint(checkpoint), need, vocabulary, image_size)


@contextlib.contextmanager
def _reading(
    names: list[str], predictor: "Predictor", batch_size: int, doing: str
) -> Iterator[Iterator[list["Picture"]]]:
    """Give the images in batches; those that cannot be read are named, and the exit code is 2 then."""
    from blip.data.pictures import list_pictures, picture_batches
    from blip.progress import Progress

    sources = list_pictures(names, sys.stdin.buffer)
    refused: list[str] = []
    # On a terminal the results themselves are the progress.
    progress = None if sys.stdout.isatty() else Progress(doing, len(sources), "images")

    def refuse(message: str) -> None:
        typer.echo(f"blip: {message}", err=True)
        refused.append(message)
        if progress is not None:
            progress.advance()

    def batches() -> Iterator[list["Picture"]]:
        size = predictor.model.image_size
        for batch in picture_batches(sources, size, batch_size, refuse):
            yield batch
            sys.stdout.flush()
            if progress is not None:
                progress.advance(len(batch))

    yield batches()
    if refused:
        raise typer.Exit(2)


def _pixels(batch: list["Picture"]) -> Any:
    """Stack the images of a batch: (B, 3, S, S)."""
    import torch

    return torch.stack([picture.pixels for picture in batch])


def _write(as_json: bool, record: dict[str, Any]) -> None:
    """Print a result."""
    if as_json:
        typer.echo(json.dumps(record, ensure_ascii=False))
        return
    columns = (f"{v:.6f}" if isinstance(v, float) else str(v) for v in record.values())
    typer.echo("\t".join(columns))


def _read_answers(path: Path) -> list[str]:
    """Read candidate answers: a JSON list, or one a line."""
    from blip.errors import DataError
    from blip.files import read_json

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not in UTF-8: {error.reason}") from None
    if text.lstrip().startswith("["):
        found = read_json(path)
        wrong = next((v for v in found if not isinstance(v, str) or not v.strip()), None)
        if wrong is not None:
            raise DataError(f"{path}: {wrong!r} is no answer: give a list of texts")
    else:
        found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise DataError(f"{path}: holds no answer to choose")
    return list(found)


def _draw(predictor: "Predictor", picture: "Picture", text: str, layer: int, out: Path) -> None:
    """Write where the model looks to match an image with a text: the mean, then word by word."""
    from blip.report.heatmap import draw_heatmaps

    heatmap = predictor.heatmap(picture.pixels, text, layer)
    panels = [("(mean)", heatmap.mean), *zip(heatmap.words, heatmap.per_word, strict=True)]
    image = picture.pixels.permute(1, 2, 0).numpy()
    draw_heatmaps(image, [(words, seen.numpy()) for words, seen in panels], out)
