"""A study: variations of an experiment over several seeds, run side by side, resumable, and summed up on one page.

Each variation with each seed is an experiment as `blip run` runs it, in a process of its own; what two of them have in
common is computed once, since they share the cache. Nothing is repeated when the study is called again.
"""

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from blip.config import Section, read_yaml
from blip.errors import ConfigError, IntegrationError
from blip.files import read_json, write_text
from blip.integrations.experiment import describe
from blip.report.charts import IntervalRow, interval_chart
from blip.report.figure import Figure

ARMS = ("unfiltered", "human", "bootstrapped")
TARGETS = ("compare", "evaluate_filter")
# Two-sided 95 %, by number of seeds; beyond the last, it makes intervals a little too wide.
T_QUANTILE = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}


class Study(Section):
    """`docs/study.yaml`: a preset, overrides for all, seeds, and the variations by name."""

    preset: Literal["demo", "flickr8k"]
    base: dict[str, Any]
    seeds: list[int]
    variations: dict[str, dict[str, Any]]

    def overrides(self, variation: str, seed: int) -> dict[str, Any]:
        """Give the overrides of one experiment."""
        return {**self.base, "seed": seed, **self.variations[variation]}


@dataclass(frozen=True)
class Result:
    """What one arm of one experiment reached.

    Attributes:
        variation: Of the study.
        seed: Of the experiment.
        arm: One of `ARMS`.
        recall: Mean of text and image R@1 of the fine-tuned model, in per cent.
        cider: CIDEr of the fine-tuned model, in per cent.
    """

    variation: str
    seed: int
    arm: str
    recall: float
    cider: float


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % t-interval (endless for a single seed)."""

    mean: float
    low: float
    high: float

    def words(self, sign: bool = False, decimals: int = 1) -> str:
        """Give `mean [low, high]`."""
        form = f"{'+' if sign else ''}.{decimals}f"
        if math.isinf(self.low):
            return f"{self.mean:{form}}"
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"


def load_study(path: Path) -> Study:
    """Read a study.

    Raises:
        ConfigError: It cannot be read, or a key is unknown or of the wrong type.
    """
    try:
        return Study.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(
            f"{path}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}"
        ) from None


def run_study(checkout: Path, study: Study, slots: int, say: Callable[[str], None]) -> None:
    """Run what is missing, `slots` experiments at a time.

    The first variation of every seed goes first, since the others build on it.

    Raises:
        IntegrationError: An experiment failed; its log is named. The others were finished.
    """
    logs = checkout / "runs" / "study"
    logs.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    first, *others = study.variations
    total, done = len(study.variations) * len(study.seeds), 0
    for wave in ([first], others):
        with ThreadPoolExecutor(slots) as pool:
            futures = {
                pool.submit(_run, checkout, study, variation, seed, logs): (variation, seed)
                for variation in wave
                for seed in study.seeds
            }
            for future in as_completed(futures):
                variation, seed = futures[future]
                done += 1
                code, log = future.result()
                say(
                    f"{done}/{total}  {variation}, seed {seed}: {'done' if code == 0 else f'failed, see {log}'}"
                )
                failed += [str(log)] if code else []
    if failed:
        raise IntegrationError(
            f"{len(failed)} experiments of the study failed: {', '.join(failed)}"
        )


def read_results(checkout: Path, study: Study) -> list[Result]:
    """Read what every finished arm reached."""
    results = []
    for variation in study.variations:
        for seed in study.seeds:
            folder = _workspace(checkout, study, variation, seed) / "results"
            for arm in ARMS:
                if (folder / arm / "captioning/metrics.json").is_file():
                    retrieval = read_json(folder / arm / "retrieval/metrics.json")["retrieval"]
                    caption = read_json(folder / arm / "captioning/metrics.json")["captioning"]
                    recall = (retrieval["tr_r1"]["value"] + retrieval["ir_r1"]["value"]) / 2
                    results.append(Result(variation, seed, arm, recall, caption["cider"]["value"]))
    return results


def estimate(values: Sequence[float]) -> Estimate:
    """Give the mean over seeds and its interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, -math.inf, math.inf)
    half = T_QUANTILE[min(len(values), 6)] * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def gains(results: Sequence[Result], variation: str, over: str, metric: str) -> list[float]:
    """Give, seed by seed, by how much the bootstrapped arm is ahead of another arm of the same experiment."""
    of = {(r.seed, r.arm): getattr(r, metric) for r in results if r.variation == variation}
    seeds = sorted({seed for seed, _ in of})
    return [
        of[s, "bootstrapped"] - of[s, over]
        for s in seeds
        if {(s, "bootstrapped"), (s, over)} <= of.keys()
    ]


