"""Fine-tuning on the annotated photos of a benchmark: VQA and NLVR2 (BLIP.md 5.3, 5.4)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from blip.batch import QuestionBatch, StatementBatch
from blip.config import Config, Training
from blip.data.annotations import read_questions, read_statements
from blip.data.tasks import TaskLoader, question_loader, statement_loader
from blip.data.text import VOCABULARY, Tokenizer
from blip.errors import ConfigError
from blip.files import digest_file
from blip.models.checkpoint import load_model
from blip.objectives import Objective
from blip.objectives.finetune import NlvrObjective, VqaObjective
from blip.tracker import Tracker
from blip.train.held_out import Evaluate, held_out
from blip.train.run import Setup, check_held_out, prepare, train, unaugmented
from blip.train.trainer import Loader

T = TypeVar("T")
Task = Literal["vqa", "nlvr"]


def finetune_annotated(
    config: Config,
    task: Task,
    model: Path,
    data: list[Path],
    photos: Mapping[str, Path],
    out: Path,
    run_dir: Path,
    tracker: Tracker,
    validation: Sequence[Path] = (),
) -> None:
    """Fine-tune a pre-trained model for a task.

    Args:
        config: The experiment; its `seed`, `threads` and `finetune.<task>`.
        task: Which one.
        model: Folder of the model to start from, with its `vocab.txt`.
        data: Annotation files.
        photos: Where the photos lie, by the name of their collection (`vqa`, `vg`, `nlvr`); without
            a name, all of them.
        out: Receives the model, `vocab.txt`, `metrics.json` and `curves.csv`.
        run_dir: Keeps the checkpoints.
        tracker: Told how training goes.
        validation: Annotation files to evaluate on while training.

    Raises:
        ConfigError: The experiment does not have the task, or a collection no folder.
        DataError: An annotation breaks a rule, or a photo cannot be read.
        BlipError: See `fit`.
    """
    device = prepare(config)
    text = Tokenizer(model / VOCABULARY)
    training: Training
    objective: Objective
    loader: Loader
    evaluate: Evaluate | None = None
    match task:
        case "vqa":
            training = vqa = _configured(config.finetune.vqa, task)

            def asked(paths: Sequence[Path], settings: Training) -> TaskLoader[QuestionBatch]:
                questions = [question for path in paths for question in read_questions(path)]
                return question_loader(questions, photos, text, settings, config.seed, device)

            loader = asked(data, training)
            if settings := check_held_out(training, validation):
                evaluate = held_out(asked(validation, unaugmented(training)), settings)
            blip = load_model(model, "vqa", training.image_size, drop_path=vqa.drop_path)
            objective = VqaObjective(blip, vqa.label_smoothing)
        case "nlvr":
            training = nlvr = _configured(config.finetune.nlvr, task)

            def stated(paths: Sequence[Path], settings: Training) -> TaskLoader[StatementBatch]:
                statements = [statement for path in paths for statement in read_statements(path)]
                return statement_loader(statements, photos, text, settings, config.seed, device)

            loader = stated(data, training)
            if settings := check_held_out(training, validation):
                evaluate = held_out(stated(validation, unaugmented(training)), settings)
            blip = load_model(model, "nlvr", training.image_size, drop_path=nlvr.drop_path)
            objective = NlvrObjective(blip)
    digests = [digest_file(path) for path in data]
    setup = Setup(task, training, blip, objective, loader, evaluate, digests, model)
    train(setup, config, device, out, run_dir, tracker)


def _configured(section: T | None, task: Task) -> T:
    if section is None:
        raise ConfigError(
            f"finetune.{task} is null: this experiment does not have the task; "
            f"base_14m.yaml has the paper's settings of it"
        )
    return section
