"""The verbs that work on models, apart from any experiment."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A .pth of salesforce/BLIP, or a folder of transformers or of this program."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write; for salesforce the .pth file.")],
    to: Annotated[
        Literal["blip", "salesforce", "huggingface"], typer.Option("--to", help="What to write.")
    ],
    vocabulary: Annotated[
        str | None,
        typer.Option(
            help="A vocab.txt, or a model on the Hugging Face hub. Default: beside the source, else BERT's."
        ),
    ] = None,
    vision_heads: Annotated[
        int | None,
        typer.Option(min=1, help="Attention heads of the ViT, where the source does not tell."),
    ] = None,
    text_heads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Attention heads of the text stacks, where the source does not tell."
        ),
    ] = None,
) -> None:
    """Convert a checkpoint: ours, salesforce/BLIP's, transformers'.

    The source is recognised by its contents. Every tensor is accounted for: what has no place in the other format is
    named.
    """
    from blip.models.checkpoint import read_checkpoint, write_checkpoint
    from blip.models.salesforce import Heads

    checkpoint = read_checkpoint(source, vocabulary, Heads(vision_heads, text_heads))
    made = write_checkpoint(checkpoint, out, to)
    for note in [*checkpoint.notes, *made]:
        typer.echo(note)
    parameters = sum(p.numel() for p in checkpoint.model.parameters())
    typer.echo(f"wrote {out}: {checkpoint.model.parts}, {parameters:,} parameters")
