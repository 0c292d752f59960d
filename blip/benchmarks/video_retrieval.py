"""MSRVTT, zero-shot: texts find videos and videos texts, among the 1,000 clips of the test.

Eight frames stand for a video: the mean of their embeddings finds the candidates by cosine, and the
tokens of all of them together are what a text is matched with. Ranking is that of images
(`blip.evaluate.retrieval`), with 128 candidates.

Source: BLIP.md 5.6; `eval_retrieval_video.py` and `configs/retrieval_msrvtt.yaml` of salesforce/BLIP.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from blip.benchmarks.records import read_matrices, text
from blip.config import Config, Evaluate
from blip.data.image_store import is_safe
from blip.data.text import clean_caption
from blip.data.text_records import field, json_lines, read_lines, require
from blip.data.transforms import normalise
from blip.data.video import Videos, read_frames
from blip.distributed import Team, rank
from blip.errors import DataError
from blip.evaluate.bootstrap import Statistic, mean, mean_of, median
from blip.evaluate.features import image_tokens
from blip.evaluate.network import open_network
from blip.evaluate.results import report
from blip.evaluate.retrieval import CUTS, Integers, Judge, ranks, rerank
from blip.files import digest_file
from blip.metrics.ids import require_one_each
from blip.metrics.ranking import ranks as ranks_of_all
from blip.models.blip import Blip
from blip.models.device import Precision, autocast
from blip.models.matching import Texts, embed_texts, match_texts
from blip.models.med import Memory
from blip.progress import track
from blip.tracker import Tracker

TASK = "video_retrieval"

NUM_FRAMES = 8
MAX_WORDS, MAX_TOKENS = 40, 35
CANDIDATES = 128  # of a query, or all where there are fewer


@dataclass(frozen=True)
class Clip:
    """A video and its text."""

    name: str
    caption: str


@dataclass(frozen=True)
class Frames:
    """The frames of videos as images that are encoded once, a video at a time: rows are those of one.

    Attributes:
        paths: The videos.
        num_frames: Of each.
    """

    paths: Sequence[Path]
    num_frames: int

    def __len__(self) -> int:
        return len(self.paths) * self.num_frames

    def digests(self, rows: range) -> list[str]:
        """Give what tells the frames of a video: its bytes, and how many are taken of it.

        Raises:
            DataError: The video is missing.
        """
        return [digest_file(self._path(rows)), str(self.num_frames)]

    def pixels(self, rows: range, size: int) -> Tensor:
        """Read the frames of a video: (F, 3, S, S) float32.

        Raises:
            DataError: The video is missing, cut short or damaged.
        """
        return normalise(read_frames(self._path(rows), self.num_frames, size))

    def _path(self, rows: range) -> Path:
        return self.paths[rows.start // self.num_frames]


def read_clips(path: Path) -> list[Clip]:
    """Read a test set: lines of JSON with `clip_name`, `caption`, or a CSV with `video_id`, `sentence`.

    The latter is the form of `MSRVTT_JSFUSION_test.csv`; both hold the same clips in one order.

    Raises:
        DataError: The file is unreadable or breaks a rule, or a clip stands twice.
    """
    rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    clips = []
    for where, name, caption in rows:
        safe = is_safe(name) and "/" not in name
        require(safe, where, "clip_name", name, "the name of a video without its extension")
        clips.append(Clip(name, text(caption, "caption", where)))
    if not clips:
        raise DataError(f"{path}: holds no clip: fetch it again")
    names = [clip.name for clip in clips]
    require_one_each(names, names, path, path)
    return clips


def evaluate_video_retrieval(
    config: Config, checkpoint: Path, data: Path, videos: Path, out: Path, tracker: Tracker
) -> None:
    """Measure a model: R@1/5/10 both ways in percent, their means, and the median rank of videos.

    Processes that torchrun started share the videos.

    Args:
        config: `evaluate` is read, but for its candidates.
        checkpoint: Of a model that matches.
        data: See `read_clips`.
        videos: The folder of the videos.
        out: The folder to write into.
        tracker: Told the metrics.

    Raises:
        DataError: A file breaks a rule, or a video is missing, cut short or damaged.
    """
    clips, folder = read_clips(data), Videos(videos)
    paths = [folder.find([clip.name]) for clip in clips]
    model, tokenizer, _ = open_network(checkpoint, "matching", config.threads)
    cleaned = [clean_caption(clip.caption, MAX_WORDS) for clip in clips]
    texts = Texts(*tokenizer.encode(cleaned, MAX_TOKENS))
    _report(config, clips, *_rank(model, paths, texts, config.evaluate), out, tracker)


def score_video_retrieval(
    config: Config, predictions: Path, data: Path, out: Path, tracker: Tracker
) -> None:
    """Score what another model gave: a .npz with the matrices `v2t` and `t2v`, in the file's order.

    A row belongs to a query, a higher score to a better match.

    Raises:
        DataError: A file is unreadable, or a matrix is missing, of another size, or holds what is
            not a number.
    """
    clips = read_clips(data)
    order = np.arange(len(clips))
    shapes = {"v2t": (len(clips), len(clips)), "t2v": (len(clips), len(clips))}
    found = read_matrices(predictions, shapes, data)
    try:
        of_videos, of_texts = (ranks_of_all(matrix, order) for matrix in found)
    except DataError as error:
        raise DataError(f"{predictions}: {error}") from None
    _report(config, clips, of_videos, of_texts, out, tracker)


@torch.inference_mode()
def _rank(
    model: Blip, paths: Sequence[Path], texts: Texts, settings: Evaluate
) -> tuple[Integers, Integers]:
    """Give the rank of every video's text, and of every text's video."""
    device, team = model.match_head.weight.device, Team()
    mine, shown = team.share(len(paths), 1), rank() == 0
    frames = Frames(paths, NUM_FRAMES)
    watched = video_tokens(model, frames, settings.precision, mine)
    watched = track(watched, "finding", len(mine), "videos", shown)
    embeds = team.gather([model.embed_image(tokens, NUM_FRAMES).cpu() for tokens in watched])
    with autocast(device, settings.precision):
        text_embeds = embed_texts(model, texts, settings.batch_size)
    judges = _judges(model, frames, mine, texts, settings)
    judges = track(judges, "re-ranking", len(mine), "videos", shown)
    of_videos, video_scores, of_texts, text_scores = rerank(
        torch.cat(embeds).to(device), text_embeds, CANDIDATES, judges, mine, team.gather
    )
    order, count = np.arange(len(paths)), len(paths)
    return (
        ranks(of_videos.indices, video_scores, order, count),
        ranks(of_texts.indices, text_scores, order, count),
    )


def _judges(
    model: Blip, frames: Frames, mine: range, texts: Texts, settings: Evaluate
) -> Iterator[Judge]:
    """Give the judges of some videos, one at a time: its projections are some hundred megabytes."""

    def judge(memory: Memory, wanted: Integers) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        with autocast(memory.device, settings.precision):
            rows = torch.from_numpy(wanted)
            logits = match_texts(model, texts, rows, memory, None, settings.batch_size)
        return logits[:, 1].cpu().numpy()

    for tokens in video_tokens(model, frames, settings.precision, mine):
        with autocast(tokens.device, settings.precision):
            memory = model.project_images(tokens)
        yield partial(judge, memory)


def video_tokens(
    model: Blip, frames: Frames, precision: Precision, mine: range
) -> Iterator[Tensor]:
    """Give the tokens (1, F * N, D) of some videos, one by one.

    Raises:
        DataError: A video is missing, cut short or damaged.
    """
    count = frames.num_frames
    rows = range(mine.start * count, mine.stop * count)
    for _, tokens in image_tokens(model, frames, count, precision, rows):
        yield tokens.reshape(1, -1, tokens.shape[2])


def _report(
    config: Config,
    clips: Sequence[Clip],
    of_videos: Integers,
    of_texts: Integers,
    out: Path,
    tracker: Tracker,
) -> None:
    """Report ranks, from 0, of each video's text and of each text's video."""
    table = pa.table(
        {
            "clip_name": [clip.name for clip in clips],
            "caption": [clip.caption for clip in clips],
            "tr_rank": of_videos,
            "vr_rank": of_texts,
        }
    )
    statistics: dict[str, Statistic] = {}
    for way, found in (("tr", of_videos), ("vr", of_texts)):
        hits = [mean(100.0 * (found < cut)) for cut in CUTS]
        statistics |= {f"{way}_r{cut}": hit for cut, hit in zip(CUTS, hits, strict=True)}
        statistics[f"{way}_mean"] = mean_of(hits)
    statistics["r_mean"] = mean_of([statistics["tr_mean"], statistics["vr_mean"]])
    statistics["vr_median_rank"] = median(of_texts + 1)
    report(config, TASK, table, statistics, {"videos": len(clips)}, out, tracker)


def _json_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    for where, item in json_lines(path):
        yield where, field(item, "clip_name", str, where), field(item, "caption", str, where)


def _csv_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    lines = [line for _, line in read_lines(path)]
    try:
        for number, row in enumerate(csv.DictReader(lines, strict=True), 2):
            where = f"{path}, line {number}"
            yield where, field(row, "video_id", str, where), field(row, "sentence", str, where)
    except csv.Error as error:
        raise DataError(f"{path}: is no table: {error}: mend the file") from None
