"""Runs the graph of an experiment: plan, prepare, launch, record, and a schedule over them.

A stage that is up to date is left alone, one whose result an equal run left in the cache is
restored, and only what remains is launched. A failed stage stops what depends on it and nothing
else; the next run goes on from there. The Prefect flows wrap the same functions, so that both ways
of running cannot differ.
"""

import contextlib
import heapq
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from blip.config import Config
from blip.errors import BlipError, ConfigError, DataError
from blip.files import digest_json, lock
from blip.integrations import pinning, versioning
from blip.integrations.launch import (
    TIMED_OUT,
    Launcher,
    StageFailedError,
    StoppedError,
)
from blip.integrations.versioning import Node
from blip.torchrun import USER_ERROR

log = logging.getLogger(__name__)

State = Literal["cached", "restored", "ran", "failed", "skipped", "stopped"]
GOOD: frozenset[State] = frozenset({"cached", "restored", "ran"})
CLAIM_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """What became of a stage.

    Attributes:
        name: The stage.
        state: `cached` (was up to date), `restored` (from the cache), `ran`, `failed`, `skipped`
            (something upstream failed) or `stopped` (with the run, or pre-empted).
        seconds: How long it took.
        message: Why it failed or was skipped.
        code: The exit code to carry on: 0 where good, 2 for the user's errors, 143 if pre-empted.
    """

    name: str
    state: State
    seconds: float = 0.0
    message: str = ""
    code: int = 0

    @property
    def good(self) -> bool:
        """Whether the stage's result is there."""
        return self.state in GOOD


@dataclass(frozen=True)
class Plan:
    """What a run is about: the nodes to visit, and which of them are known to be up to date.

    Attributes:
        nodes: The nodes by name, upstream first.
        fresh: Names of those that are up to date with everything upstream.
        urgency: For each node the weight of the longest chain from it to the end, itself included.
    """

    nodes: Mapping[str, Node]
    fresh: frozenset[str]
    urgency: Mapping[str, float]

    def split(self) -> tuple[list[Node], dict[str, Node]]:
        """Give the nodes known to be up to date, and the rest by name, both in graph order."""
        rest = {name: node for name, node in self.nodes.items() if name not in self.fresh}
        return [node for node in self.nodes.values() if node.name in self.fresh], rest


@dataclass
class Run:
    """A run under way: where its stages go, and how it is stopped.

    Attributes:
        launcher: Where commands run.
        claims: Folder of locks by which runs in other workspaces see that a stage is being
            computed.
        pull: Whether to fetch known results from the remote.
    """

    launcher: Launcher
    claims: Path
    pull: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """End the stages under way and begin no other. Safe in a signal handler."""
        self.stopped.set()
        self.launcher.stop()


def plan(config: Config, targets: Iterable[str] = ()) -> Plan:
    """Read the graph of the current workspace and see what is up to date.

    Args:
        config: The experiment.
        targets: Names of stages, or of groups of them (`finetune`), to run with all that they need;
            none means all.

    Raises:
        ConfigError: A target names no stage.
    """
    graph, stale = versioning.survey()
    nodes = _with_generator(_select(graph, list(targets)), config)
    stale |= {node.name for node in nodes.values() if _other_world(node, config)}
    fresh: set[str] = set()
    for node in nodes.values():
        if node.name not in stale and fresh.issuperset(node.upstream):
            fresh.add(node.name)
    return Plan(nodes, frozenset(fresh), _urgency(nodes))


def _select(graph: Mapping[str, Node], targets: list[str]) -> dict[str, Node]:
    """Keep the wanted stages and what they need; pinned data that none of them reads are left."""
    wanted = (
        {name for name, node in graph.items() if node.command is not None} if not targets else set()
    )
    for target in targets:
        named = {name for name in graph if name == target or name.split("@")[0] == target}
        if not named:
            raise ConfigError(
                f"no stage or group of stages is called {target!r}; {versioning.suggest(target, graph)}"
            )
        wanted |= named
    for name in reversed(list(graph)):
        if name in wanted:
            wanted.update(graph[name].upstream)
    return {name: node for name, node in graph.items() if name in wanted}


