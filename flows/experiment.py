"""The flows: the whole experiment, and its parts for those who schedule or retry them alone.

Every flow takes the same parameters and runs its targets with all they need; what is up to date
costs nothing. A flow runs in the current directory, which is the root of the project.
"""

from textwrap import shorten
from typing import Any, Literal

from prefect import Flow, flow, runtime
from prefect.states import Failed

from blip.errors import BlipError
from blip.integrations.launch import Kind
from flows.form import Overrides, dotted
from flows.stages import flow_state, run_stages

Preset = Literal["demo", "flickr8k", "base_14m", "base_129m", "large_129m"]
AS_IT_IS: Overrides = {}
NAME_LENGTH = 100


def _run_name() -> str:
    """Name a flow run after what is special about it."""
    parameters = runtime.flow_run.parameters
    special = [f"{key}={value}" for key, value in dotted(parameters["overrides"]).items()]
    name = parameters["name"] or parameters["preset"] or "params.yaml"
    return shorten(" ".join([name, *special]), NAME_LENGTH, placeholder=" ...")


def _flow(name: str, targets: tuple[str, ...], description: str) -> Flow[..., Any]:
    @flow(
        name=name,
        description=description,
        flow_run_name=_run_name,
        persist_result=False,
    )
    def run(
        name: str | None = None,
        preset: Preset | None = None,
        overrides: Overrides = AS_IT_IS,
        launcher: Kind = "local",
        slots: int | None = None,
        share: bool = False,
    ) -> Any:
        """Run stages of an experiment.

        Args:
            name: A name of your own for the experiment.
            preset: Start from this preset instead of params.yaml.
            overrides: What differs from the parameters, e.g. {"capfilt": {"threshold": 0.7}}: a
                section merges into theirs, a dotted key sets its value as `blip run --set` does.
                With a name, a preset or overrides it runs in a git worktree of its own.
            launcher: Where the stages run.
            slots: How many stages may run at once; by default as many as the cores hold.
            share: Fetch known results from the DVC remote first, and push the results at the end.
        """
        try:
            outcomes = run_stages(
                targets,
                name=name,
                preset=preset,
                overrides=dotted(overrides),
                launcher=launcher,
                slots=slots,
                share=share,
            )
        except BlipError as error:
            return Failed(message=str(error), data=error)
        return flow_state(outcomes)

    return run


PARTS = {
    "prepare": ("tokenizer",),
    "pretrain": ("pretrain@unfiltered", "pretrain@human"),
    "bootstrap": ("select",),
    "finetune": ("finetune",),
    "evaluate": ("compare", "evaluate_filter", "promote"),
}

experiment = _flow("experiment", (), "The whole bootstrapping loop, from raw pairs to the report")
prepare = _flow("prepare", PARTS["prepare"], "Ingest, validate and learn the vocabulary")
pretrain = _flow("pretrain", PARTS["pretrain"], "Pre-train on the pairs as they come")
bootstrap = _flow("bootstrap", PARTS["bootstrap"], "CapFilt: make the bootstrapped corpus")
finetune = _flow("finetune", PARTS["finetune"], "Pre-train on it too, and fine-tune every arm")
evaluate = _flow("evaluate", PARTS["evaluate"], "Measure, compare and promote")
