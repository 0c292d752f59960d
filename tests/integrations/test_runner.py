"""The runner on the toy project: what runs, in which order, and what failures leave behind."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from blip.config import PRESETS, load_config
from blip.errors import ConfigError
from blip.integrations import versioning
from blip.integrations.experiment import run_experiment
from blip.integrations.runner import Node, Outcome, default_slots, plan, schedule, summary

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # pygtrie within DVC

THRESHOLD = load_config(PRESETS / "demo.yaml").capfilt.threshold
ALL = ["prepare", "train@left", "train@right", "select", "finish"]


def states(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.name: outcome.state for outcome in outcomes}


def run(toy: Any, **options: Any) -> tuple[dict[str, str], int]:
    options.setdefault("say", lambda name, line: None)
    options.setdefault("done", lambda outcome: None)
    outcomes, code = run_experiment(toy.root, **{"slots": 2, **options})
    return states(outcomes), code


def test_everything_runs_once_and_then_nothing(toy: Any) -> None:
    first, code = run(toy)
    assert (set(first.values()), code) == ({"ran"}, 0)
    assert sorted(first) == sorted(ALL)
    assert len(toy.began()) == 5
    assert (
        (toy.root / "out/finish/text").read_text().startswith("finish(select(train_left(prepare(")
    )
    second, code = run(toy)
    assert (set(second.values()), code) == ({"cached"}, 0)
    assert toy.began() == []


def test_dvc_itself_sees_what_the_runner_recorded(finished_toy: Any) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"], capture_output=True, text=True, check=True
    )
    assert "up to date" in result.stdout
    assert finished_toy.began() == []


def test_a_new_threshold_runs_select_and_later_only_and_the_old_one_comes_back(
    finished_toy: Any,
) -> None:
    finished_toy.set("capfilt.threshold", 0.123)
    first, _ = run(finished_toy)
    assert finished_toy.began() == ["select"]
    assert first == dict.fromkeys(ALL, "cached") | {
        "select": "ran"
    }  # its text is the same, so `finish` is fresh
    finished_toy.set("capfilt.threshold", THRESHOLD)
    second, _ = run(finished_toy)
    assert second["select"] == "restored"
    assert finished_toy.began() == []


def test_changed_and_deleted_outputs_come_back_from_the_cache(finished_toy: Any) -> None:
    text = Path("out/select/text")
    wanted = text.read_text()
    text.unlink()
    Path("reports/train_left.json").unlink()
    outcome, _ = run(finished_toy)
    assert text.read_text() == wanted
    assert outcome["select"] == outcome["train@left"] == "restored"
    assert finished_toy.began() == []
    text.chmod(0o644)
    text.unlink()
    text.write_text("tampered")
    run(finished_toy)
    assert text.read_text() == wanted
    assert finished_toy.began() == []


def test_a_failed_stage_stops_what_depends_on_it_alone_and_the_next_run_goes_on(toy: Any) -> None:
    toy.order(train_left={"exit": 2})
    lines: list[tuple[str, str]] = []
    outcomes, code = run_experiment(
        toy.root, slots=1, say=lambda *line: lines.append(line), done=lambda o: None
    )
    assert states(outcomes) == {
        "prepare": "ran",
        "train@left": "failed",
        "train@right": "ran",
        "select": "skipped",
        "finish": "skipped",
    }
    assert code == 2
    assert ("train@left", "train_left begins") in lines
    failed = next(o for o in outcomes if o.state == "failed")
    assert "exit code 2: train_left begins" in failed.message
    assert re.search(r"train@left +failed +\d+\.\d +ended with exit code 2", summary(outcomes))
    toy.order()
    toy.began()
    second, code = run(toy)
    assert (second["prepare"], second["train@right"], code) == ("cached", "cached", 0)
    assert sorted(toy.began()) == ["finish", "select", "train_left"]


def test_outputs_of_work_that_has_begun_already_stay(finished_toy: Any) -> None:
    """A Job of an earlier run may have made them, and nobody recorded them yet."""
    finished_toy.set("capfilt.threshold", 0.123)
    text = Path("out/select/text")
    keys: list[str] = []
    prepared = versioning.prepare("select", lambda key: keys.append(key) is None)
    assert (prepared.state, [prepared.key]) == ("stale", keys)
    assert text.exists()
    again = versioning.prepare("select", lambda key: False)
    assert (again.state, again.key, text.exists()) == ("stale", prepared.key, False)


def test_siblings_run_side_by_side_and_slots_bound_them(toy: Any) -> None:
    toy.order(train_left={"until": "train_right"}, train_right={"until": "train_left"})
    run(toy)
    toy.order()
    toy.began()
    toy.set("pretrain.steps", 7)
    run(toy, slots=1)
    events = [entry["name"] for entry in toy.log()]  # each once when it began, once when it ended
    assert events[::2] == events[1::2]


def test_inputs_that_change_while_a_stage_runs_are_not_recorded_as_its_cause(toy: Any) -> None:
    toy.order(prepare={"edit": ["raw/words"]})
    outcomes, code = run_experiment(toy.root, say=lambda *_: None, done=lambda _: None)
    assert states(outcomes)["prepare"] == "failed"
    assert "raw changed while it ran" in outcomes[0].message
    assert code == 2
    assert not Path("dvc.lock").exists()


def test_a_missing_dependency_is_named_and_outputs_of_others_stay(finished_toy: Any) -> None:
    (finished_toy.root / "raw/words").unlink()
    (finished_toy.root / "raw").rmdir()
    outcomes, code = run_experiment(finished_toy.root, say=lambda *_: None, done=lambda _: None)
    assert "prepare needs raw, which is not there" in outcomes[0].message
    assert code == 2
    assert Path("out/finish/text").exists()


def test_targets_take_what_they_need_along(toy: Any) -> None:
    outcome, _ = run(toy, targets=("train",))
    assert sorted(outcome) == ["prepare", "train@left", "train@right"]
    outcome, _ = run(toy, targets=("select",))
    assert sorted(outcome) == ["prepare", "select", "train@left"]
    with pytest.raises(ConfigError, match=r"called 'trian'; did you mean train\?"):
        run(toy, targets=("trian",))


def test_a_preempted_stage_has_not_failed_and_goes_on_in_the_next_run(toy: Any) -> None:
    """Told to leave by another than us: not tried again at once, and no failure."""
    graph = Path("dvc.yaml")
    graph.write_text(graph.read_text().replace("meta: {weight: 5}", "meta: {retries: 1}"))
    toy.order(train_left={"exit": 143})
    outcomes, code = run_experiment(toy.root, slots=1, say=lambda *_: None, done=lambda _: None)
    assert states(outcomes)["train@left"] == "stopped"
    assert states(outcomes)["train@right"] == "ran"
    assert code == 143
    assert "was pre-empted: the next run goes on from where it was" in summary(outcomes)
    assert [entry["name"] for entry in toy.log()].count("train_left") == 1
    toy.order()
    second, code = run(toy)
    assert (second["train@right"], second["train@left"], code) == ("cached", "ran", 0)


def test_a_crash_is_tried_again_and_a_user_error_is_not(toy: Any) -> None:
    graph = Path("dvc.yaml")
    graph.write_text(graph.read_text().replace("meta: {weight: 5}", "meta: {retries: 1}"))
    toy.order(train_left={"exit": 3}, train_right={"exit": 2})
    _, code = run(toy, slots=1)
    assert sorted(toy.began()) == ["prepare", "train_left", "train_left", "train_right"]
    assert code == 3


def test_a_stage_is_stopped_at_its_timeout(toy: Any) -> None:
    graph = Path("dvc.yaml")
    graph.write_text(graph.read_text().replace("meta: {weight: 5}", "meta: {timeout_seconds: 0.5}"))
    toy.order(train_left={"sleep": 600})
    outcomes, code = run_experiment(toy.root, say=lambda *_: None, done=lambda _: None)
    assert {o.name: o.code for o in outcomes}["train@left"] == code == 124
    assert alive(toy) == []


RUNNER = """
import pathlib, sys
from blip.integrations.experiment import run_experiment
_, code = run_experiment(pathlib.Path.cwd(), say=lambda *_: None, done=lambda _: None, slots=2)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_stopped_run_ends_its_stages_and_can_be_taken_up(
    toy: Any, number: signal.Signals, code: int
) -> None:
    toy.order(train_left={"sleep": 600}, train_right={"sleep": 600})
    process = start_and_wait_for_both(toy)
    process.send_signal(number)
    assert process.wait(300) == code
    assert alive(toy) == []
    toy.order()
    toy.began()
    outcome, code = run(toy)
    assert (outcome["prepare"], code) == ("cached", 0)


