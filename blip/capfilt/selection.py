"""The verdict: which scored texts enter the bootstrapped corpus, and why."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from blip.capfilt.versions import publish, read_texts, report
from blip.config import CapFilt, Config
from blip.data.dataset import CAPTIONS, Shard, open_dataset
from blip.errors import DataError
from blip.tracker import Tracker


def select(config: Config, data: Path, out: Path, tracker: Tracker) -> None:
    """Decide for every scored text whether it is kept, and say why.

    A text is kept if its match probability is above `capfilt.threshold`. With `capfilt.keep`
    `filter` no synthetic text is kept; with `captioner` all texts are. Human texts always are.

    Args:
        config: `capfilt.threshold` and `capfilt.keep` are read.
        data: A version that `score` wrote.
        out: Receives a version with the same rows, decided.
        tracker: Told how many were kept.

    Raises:
        DataError: A text has no score, or none is kept.
    """
    dataset = open_dataset(data)
    decided = (_decide(_read_scored(shard), config.capfilt) for shard in dataset.shards)
    source = {
        "stage": "select",
        "parents": [dataset.digest],
        "threshold": config.capfilt.threshold,
        "keep": config.capfilt.keep,
    }
    texts = publish(dataset, decided, out, source)
    if not pc.any(texts["kept"]).as_py():
        scores = pc.min_max(texts["itm_score"]).as_py()
        raise DataError(
            f"{data}: none of {len(texts)} texts is kept: match probabilities go from "
            f"{scores['min']} to {scores['max']}, capfilt.threshold is {config.capfilt.threshold}: "
            "lower it, or train the filter longer"
        )
    report(out, "select", _count_kept(texts, config.capfilt.threshold), tracker)


def _read_scored(shard: Shard) -> pa.Table:
    texts = read_texts(shard)
    if texts["itm_score"].null_count:
        raise DataError(
            f"{shard.captions}: {texts['itm_score'].null_count} of {len(texts)} texts have no "
            "match probability: run `blip score` first and give its output"
        )
    return texts


def _decide(texts: pa.Table, config: CapFilt) -> pa.Table:
    """Fill in the columns `kept` and `reason`."""
    kept = _above(texts, config.threshold)
    threshold = f"above {config.threshold}"
    reason = pc.if_else(
        kept, f"match probability {threshold}", f"match probability not {threshold}"
    )
    synthetic, human = (pc.equal(texts["origin"], origin) for origin in ("synthetic", "human"))
    if config.keep == "filter":
        kept = pc.and_not(kept, synthetic)
        reason = pc.if_else(synthetic, "synthetic texts are left out", reason)
    elif config.keep == "captioner":
        kept = pc.is_valid(kept)
        reason = pc.if_else(kept, "texts are not filtered", reason)
    kept, reason = pc.or_(kept, human), pc.if_else(human, "written by a human", reason)
    for name, column in (("kept", kept), ("reason", reason)):
        texts = texts.set_column(CAPTIONS.get_field_index(name), CAPTIONS.field(name), column)
    return texts


def _above(texts: pa.Table, threshold: float) -> pa.ChunkedArray:
    return pc.greater(texts["itm_score"].cast(pa.float64()), threshold)


def _count_kept(texts: pa.Table, threshold: float) -> dict[str, float]:
    """Count texts and kept ones by origin.

    `noise_ratio` is the share of synthetic texts that the filter rejects (Li et al. 2022, table 2).
    """
    found: dict[str, float] = {"texts": len(texts), "kept": pc.sum(texts["kept"]).as_py()}
    found["kept_share"] = found["kept"] / len(texts)
    for origin in sorted(set(texts["origin"].to_pylist())):
        chosen = texts.filter(pc.equal(texts["origin"], origin))
        kept = pc.sum(chosen["kept"]).as_py()
        found |= {
            f"{origin}_texts": len(chosen),
            f"{origin}_kept": kept,
            f"{origin}_kept_share": kept / len(chosen),
        }
        if origin == "synthetic":
            found["noise_ratio"] = 1.0 - pc.mean(_above(chosen, threshold)).as_py()
    return found
