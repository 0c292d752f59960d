"""Every benchmark that looks at photos or videos: alone, or `python -m` by torchrun, with FOLDER OUT.

FOLDER has the files of each task in a folder of its own, and beside them the models.
"""

import sys
from pathlib import Path

from blip import distributed
from blip.benchmarks.ads import evaluate_ads
from blip.benchmarks.judgments import evaluate_judgments
from blip.benchmarks.nlvr import evaluate_nlvr, open_statements
from blip.benchmarks.ovad import evaluate_ovad
from blip.benchmarks.sugarcrepe import evaluate_sugarcrepe
from blip.benchmarks.video_qa import evaluate_video_qa
from blip.benchmarks.video_retrieval import evaluate_video_retrieval
from blip.benchmarks.visdial import evaluate_visdial
from blip.benchmarks.vqa import evaluate_vqa, open_questions
from blip.config import Config, load_config
from blip.data.dialogs import open_dialogs
from blip.tracker import NullTracker

TASKS = (
    "vqa",
    "nlvr",
    "visdial",
    "sugarcrepe",
    "judgments",
    "ads",
    "ovad",
    "video_retrieval",
    "video_qa",
)


def evaluate(task: str, config: Config, folder: Path, out: Path) -> None:
    """Measure the model of a task."""
    files, photos, tracker = folder / task, folder / task / "photos", NullTracker()
    vqa, nlvr, matching = (folder / parts for parts in ("vqa_model", "nlvr_model", "match_model"))
    match task:
        case "vqa":
            asked = open_questions(files / "questions.json", files / "annotations.json")
            evaluate_vqa(config, vqa, asked, files, files / "answers.json", out, tracker)
        case "nlvr":
            evaluate_nlvr(config, nlvr, open_statements(files / "dev.json"), files, out, tracker)
        case "visdial":
            dialogs = open_dialogs(files / "val.json", files / "dense.json")
            evaluate_visdial(config, matching, dialogs, files, out, tracker)
        case "sugarcrepe":
            evaluate_sugarcrepe(config, matching, files / "data", photos, out, tracker)
        case "judgments":
            told = files / "expert.txt", "expert", files / "token.txt"
            evaluate_judgments(config, matching, *told, photos, out, tracker)
        case "ads":
            told = files / "test.tsv", files / "images.tsv", 8, False
            evaluate_ads(config, matching, *told, out, tracker)
        case "ovad":
            evaluate_ovad(config, matching, files / "ovad.json", photos, out, tracker)
        case "video_retrieval":
            told = files / "test.jsonl", files / "videos"
            evaluate_video_retrieval(config, matching, *told, out, tracker)
        case "video_qa":
            told = files / "test_qa.json", None, None, None, files / "videos"
            evaluate_video_qa(config, vqa, *told, out, tracker)


def evaluate_all(folder: Path, out: Path) -> None:
    """Measure each task, in a folder of its own below `out`."""
    config = load_config(folder / "params.yaml", {})
    for task in TASKS:
        (out / task).mkdir(parents=True)
        evaluate(task, config, folder, out / task)


if __name__ == "__main__":
    with distributed.processes():
        evaluate_all(Path(sys.argv[1]), Path(sys.argv[2]) / str(distributed.rank()))