def _with_generator(nodes: dict[str, Node], config: Config) -> dict[str, Node]:
    """Say for pinned data that this experiment's world makes how to make them."""
    if config.world is None:
        return nodes
    return {
        name: replace(node, command=f"blip world {node.outs[0]}") if node.made_from else node
        for name, node in nodes.items()
    }


def _other_world(node: Node, config: Config) -> bool:
    if not node.made_from or config.world is None:
        return False
    return node.made_from != digest_json(config.world.model_dump(mode="json"))


def _urgency(nodes: Mapping[str, Node]) -> dict[str, float]:
    urgency = {name: node.weight for name, node in nodes.items()}
    for node in reversed(list(nodes.values())):
        for upstream in node.upstream:
            urgency[upstream] = max(urgency[upstream], nodes[upstream].weight + urgency[node.name])
    return urgency


def run_node(node: Node, run: Run, say: Callable[[str], None]) -> State:
    """Bring one node up to date, its upstream being so: leave, restore, or launch and record.

    Raises:
        BlipError: It cannot be run (`StageFailedError` carries an exit code; `StoppedError` says
            that the run ends).
    """
    if node.pinned:
        return _bring_data(node, run, say)
    assert node.command is not None

    def begun(key: str) -> bool:
        return run.launcher.begun(node, key)

    prepared = versioning.prepare(node.name, begun, pull=run.pull)
    if prepared.state != "stale":
        return prepared.state
    with _claim(run, prepared.key) as waited:
        if waited:  # the other workspace may have computed just this
            prepared = versioning.prepare(node.name, begun)
            if prepared.state != "stale":
                return prepared.state
        assert prepared.inputs is not None
        run.launcher.launch(node, prepared.key, say)
        versioning.record(node.name, prepared.inputs)
        run.launcher.recorded(node, prepared.key)
    return "ran"


def _bring_data(node: Node, run: Run, say: Callable[[str], None]) -> State:
    """Bring pinned data: from the cache, and by their generator, which leaves right ones alone."""
    state = pinning.keep_data(node.name)
    if node.command is not None:
        with _claim(run, node.name):
            run.launcher.launch(node, node.name, say)
        return "ran"
    if state == "missing":
        raise DataError(
            f"{', '.join(node.outs)}: not there: put it there, or fetch it: dvc pull {node.name}"
        )
    if state == "changed":
        raise DataError(
            f"{', '.join(node.outs)}: not what {node.name} pins: accept it: dvc commit {node.name}"
        )
    return state


@contextlib.contextmanager
def _claim(run: Run, key: str) -> Iterator[bool]:
    """Hold the right to compute a result; yields whether another run had it and was waited for."""
    waited = False
    with contextlib.ExitStack() as stack:
        while key:
            try:
                stack.enter_context(lock(run.claims / key, "an equal stage"))
                break
            except BlipError as busy:
                if not waited:
                    log.info("%s; waiting for its result", str(busy).split(":")[0])
                waited = True
                if run.stopped.wait(CLAIM_SECONDS):
                    raise StoppedError("was not begun") from None
        yield waited


def attempt(node: Node, run: Run, say: Callable[[str], None]) -> Outcome:
    """Bring one node up to date and give what became of it, errors included."""
    began = time.monotonic()

    def outcome(state: State, message: str = "", code: int = 0) -> Outcome:
        return Outcome(node.name, state, time.monotonic() - began, message, code)

    try:
        return outcome(run_node(node, run, say))
    except StoppedError as error:
        return outcome("stopped", str(error), error.code)
    except StageFailedError as error:
        return outcome("failed", str(error), error.code)
    except BlipError as error:
        return outcome("failed", str(error), USER_ERROR)


def worth_another_try(outcome: Outcome) -> bool:
    """Tell a crash, which may pass, from an error that would come again: bad input, a timeout."""
    return outcome.state == "failed" and outcome.code not in (USER_ERROR, TIMED_OUT)