def write_page(checkout: Path, study: Study, out: Path) -> None:
    """Write the page of a study and its pictures beside it.

    Raises:
        IntegrationError: No experiment of it is finished.
    """
    results = read_results(checkout, study)
    finished = [v for v in study.variations if any(r.variation == v for r in results)]
    if not finished:
        raise IntegrationError("no experiment of the study is finished: run `blip study` first")
    write_text(out.parent / "pictures/study.svg", _picture(results, finished).picture())
    base = ", ".join(f"`{key}={value}`" for key, value in study.base.items()) or "nothing"
    lines = [
        "# Study: what bootstrapping gains, and when",
        "",
        f"Made by `make study` from `{out.with_suffix('.yaml').name}`: preset `{study.preset}` with {base}; "
        f"seeds {', '.join(map(str, study.seeds))}; equal steps for every arm. Numbers are means over seeds "
        "with 95 % t-intervals over the seeds (few, so wide), of the fine-tuned models on the test images; "
        "gains are paired by seed.",
        "",
        "![Gains of the bootstrapped arm](pictures/study.svg)",
        "",
        "## Arms",
        "",
        "| arm | seeds | R@1 (mean of text and image) | CIDEr |",
        "|---|---|---|---|",
        _arm_row(results, finished[0], "unfiltered", "unfiltered: web + human"),
        _arm_row(results, finished[0], "human", "human only"),
        *(
            _arm_row(results, variation, "bootstrapped", f"bootstrapped: {variation}")
            for variation in finished
        ),
        "",
        "## Gains of the bootstrapped arm",
        "",
        "| variation | R@1 over unfiltered | CIDEr over unfiltered | R@1 over human only | CIDEr over human only "
        "| ahead in seeds (R@1, CIDEr) of unfiltered / of human |",
        "|---|---|---|---|---|---|",
        *(_gain_row(results, variation) for variation in finished),
        "",
        *_human_sizes(results, finished),
        *_filter_lines(checkout, study, finished[0]),
    ]
    write_text(out, "\n".join(lines).rstrip() + "\n")


def _run(checkout: Path, study: Study, variation: str, seed: int, logs: Path) -> tuple[int, Path]:
    log = logs / f"{variation.replace(' ', '-')}-{seed}.log"
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    with log.open("ab") as words:
        done = subprocess.run(
            [sys.executable, "-m", "blip", *run_arguments(study, variation, seed)],
            cwd=checkout,
            env=environment,
            stdout=words,
            stderr=words,
            check=False,
        )
    return done.returncode, log


def run_arguments(study: Study, variation: str, seed: int) -> list[str]:
    """Give the command line of `blip` that runs one experiment of a study."""
    overrides = study.overrides(variation, seed)
    sets = [f"--set={key}={json.dumps(value)}" for key, value in overrides.items()]
    return ["run", *TARGETS, "--preset", study.preset, *sets, "--slots", "1"]


def _workspace(checkout: Path, study: Study, variation: str, seed: int) -> Path:
    return describe(checkout, None, study.preset, study.overrides(variation, seed)).workspace


def _arm_row(results: Sequence[Result], variation: str, arm: str, label: str) -> str:
    rows = [r for r in results if (r.variation, r.arm) == (variation, arm)]
    recall, cider = (estimate([getattr(r, m) for r in rows]) for m in ("recall", "cider"))
    return f"| {label} | {len(rows)} | {recall.words()} | {cider.words()} |"


