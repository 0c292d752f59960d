"""One of two processes of a step: `python one_of_two.py RANK JOB`, for test_two_processes.py.

JOB is a file of torch.save: what to build, its state, the batch and negatives of each rank.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist  # noqa: TID251

from blip import config
from blip.batch import Batch, SpecialTokens
from blip.models.blip import Blip
from blip.objectives import Position
from blip.objectives.finetune import RetrievalObjective
from blip.objectives.itm import Negatives
from blip.objectives.pretrain import PretrainObjective


def main(rank: int, path: Path) -> None:
    torch.set_num_threads(1)
    job = torch.load(path)
    dist.init_process_group(
        "gloo", init_method=f"file://{path}.meet", rank=rank, world_size=len(job["batches"])
    )
    sizes = config.Model.model_validate(job["model"])
    special = SpecialTokens(*job["special"])
    model = Blip(sizes, job["image_size"], job["vocab_size"], special, job["parts"])
    settings = config.Contrast.model_validate(job["contrast"])
    if job["parts"] == "pretrain":
        objective = PretrainObjective(model, settings).eval()
    else:
        objective = RetrievalObjective(model, settings, job["all_rank"]).eval()
    objective.load_state_dict(job["state"])
    objective.begin_step()
    losses = objective(
        Batch(*job["batches"][rank]), Position(0, 1), Negatives(*job["negatives"][rank])
    )
    losses.total.backward()
    outcome = {
        "metrics": losses.metrics,
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "queue": dict(objective.contrast.queue.named_buffers()),
    }
    torch.save(outcome, f"{path}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
