"""Steps of pre-training a second by one process and by two: `python -m benchmarks.scaling`.

The model and the batch are the demo's; each process has one thread. The runs alternate, so that a
busy machine slows all alike; the best of each counts. What a step costs a process in CPU time says
what two free cores would give.
"""

import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import torch

from blip import distributed
from blip.batch import Batch, SpecialTokens
from blip.config import PRESETS, load_config
from blip.models.blip import Blip
from blip.objectives import Position
from blip.objectives.pretrain import PretrainObjective
from blip.train.step import Stepper

ROUNDS, STEPS, WARM = 3, 20, 3
SPECIAL = SpecialTokens(pad=0, cls=2, sep=3, dec=400, enc=401)
WAYS = {
    "one process, 32 pairs": (1, 32, "ddp"),
    "two processes, 16 pairs each": (2, 32, "ddp"),
    "two processes, 32 pairs each": (2, 64, "ddp"),
    "two processes, 16 pairs each, sharded": (2, 32, "fsdp"),
}


def main() -> None:
    """Measure each way in turn and print the table."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(ROUNDS):
        for name, (processes, batch_size, sharding) in WAYS.items():
            found = _launch(processes, str(batch_size), sharding)
            if name not in best or found["steps"] > best[name]["steps"]:
                best[name] = found
    for name, found in best.items():
        pairs = found["steps"] * WAYS[name][1]
        sys.stdout.write(
            f"{name:<38} {found['steps']:6.2f} steps/s {pairs:7.1f} pairs/s   "
            f"CPU {found['cpu'] * 1e3:5.1f} ms a step of a process, "
            f"agreeing when to stop {found['asking'] * 1e6:4.0f} us\n"
        )


def _launch(processes: int, *arguments: str) -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scaling", *arguments],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    printed = [process.communicate()[0] for process in started]
    return json.loads(printed[0])


def _measure(batch_size: int, sharding: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = load_config(PRESETS / "demo.yaml")
    training = config.pretrain.model_copy(update={"batch_size": batch_size, "sharding": sharding})
    model = Blip(config.model, training.image_size, 402, SPECIAL, "pretrain")
    stepper = Stepper(PretrainObjective(model, training.contrast), training)
    telemetry = stepper.telemetry()
    mine = batch_size // distributed.world_size()
    ids = torch.randint(5, 400, (mine, 12))
    batch = Batch(torch.randn(mine, 3, 64, 64), ids, torch.ones_like(ids), torch.arange(mine))
    asking = 0.0
    for step in range(WARM + STEPS):
        if step == WARM:
            began, used, asking = time.perf_counter(), time.process_time(), 0.0
        before = time.perf_counter()
        stops = distributed.ask(lambda: False)
        asking += time.perf_counter() - before
        stepper.step(batch, Position(step, 100), 1e-4, telemetry)
        before = time.perf_counter()
        stops()
        asking += time.perf_counter() - before
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    return {"steps": STEPS / seconds, "cpu": cpu / STEPS, "asking": asking / STEPS}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        with distributed.processes():
            sys.stdout.write(json.dumps(_measure(int(sys.argv[1]), sys.argv[2])))
