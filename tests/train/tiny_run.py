"""A tiny pre-training whose curve is kept beside this file, point by point.

`python tests/train/tiny_run.py` records it anew; do so only where the numbers are meant to change,
in a commit of its own that says why.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from blip.config import PRESETS, Config, Ingest, World, load_config
from blip.data.dataset import open_dataset
from blip.data.ingest import ingest
from blip.data.loader import PairLoader
from blip.data.text import VOCABULARY, Tokenizer
from blip.data.world import draw_world
from blip.models.blip import Blip
from blip.objectives.pretrain import PretrainObjective
from blip.tracker import NullTracker
from blip.train.curve import Point
from blip.train.run import build_tokenizer, prepare
from blip.train.trainer import fit

RECORDED = Path(__file__).with_suffix(".json")
STEPS = 20
CHANGES = {
    "threads": 1,
    "tokenizer.size": 150,
    "pretrain.steps": STEPS,
    "pretrain.batch_size": 8,
    "pretrain.image_size": 32,
    "pretrain.precision": "fp32",
    "pretrain.checkpoint_every": 10,
    "pretrain.log_every": 1,
    "pretrain.optimizer.warmup_steps": 5,
    "pretrain.contrast.uniform_negatives": 10,  # both ways to draw
}


def config() -> Config:
    """Give the experiment."""
    return load_config(PRESETS / "demo.yaml", CHANGES)


def make_data(root: Path) -> list[Path]:
    """Draw a small world and take it in; give the dataset versions, with a vocabulary beside."""
    settings = config()
    assert settings.world is not None
    sizes = {"image_size": 32, "web": 40, "human": 8, "test": 2}
    (root / "data").mkdir(parents=True)
    draw_world(World(**{**settings.world.model_dump(), **sizes}), root / "data")
    rules = settings.ingest.model_dump()
    for source in rules["sources"].values():
        for key in ("annotations", "images"):
            source[key] = str(root / source[key])
    data = [root / "web", root / "human"]
    for path in data:
        path.mkdir()
        run_dir = root / "runs" / path.name
        ingest(Ingest(**{**rules, "shard_size": 16}), path.name, path, run_dir, NullTracker())
    build_tokenizer(settings, data, root / "tokenizer")
    return data


def train(data: Sequence[Path], run_dir: Path) -> list[Point]:
    """Train, or go on; give the curve, a point a step."""
    settings = config()
    training = settings.pretrain
    device = prepare(settings)
    text = Tokenizer(data[0].parent / "tokenizer" / VOCABULARY)
    loader = PairLoader([open_dataset(path) for path in data], text, training, settings.seed)
    model = Blip(settings.model, training.image_size, text.vocab_size, text.special, "pretrain")
    objective = PretrainObjective(model, training.contrast).to(device)
    return fit(objective, loader, training, NullTracker(), run_dir)


def main() -> int:
    """Record the curve; one argument: where to write it instead."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDED
    with tempfile.TemporaryDirectory() as folder:
        points = train(make_data(Path(folder)), Path(folder, "run"))
    lines = ",\n".join(json.dumps(point) for point in points)
    out.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
