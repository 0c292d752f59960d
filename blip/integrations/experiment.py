"""An experiment and its workspace: the checkout, or with overrides a git worktree of its own.

A worktree lies under `.blip/experiments/<name>-<digest>` and is named by the content of its
configuration, so that the same overrides come back to the same place. It holds the checkout's HEAD
and its uncommitted changes to tracked files, shares the DVC cache, and links to the checkout's
working state (`runs`), catalogue and MLflow database: every experiment meets the others there. When
all its stages are done it is saved as a DVC experiment of the checkout.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from blip.config import PRESETS, Config, check_config, dump_config, load_config, merge, read_yaml
from blip.errors import ConfigError, IntegrationError
from blip.files import lock, read_json, write_json, write_text
from blip.integrations import pinning, sharing, versioning
from blip.integrations.git import git, reports, snapshot
from blip.integrations.launch import Kind, open_launcher
from blip.integrations.runner import (
    Outcome,
    Run,
    default_slots,
    exit_code,
    plan,
    run_plan,
    stop_on_signal,
)
from blip.integrations.tracking import followed
from blip.stage import experiment_name

log = logging.getLogger(__name__)

STATE = Path(".blip")
SHARED = ("runs", "catalog.db", "mlflow.db", "mlruns", "mlartifacts")
FILES = (  # keys of the configuration whose values may name files
    ("evaluate", "truth"),
    ("tokenizer", "vocabulary"),
    ("model", "vision_weights"),
    ("model", "text_weights"),
)
SOURCE_FILES = ("annotations", "images", "split")


@dataclass(frozen=True)
class Experiment:
    """A configuration in the workspace where it runs.

    Attributes:
        name: The configuration's name and the first digits of its digest.
        config: What runs.
        checkout: The user's working tree.
        workspace: Where the stages run: the checkout, or a worktree of it.
    """

    name: str
    config: Config
    checkout: Path
    workspace: Path

    @property
    def own_workspace(self) -> bool:
        """Whether it runs outside the checkout."""
        return self.workspace != self.checkout

    @property
    def state(self) -> Path:
        """File that says what the worktree was made from and what was saved of it."""
        return self.checkout / STATE / "experiments" / f"{self.name}.json"


@contextlib.contextmanager
def open_experiment(
    checkout: Path,
    name: str | None = None,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Iterator[Experiment]:
    """Enter the workspace of an experiment: held for it alone, and the current directory within.

    Args:
        checkout: The user's working tree, the root of the project.
        name: A name of one's own for the experiment.
        preset: Start from this preset instead of the checkout's `params.yaml`.
        overrides: Dotted keys and their values. With none of these three it runs in the checkout
            itself.

    Raises:
        ConfigError: The configuration does not pass, or there is no such preset.
        IntegrationError: A worktree is needed and the checkout is no git repository with a commit.
        BlipError: It is running already.
    """
    checkout = checkout.resolve()
    experiment = describe(checkout, name, preset, dict(overrides or {}))
    _hide(checkout / STATE)
    place = experiment.name if experiment.own_workspace else "checkout"
    with lock(checkout / STATE / "locks" / place, f"experiment {experiment.name}"):
        if experiment.own_workspace:
            _set_up(experiment)
        with contextlib.chdir(experiment.workspace):
            yield experiment


def run_experiment(
    checkout: Path,
    name: str | None = None,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    targets: tuple[str, ...] = (),
    slots: int | None = None,
    launcher: Kind = "local",
    share: bool = False,
    say: Callable[[str, str], None],
    done: Callable[[Outcome], None],
) -> tuple[list[Outcome], int]:
    """Run an experiment in this process, as `blip run` does when no Prefect API is configured.

    Args:
        checkout: See `open_experiment`, like `name`, `preset` and `overrides`.
        name: See there.
        preset: See there.
        overrides: See there.
        targets: Stages or groups to run with all they need; none means the whole graph.
        slots: How many stages may run at once; by default as many as the cores hold of `threads`
            each.
        launcher: Where the stages run.
        share: Fetch known results from the DVC remote first, and push the results at the end.
        say: Told each line that a stage prints: the stage's name and the line.
        done: Told each stage's outcome as it comes.

    Returns:
        The outcomes in the graph's order, and the exit code to end with.
    """
    with open_experiment(checkout, name, preset, overrides) as experiment:
        run = begin(experiment, launcher, share)
        todo = plan(experiment.config, targets)
        with following(experiment), stop_on_signal(run) as signals:
            outcomes = run_plan(
                todo, run, slots or default_slots(experiment.config.threads), say, done
            )
        finish(experiment, outcomes, share)
        return outcomes, exit_code(outcomes, signals)


def begin(experiment: Experiment, launcher: Kind, share: bool) -> Run:
    """Prepare to run the stages of an experiment in its workspace, the current directory."""
    if share:
        sharing.fetch_run_cache()
    claims = experiment.checkout / STATE / "claims"
    return Run(open_launcher(launcher, experiment.workspace), claims, pull=share)


def finish(experiment: Experiment, outcomes: list[Outcome], share: bool) -> None:
    """Share the results that are there, and save a whole experiment for `dvc exp show`."""
    if share:
        sharing.push([outcome.name for outcome in outcomes if outcome.good])
    good = {outcome.name for outcome in outcomes if outcome.good}
    stages = {node.name for node in versioning.read_graph().values() if node.command is not None}
    if experiment.own_workspace and good >= stages:  # DVC saves no part
        _save(experiment)


@contextlib.contextmanager
def following(experiment: Experiment) -> Iterator[None]:
    """Carry the journals of the stages to MLflow while they run, by the checkout's settings."""
    with contextlib.ExitStack() as stack:
        with contextlib.chdir(experiment.checkout):
            stack.enter_context(followed(experiment.checkout / "runs"))
        yield


