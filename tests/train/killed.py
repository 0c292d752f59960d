"""Runs that are killed again and again: `python killed.py FOLDER KILLS SEED`, for test_killed.py.

One process imports torch, and forks from itself every life of a run: the real loop, loader and
objective on a tiny dataset. Half of the kills come at any moment, half while a checkpoint is being
written or removed. It prints, as JSON, what the undisturbed run came to and what the others did.
"""

import gc
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas  # noqa: F401
import torch
import torch._dynamo  # what a life would import, imported once

from blip.batch import Batch
from blip.config import PRESETS, Config, Ingest, World, load_config
from blip.data.dataset import open_dataset
from blip.data.ingest import ingest
from blip.data.loader import PairLoader
from blip.data.text import Tokenizer
from blip.data.world import draw_world
from blip.models.blip import Blip
from blip.objectives.pretrain import PretrainObjective
from blip.tracker import NullTracker
from blip.train.run import build_tokenizer
from blip.train.trainer import fit

STEPS = 30
SMALL: dict[str, Any] = {
    "tokenizer.size": 150,
    "model.vision": {"width": 32, "num_layers": 1, "num_heads": 2, "patch_size": 16},
    "model.text": {"width": 32, "num_layers": 1, "num_heads": 2},
    "pretrain": {
        "steps": STEPS,
        "batch_size": 4,
        "image_size": 32,
        "checkpoint_every": 4,
        "log_every": 7,
        "num_workers": 1,
    },
}


def small_config() -> Config:
    """Give the demo, made tiny."""
    changes = {}
    for key, value in SMALL.items():
        inner = value if isinstance(value, dict) else {"": value}
        changes |= {f"{key}.{name}".rstrip("."): v for name, v in inner.items()}
    return load_config(PRESETS / "demo.yaml", changes)


def make_data(root: Path) -> None:
    """Draw a dataset and learn its vocabulary."""
    config = small_config()
    sizes = {"image_size": 32, "web": 20, "human": 4, "test": 2}
    draw_world(World(**{**config.world.model_dump(), **sizes}), root / "data")
    section = config.ingest.model_dump()
    for source in section["sources"].values():
        for key in ("annotations", "images"):
            source[key] = str(root / source[key])
    (root / "web").mkdir()
    rules = Ingest(**{**section, "shard_size": 8})
    ingest(rules, "web", root / "web", root / "run", NullTracker())
    build_tokenizer(config, [root / "web"], root / "tokenizer")


class Recorded:
    """A loader that keeps, on disk, what each step was given."""

    def __init__(self, loader: PairLoader, path: Path) -> None:
        self._loader = loader
        self._file = path.open("ab", buffering=0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        self._file.write(f"life {start}\n".encode())
        for step, batch in enumerate(self._loader.iterate(start, stop), start):
            content = b"".join(tensor.numpy().tobytes() for tensor in vars(batch).values())
            digest = hashlib.sha256(content).hexdigest()
            self._file.write(f"{step} {batch.image_ids.tolist()} {digest}\n".encode())
            yield batch


def effective_steps(path: Path) -> list[str]:
    """Give what each step was given, of steps that were done again the last time."""
    steps: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("life "):
            del steps[int(line.split()[1]) :]
        else:
            assert int(line.split()[0]) == len(steps), "a step is missing"
            steps.append(line)
    return steps


def live(root: Path, folder: Path) -> None:
    """Train in `folder` to the end, from wherever it stands."""
    torch.set_num_threads(1)
    config = small_config()
    torch.manual_seed(config.seed)
    tokenizer = Tokenizer(root / "tokenizer/vocab.txt")
    training = config.pretrain
    loader = PairLoader([open_dataset(root / "web")], tokenizer, training, config.seed)
    model = Blip(config.model, 32, tokenizer.vocab_size, tokenizer.special, "pretrain")
    objective = PretrainObjective(model, training.contrast)
    folder.mkdir(exist_ok=True)
    recorded = Recorded(loader, folder / "batches")
    curve = fit(objective, recorded, training, NullTracker(), folder, identity="killed")
    state = b"".join(tensor.numpy().tobytes() for tensor in objective.state_dict().values())
    outcome = {"state": hashlib.sha256(state).hexdigest(), "curve": curve}
    (folder / "outcome").write_text(json.dumps(outcome))


def fork(work: Callable[[], None]) -> int:
    """Do something in a child; give its process id."""
    if child := os.fork():
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def partials(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("checkpoints/.*.partial")]


def kill(child: int, folder: Path, delay: float, in_write: bool) -> bool:
    """Kill after some time, which begins when the next write does if that is wanted."""
    while in_write and not partials(folder):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    code = wait(child)
    assert code in (0, -signal.SIGKILL), f"a life failed by itself: {code}"
    return code == -signal.SIGKILL


def outcome(folder: Path) -> dict[str, Any]:
    result = json.loads((folder / "outcome").read_text())
    return {**result, "batches": effective_steps(folder / "batches")}


def main(root: Path, kills: int, seed: int) -> None:
    gc.freeze()  # a collection in a child would copy every page of the parent
    assert wait(fork(lambda: make_data(root))) == 0
    began = time.monotonic()
    assert wait(fork(lambda: live(root, root / "whole"))) == 0
    longest = time.monotonic() - began
    rng = random.Random(seed)
    killed = writing = removing = same = runs = 0
    expected = outcome(root / "whole")
    while killed < kills:
        folder = root / f"run{runs}"
        while not (folder / "outcome").exists():
            child = fork(lambda folder=folder: live(root, folder))
            if killed < kills:
                in_write = rng.random() < 0.5
                delay = rng.uniform(0, 0.004 if in_write else longest)
                killed += kill(child, folder, delay, in_write)
                left = partials(folder)
                removing += any(name.endswith(".removed.partial") for name in left)
                writing += any(not name.endswith(".removed.partial") for name in left)
            else:
                assert wait(child) == 0
        runs += 1
        same += outcome(folder) == expected
    counts = {"kills": killed, "writing": writing, "removing": removing, "runs": runs, "same": same}
    print(json.dumps({**counts, "steps": len(expected["batches"])}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