def schedule(
    nodes: Mapping[str, Node],
    urgency: Mapping[str, float],
    slots: int,
    start: Callable[[Node], Future[Outcome]],
    stopped: threading.Event,
    done: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run nodes in the graph's order, the most urgent ready one first, at most `slots` at once.

    Args:
        nodes: What to run; an upstream that is not among them counts as done.
        urgency: Priority of each node.
        slots: How many may be under way.
        start: Begins one node; its future gives an `Outcome`.
        stopped: Once set, nothing more is begun.
        done: Told each outcome, in the caller's thread, as it comes.

    Returns:
        The outcomes of all nodes in the graph's order.
    """
    waiting = {name: {u for u in node.upstream if u in nodes} for name, node in nodes.items()}
    ready = [(-urgency[name], name) for name, upstream in waiting.items() if not upstream]
    heapq.heapify(ready)
    ended: queue.SimpleQueue[Future[Outcome]] = queue.SimpleQueue()
    outcomes: dict[str, Outcome] = {}
    running = 0

    def settle(outcome: Outcome) -> None:
        outcomes[outcome.name] = outcome
        done(outcome)
        for name, upstream in waiting.items():
            if outcome.name in upstream:
                upstream.discard(outcome.name)
                if not upstream:
                    heapq.heappush(ready, (-urgency[name], name))

    while len(outcomes) < len(nodes):
        while ready and running < slots:
            name = heapq.heappop(ready)[1]
            bad = [u for u in nodes[name].upstream if u in outcomes and not outcomes[u].good]
            if bad:
                settle(Outcome(name, "skipped", message=f"{bad[0]} is missing"))
            elif stopped.is_set():
                settle(Outcome(name, "stopped", message="was not begun"))
            else:
                start(nodes[name]).add_done_callback(ended.put)
                running += 1
        if running:
            outcome = ended.get().result()
            running -= 1
            settle(outcome)
    return [outcomes[name] for name in nodes]


def run_plan(
    todo: Plan,
    run: Run,
    slots: int,
    say: Callable[[str, str], None],
    done: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run a plan in threads of this process.

    Args:
        todo: The plan.
        run: Where its stages go, and how it is stopped.
        slots: How many stages may run at once.
        say: Told each line that a stage prints: the stage's name and the line.
        done: Told the outcome of each stage as it ends.
    """
    fresh, rest = todo.split()
    outcomes = {node.name: Outcome(node.name, "cached") for node in fresh}
    for outcome in outcomes.values():
        done(outcome)
    with ThreadPoolExecutor(max_workers=slots, thread_name_prefix="stage") as pool:

        def persist(node: Node) -> Outcome:
            for _ in range(node.retries):
                outcome = attempt(node, run, lambda line: say(node.name, line))
                if not worth_another_try(outcome):
                    return outcome
                say(node.name, f"{outcome.message}; trying again")
            return attempt(node, run, lambda line: say(node.name, line))

        def start(node: Node) -> Future[Outcome]:
            return pool.submit(persist, node)

        rest_outcomes = schedule(rest, todo.urgency, slots, start, run.stopped, done)
    outcomes |= {outcome.name: outcome for outcome in rest_outcomes}
    return [outcomes[name] for name in todo.nodes]


def default_slots(threads: int) -> int:
    """Give how many stages of so many threads this machine's cores can run at once."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, cores // threads)


@contextlib.contextmanager
def stop_on_signal(run: Run) -> Iterator[list[int]]:
    """Stop a run in good order at SIGTERM or Ctrl-C; yields the signals that came. Main thread."""
    came: list[int] = []

    def handle(number: int, frame: object) -> None:
        came.append(number)
        run.stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def exit_code(outcomes: Iterable[Outcome], signals: list[int]) -> int:
    """Give a run's exit code: 128 + n after signal n, else that of the first stage that went wrong.

    A failed stage comes before one that was pre-empted; where there is neither, the code is 0.
    """
    if signals:
        return 128 + signals[0]
    wrong = [outcome for outcome in outcomes if outcome.state in ("failed", "stopped")]
    wrong.sort(key=lambda outcome: outcome.state)
    return next((o.code or int(o.state == "failed") for o in wrong), 0)


def summary(outcomes: Iterable[Outcome]) -> str:
    """Give the table of a run: stage, state, seconds, and why where it went wrong."""
    rows = [(o.name, o.state, f"{o.seconds:8.1f}", o.message) for o in outcomes]
    width = max([len("stage"), *(len(row[0]) for row in rows)])
    lines = [f"{'stage':<{width}}  {'state':<8}  {'seconds':>8}"]
    lines += [
        f"{name:<{width}}  {state:<8}  {seconds}  {message}".rstrip()
        for name, state, seconds, message in rows
    ]
    return "\n".join(lines)
