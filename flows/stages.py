"""Runs the graph of an experiment with Prefect: each stage a task, run by `blip`'s own runner."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed

from blip.integrations.cluster.settings import load_cluster
from blip.integrations.experiment import begin, finish, following, open_experiment
from blip.integrations.launch import Kind
from blip.integrations.runner import (
    Outcome,
    Plan,
    Run,
    attempt,
    default_slots,
    plan,
    schedule,
    worth_another_try,
)
from blip.integrations.versioning import Node
from flows.server import await_server
from flows.turns import Turns

RETRY_SECONDS = 10.0


def run_stages(
    targets: tuple[str, ...],
    *,
    name: str | None,
    preset: str | None,
    overrides: dict[str, Any],
    launcher: Kind,
    slots: int | None,
    share: bool,
) -> list[Outcome]:
    """Run stages of an experiment with all they need, as tasks of the current flow run.

    The arguments are those of `blip.integrations.experiment.run_experiment`. A cancelled or
    terminated flow takes the processes of its stages along: Prefect raises in this thread, and left
    alone would wait for them.
    """
    with open_experiment(Path.cwd(), name, preset, overrides) as experiment:
        run = begin(experiment, launcher, share)
        if launcher == "kubernetes":
            run.launcher = Turns(run.launcher, load_cluster(), run.stopped)
        todo = plan(experiment.config, targets)
        with following(experiment):
            try:
                outcomes = _Tasks(todo, run).run(slots or default_slots(experiment.config.threads))
            except BaseException:
                run.stop()
                raise
        finish(experiment, outcomes, share)
    return outcomes


def flow_state(outcomes: list[Outcome]) -> State[Any]:
    """Give the state that a flow run ends in; after a failed one the next does what is missing."""
    states = [outcome.state for outcome in outcomes]
    told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    failed = [
        f"{outcome.name} {outcome.message}" for outcome in outcomes if outcome.state == "failed"
    ]
    if failed:
        return Failed(message=f"{told}; {'; '.join(failed)}", data=outcomes)
    if "stopped" in states:
        return Cancelled(message=told, data=outcomes)
    return Completed(message=told, data=outcomes)


class _Tasks:
    """The tasks of one flow run."""

    def __init__(self, todo: Plan, run: Run) -> None:
        self._todo = todo
        self._run = run
        self._log = get_run_logger()
        self._futures: dict[str, PrefectFuture[Any]] = {}

    def run(self, slots: int) -> list[Outcome]:
        """Run the plan: what is known to be up to date at once, the rest in its order."""
        fresh, rest = self._todo.split()
        outcomes = [Outcome(node.name, "cached") for node in fresh]
        for node, outcome in zip(fresh, outcomes, strict=True):
            self._show(node, outcome)
        outcomes += schedule(
            rest, self._todo.urgency, slots, self._start, self._run.stopped, self._tell
        )
        for future in self._futures.values():
            future.wait()
        return outcomes

    def _start(self, node: Node) -> Future[Outcome]:
        ended: Future[Outcome] = Future()
        last = Outcome(node.name, "failed", message="its task did not run", code=1)

        def bring(name: str) -> State[Any]:
            nonlocal last
            last = attempt(node, self._run, get_run_logger().info)
            self._await_server()
            return _state(last)

        self._submit(node, bring, node.upstream).add_done_callback(lambda _: ended.set_result(last))
        return ended

    def _show(self, node: Node, outcome: Outcome) -> None:
        """Show a stage that needs no work, or gets none; on a failed one it cannot wait."""
        upstream = node.upstream if outcome.good else ()
        self._submit(node, lambda name: _state(outcome), upstream)

    def _submit(
        self, node: Node, body: Callable[[str], State[Any]], upstream: tuple[str, ...]
    ) -> PrefectFuture[Any]:
        self._await_server()
        known = [self._futures[name] for name in upstream if name in self._futures]
        future: PrefectFuture[Any] = _task(node, body).submit(
            node.name, return_state=False, wait_for=known
        )
        self._futures[node.name] = future
        return future

    def _await_server(self) -> None:
        await_server(self._run.stopped, self._log.warning)

    def _tell(self, outcome: Outcome) -> None:
        reason = f": {outcome.message}" if outcome.message else ""
        self._log.info("%s: %s%s", outcome.name, outcome.state, reason)
        if outcome.name not in self._futures:
            self._show(self._todo.nodes[outcome.name], outcome)


def _task(node: Node, body: Callable[[str], State[Any]]) -> Task[[str], State[Any]]:
    """Make the task of a stage; nothing goes into Prefect's cache, since DVC knows what is new."""
    decorate = task(
        name=node.name,
        description=node.description,
        task_run_name=node.name,
        tags=[node.name.split("@")[0]],
        retries=node.retries,
        retry_delay_seconds=RETRY_SECONDS,
        retry_condition_fn=_retry,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    return decorate(body)


def _retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.data, Outcome) and worth_another_try(state.data)


def _state(outcome: Outcome) -> State[Any]:
    """Give a task's state, named after how its result came to be."""
    match outcome.state:
        case "cached":
            return Completed(name="Cached", message="up to date in dvc.lock")
        case "restored":
            return Completed(name="Restored", message="the result of an equal run, from the cache")
        case "ran":
            return Completed(message=f"ran {outcome.seconds:.1f} s")
        case "failed":
            return Failed(message=outcome.message, data=outcome)
        case _:
            return Cancelled(name=outcome.state.capitalize(), message=outcome.message)
