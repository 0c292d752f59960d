"""CapFilt: a captioner writes a text for every image, a filter judges all texts, the wrong ones go.

Li et al. 2022, section 3.3; BLIP.md 3. Three stages over dataset versions that share their image
shards. `caption` and `score` run a model, shard by shard, and a killed run goes on after the last
finished shard; `select` only compares scores with a threshold.
"""

from blip.capfilt.captioning import caption
from blip.capfilt.scoring import score
from blip.capfilt.selection import select

__all__ = ["caption", "score", "select"]