def _gain_row(results: Sequence[Result], variation: str) -> str:
    cells, ahead = [], []
    for over in ("unfiltered", "human"):
        for metric in ("recall", "cider"):
            values = gains(results, variation, over, metric)
            cells.append(estimate(values).words(sign=True))
            ahead.append(f"{sum(v > 0 for v in values)} of {len(values)}")
    return (
        f"| {variation} | {' | '.join(cells)} | {ahead[0]}, {ahead[1]} / {ahead[2]}, {ahead[3]} |"
    )


def _human_sizes(results: Sequence[Result], finished: Sequence[str]) -> list[str]:
    sizes = [v for v in finished if "human images" in v]
    if not sizes:
        return []
    lines = [
        "## How much human data until the web matters",
        "",
        "| human data | unfiltered R@1, CIDEr | human only R@1, CIDEr | bootstrapped R@1, CIDEr |",
        "|---|---|---|---|",
    ]
    for variation in (finished[0], *sizes):
        cells = []
        for arm in ARMS:
            rows = [r for r in results if (r.variation, r.arm) == (variation, arm)]
            cells.append(
                ", ".join(
                    f"{statistics.fmean(getattr(r, m) for r in rows):.1f}"
                    for m in ("recall", "cider")
                )
            )
        name = "the preset's" if variation == finished[0] else variation
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _filter_lines(checkout: Path, study: Study, variation: str) -> list[str]:
    """Tell the filter's precision, recall and area, and by kind of noise, as means over seeds."""
    measured = []
    for seed in study.seeds:
        path = _workspace(checkout, study, variation, seed) / "results/filter/metrics.json"
        if path.is_file():
            measured.append(read_json(path)["filter"])
    if not measured or "auc" not in measured[0]:
        return []

    def mean(*keys: str) -> str:
        return estimate([_value(document, keys) for document in measured]).words(decimals=2)

    lines = [
        "## The filter",
        "",
        f"Of variation `{variation}`, as shares; area under the ROC curve of clean against each kind.",
        "",
        "| precision | recall | area | synthetic captions rejected | true before filter | true after |",
        "|---|---|---|---|---|---|",
        f"| {mean('precision')} | {mean('recall')} | {mean('auc')} | {mean('noise_ratio')} "
        f"| {mean('synthetic_true')} | {mean('synthetic_true_kept')} |",
        "",
        "| kind of noise | area against clean | kept |",
        "|---|---|---|",
    ]
    for kind in measured[0]["kinds"]:
        area = mean("kinds", kind, "auc") if kind != "clean" else "-"
        lines.append(f"| {kind} | {area} | {mean('kinds', kind, 'kept')} |")
    return [*lines, ""]


def _value(document: Mapping[str, Any], keys: Sequence[str]) -> float:
    node: Any = document
    for key in keys:
        node = node[key]
    return float(node["value"])


def _picture(results: Sequence[Result], finished: Sequence[str]) -> Figure:
    charts = []
    for metric, heading in (("recall", "R@1"), ("cider", "CIDEr")):
        for over in ("unfiltered", "human"):
            rows = []
            for variation in finished:
                gain = estimate(gains(results, variation, over, metric))
                low, high = (
                    (gain.mean, gain.mean) if math.isinf(gain.low) else (gain.low, gain.high)
                )
                numbers = f"{low:+.1f} to {high:+.1f}"
                rows.append(
                    IntervalRow(
                        variation,
                        "series-blue" if low > 0 or high < 0 else "series-slate",
                        gain.mean,
                        low,
                        high,
                        f"{gain.mean:+.1f}",
                        numbers,
                    )
                )
            ends = [end for row in rows for end in (row.low, row.high)]
            charts.append(interval_chart(f"{heading} over {over}", rows, "points", ends, 480, 140))
    return Figure("study", charts)