@pytest.mark.skipif(
    sys.platform != "linux", reason="needs the kernel to tell children of their parent's end"
)
def test_a_killed_runner_takes_its_stages_along(toy: Any) -> None:
    toy.order(train_left={"sleep": 600}, train_right={"sleep": 600})
    process = start_and_wait_for_both(toy)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 300
    while alive(toy) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(toy) == []
    toy.order()
    toy.began()
    outcome, code = run(toy)
    assert (outcome["prepare"], code) == ("cached", 0)


def start_and_wait_for_both(toy: Any) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", RUNNER])
    deadline = time.monotonic() + 300
    while not {"train_left", "train_right"} <= {e["name"] for e in toy.log()}:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def alive(toy: Any) -> list[int]:
    pids = [entry["pid"] for entry in toy.log() if "pid" in entry]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and _state(pid) != "Z"]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"


def test_the_most_urgent_ready_stage_goes_first() -> None:
    nodes = {
        "a": Node("a", "", upstream=()),
        "b": Node("b", "", upstream=()),
        "c": Node("c", "", upstream=("a",)),
        "d": Node("d", "", upstream=("b",)),
    }
    begun: list[str] = []

    def start(node: Node) -> Future[Outcome]:
        begun.append(node.name)
        future: Future[Outcome] = Future()
        future.set_result(Outcome(node.name, "ran"))
        return future

    urgency = {"a": 2.0, "b": 9.0, "c": 1.0, "d": 8.0}
    outcomes = schedule(nodes, urgency, 1, start, threading.Event(), lambda o: None)
    assert begun == ["b", "d", "a", "c"]
    assert [o.name for o in outcomes] == list(nodes)


def test_the_graph_is_the_one_that_dvc_draws(toy: Any) -> None:
    assert edges_of(versioning.read_graph()) == edges_by_dvc(toy.root)


def edges_of(graph: dict[str, Node]) -> set[tuple[str, str]]:
    return {(upstream, node.name) for node in graph.values() for upstream in node.upstream}


def edges_by_dvc(root: Path) -> set[tuple[str, str]]:
    dot = subprocess.run(
        [sys.executable, "-m", "dvc", "dag", "--dot"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    pairs = [line.rstrip(";").split(" -> ") for line in dot.splitlines() if "->" in line]
    return {(json.loads(a), json.loads(b)) for a, b in pairs}


def test_default_slots_follow_the_threads_of_a_stage() -> None:
    cores = len(os.sched_getaffinity(0))
    assert default_slots(1) == cores
    assert default_slots(10 * cores) == 1


def test_the_plan_puts_the_longest_chain_first(toy: Any) -> None:
    todo = plan(load_config(Path("params.yaml")))
    assert todo.fresh == frozenset()
    assert todo.urgency["train@left"] > todo.urgency["train@right"] > todo.urgency["select"]