def describe(
    checkout: Path, name: str | None, preset: str | None, overrides: dict[str, Any]
) -> Experiment:
    """Say what an experiment is and where it runs, and touch nothing; see `open_experiment`."""
    path = checkout / "params.yaml" if preset is None else PRESETS / f"{preset}.yaml"
    if preset is not None and not path.is_file():
        known = ", ".join(sorted(file.stem for file in PRESETS.glob("*.yaml")))
        raise ConfigError(f"there is no preset {preset!r}; there are {known}")
    if preset is None and name is None and not overrides:
        config = load_config(path)
        return Experiment(experiment_name(config), config, checkout, checkout)
    _head(checkout)
    if name is not None:
        overrides["name"] = name
    config = check_config(merge(read_yaml(path), overrides, path), path)
    config = check_config(_anchor(dump_config(config), checkout), path)
    title = experiment_name(config)
    return Experiment(title, config, checkout, checkout / STATE / "experiments" / title)


def _anchor(document: dict[str, Any], checkout: Path) -> dict[str, Any]:
    """Make paths of the user's own files absolute: neither git nor DVC brings those along."""
    with contextlib.chdir(checkout):
        made = [Path(out) for node in versioning.read_graph().values() for out in node.outs]
    sources = [
        ("ingest", "sources", name, key)
        for name in document["ingest"]["sources"]
        for key in SOURCE_FILES
    ]
    for *parents, leaf in [*FILES, *sources]:
        section = document
        for parent in parents:
            section = section[parent]
        path = Path(section[leaf] or "")
        travels = path.is_absolute() or any(path.is_relative_to(out) for out in made)
        if (
            path.parts
            and (checkout / path).exists()
            and not travels
            and not git(checkout, "ls-files", "--", str(path))
        ):
            section[leaf] = str((checkout / path).resolve())
    return document


def _hide(folder: Path) -> None:
    """Keep a folder of working state out of git, whatever the project's own ignore file says."""
    if not (folder / ".gitignore").exists():
        write_text(folder / ".gitignore", "*\n")


def _set_up(experiment: Experiment) -> None:
    """Make the worktree, or bring it to the checkout's present state; write its configuration."""
    checkout, workspace = experiment.checkout, experiment.workspace
    base = {"head": _head(checkout), "tree": snapshot(checkout)}
    state = read_json(experiment.state) if experiment.state.exists() else {}
    if not (workspace / ".git").exists() or state.get("base") != base:
        if not (workspace / ".git").exists():
            shutil.rmtree(workspace, ignore_errors=True)
            git(checkout, "worktree", "prune")
            git(checkout, "worktree", "add", "--quiet", "--detach", str(workspace), base["head"])
        experiment.state.unlink(missing_ok=True)
        _warn_untracked(checkout, base["tree"])
        git(workspace, "checkout", "--quiet", "--force", "--detach", base["head"])
        git(workspace, "read-tree", "--reset", "-u", base["tree"])
        _link_shared(checkout, workspace)
        _write_params(experiment)
        with contextlib.chdir(workspace):
            sharing.share_cache(checkout)
            if experiment.config.world is None:
                pinning.forget_generated_data()
            versioning.checkout()
        write_json(experiment.state, {"base": base})


def _write_params(experiment: Experiment) -> None:
    text = yaml.safe_dump(
        dump_config(experiment.config), sort_keys=False, allow_unicode=True, width=100
    )
    write_text(experiment.workspace / "params.yaml", text)


def _link_shared(checkout: Path, workspace: Path) -> None:
    """Let the worktree use the checkout's working state and databases, made already or not."""
    (checkout / "runs").mkdir(exist_ok=True)
    for name in SHARED:
        link = workspace / name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(checkout / name, workspace))


def _save(experiment: Experiment) -> None:
    state = read_json(experiment.state)
    tree = snapshot(experiment.workspace)
    if state.get("saved") != tree:
        kept = [
            path for path in reports(experiment.workspace) if (experiment.workspace / path).exists()
        ]
        # All worktrees write refs of one repository; DVC trips over another save under way.
        with lock(
            experiment.checkout / STATE / "locks" / "save", "saving an experiment", wait=True
        ):
            versioning.save_experiment(experiment.name, kept)
        write_json(experiment.state, {**state, "saved": tree})
        log.info("saved as DVC experiment %s (dvc exp show)", experiment.name)


def _head(checkout: Path) -> str:
    try:
        return git(checkout, "rev-parse", "--verify", "HEAD")
    except IntegrationError:
        raise IntegrationError(
            f"an experiment with overrides runs in a git worktree, and {checkout} is no git "
            "repository with a commit: git init && git add . && git commit, or edit params.yaml "
            "and run without overrides"
        ) from None


def _warn_untracked(checkout: Path, tree: str) -> None:
    carried = set(git(checkout, "ls-tree", "-r", "--name-only", tree).splitlines())
    others = git(checkout, "ls-files", "--others", "--exclude-standard").splitlines()
    untracked = [path for path in others if path not in carried]
    if untracked:
        some = ", ".join(untracked[:5]) + (
            f" and {len(untracked) - 5} more" if len(untracked) > 5 else ""
        )
        log.warning(
            "not in the experiment, since git does not track them (git add them first): %s", some
        )
