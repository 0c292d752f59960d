"""`python -m benchmarks.captions`: what scoring captions takes, ours against pycocoevalcap.

Both tokenise and compute BLEU, ROUGE-L and CIDEr of the same captions, in turn, in one process (Java,
which pycocoevalcap tokenises with, is its child). First the scores of every image must be equal. The
processors' time is that of the process and its children, without what others take of the cores;
garbage is collected between rounds, as timeit does.
"""

import contextlib
import gc
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from blip.benchmarks.coco_captions import ImageId, read_captions, read_references
from blip.metrics import ptb
from blip.metrics.captions import MAX_ORDER, BleuCounts, Corpus, Floats, bleu, tokenized_captions

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

TOLERANCE = 1e-9

Captions = dict[ImageId, str]
References = dict[ImageId, list[str]]
Scores = tuple[Floats, Floats]
"""Of every image (6, N) and of all (6): BLEU-1 to BLEU-4, ROUGE-L, CIDEr."""


@app.command()
def main(
    predictions: Annotated[Path, typer.Option(help='[{"image_id", "caption"}]')],
    annotations: Annotated[Path, typer.Option(help="E.g. coco_karpathy_test_gt.json.")],
    repeats: Annotated[int, typer.Option(min=1, help="Of which the median counts.")] = 5,
) -> None:
    """Print the largest difference of a score, the seconds of both, and their ratio."""
    references = read_references(annotations)
    captions = read_captions(predictions, references, annotations)
    worst = largest_difference(captions, references)
    count = sum(map(len, references.values()))
    sys.stdout.write(
        f"{len(captions)} images, {count} references: largest difference {worst:.1e}\n"
    )
    rounds = np.array(
        [
            [_time(score, captions, references) for score in (score_ours, score_theirs)]
            for _ in range(repeats)
        ]
    )
    for clock, (ours, theirs) in zip(("clock", "CPU"), np.median(rounds, axis=0).T, strict=True):
        sys.stdout.write(
            f"{clock}: pycocoevalcap {theirs:.2f} s, ours {ours:.2f} s, {theirs / ours:.1f} times\n"
        )


def largest_difference(captions: Captions, references: References) -> float:
    """Compare the scores of every image and of all.

    Raises:
        SystemExit: They differ.
    """
    found, expected = score_ours(captions, references), score_theirs(captions, references)
    worst = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    if worst > TOLERANCE:
        raise SystemExit(f"scores differ by {worst:.1e}: nothing to time")
    return worst


def score_ours(captions: Captions, references: References) -> Scores:
    """Score as `blip evaluate captioning` does; as in a new process no word is known."""
    for known in (ptb._known, ptb._lexer):
        known.cache_clear()
    hypotheses = [captions[image] for image in references]
    corpus = Corpus(*tokenized_captions(hypotheses, list(references.values())))
    counts = corpus.bleu_counts()
    total = bleu(BleuCounts(*(count.sum(axis=0) for count in counts)))
    each = np.vstack([bleu(counts).T, corpus.rouge_l(), corpus.cider()])
    return each, np.concatenate([total, each[MAX_ORDER:].mean(axis=1)])


def score_theirs(captions: Captions, references: References) -> Scores:
    """Score as the official tool does."""
    tokenizer = PTBTokenizer()
    said = {i: [{"caption": text} for text in own] for i, own in references.items()}
    ours = {i: [{"caption": captions[i]}] for i in references}
    with contextlib.redirect_stdout(io.StringIO()):
        gts, res = tokenizer.tokenize(said), tokenizer.tokenize(ours)
        scorers = (Bleu(MAX_ORDER), Rouge(), Cider())
        results = [scorer.compute_score(gts, res) for scorer in scorers]
    each = np.vstack([np.array(scores, dtype=np.float64) for _, scores in results])
    return each, np.hstack([np.array(total, dtype=np.float64) for total, _ in results])


def _time(
    score: Callable[[Captions, References], Scores], captions: Captions, references: References
) -> tuple[float, float]:
    """Give the seconds on the clock, and those of processors."""
    gc.collect()
    gc.disable()
    began, before = time.perf_counter(), os.times()
    score(captions, references)
    seconds, after = time.perf_counter() - began, os.times()
    gc.enable()
    return seconds, sum(after[:4]) - sum(before[:4])


if __name__ == "__main__":
    app()
