"""The sections of the report: numbers from the files, and nothing where there are none."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from blip.config import Config
from blip.data.truth import read_truth
from blip.errors import DataError
from blip.files import read_json, write_json, write_text
from blip.report.arms import read_arms
from blip.report.cost import clock, cost_section, read_costs
from blip.report.curves import curves_section, smooth
from blip.report.examples import choose, image_uri, read_examples
from blip.report.filtering import filter_section
from blip.report.gallery import PER_GROUP, gallery_section
from blip.report.headline import headline_section
from blip.report.provenance import count_parameters, model_names
from blip.report.records import read_columns
from blip.report.versions import read_corpus, read_versions

BOOTSTRAPPED = "datasets/bootstrapped"


def test_arms_are_the_known_ones_then_others(root: Path) -> None:
    write_json(root / "models/extra/stage.json", {"stage": "pretrain"})
    arms = read_arms(root)
    assert [arm.name for arm in arms] == ["unfiltered", "human", "bootstrapped", "extra"]
    assert len({arm.series for arm in arms}) == 4  # captioner and filter are no arms


def test_headline_has_every_number(finished: Path) -> None:
    section = headline_section(finished, read_arms(finished), {}, 0.95)
    difference = read_json(finished / "results/comparison/unfiltered/metrics.json")["retrieval"][
        "tr_r1"
    ]
    assert f"+{difference['difference']:.1f}" in section.content
    for arm in ("unfiltered", "human", "bootstrapped"):
        cider = read_json(finished / f"results/{arm}/captioning/metrics.json")["captioning"][
            "cider"
        ]
        assert f"{cider['low']:.1f} to {cider['high']:.1f}" in section.content
    assert len(section.figures[0].charts) == 4  # two tasks, two baselines


def test_headline_of_one_arm_alone(root: Path) -> None:
    for folder in ("results/comparison", "results/human", "results/unfiltered"):
        shutil.rmtree(root / folder)
    section = headline_section(root, read_arms(root), {}, 0.95)
    assert section.title == "No comparison with the unfiltered corpus yet"
    assert "Bootstrapped" in section.content
    assert "Human only" not in section.content
    assert not section.figures


def test_smoothing_keeps_a_line_and_calms_noise() -> None:
    line = np.arange(100.0)
    assert smooth(line.tolist(), [50], 3.0) == pytest.approx([50.0])
    noise = np.random.default_rng(0).normal(size=1000)
    assert np.std(smooth(noise.tolist(), range(100, 900), 5.0)) < 0.4 * np.std(noise)


def test_curves_leave_out_what_was_not_logged(root: Path) -> None:
    write_text(root / "models/human/curves.csv", "step,loss_itc,loss_itm\n10,5.0,\n20,4.0,\n")
    section = curves_section(root, read_arms(root))
    assert section is not None
    itc, itm, *_ = section.figures[0].charts
    assert itc.svg().count('class="line') == 3
    assert itm.svg().count('class="line') == 2
    write_text(root / "models/human/curves.csv", "step,loss_itc\n10,five\n")
    with pytest.raises(DataError, match=r"human/curves.csv: a field is not a number .*five"):
        curves_section(root, read_arms(root))


def test_long_curves_are_thinned(root: Path) -> None:
    rows = "".join(f"{step},{step / 7}\n" for step in range(20_000))
    write_text(root / "models/human/curves.csv", f"step,loss_itc\n{rows}")
    section = curves_section(root, read_arms(root)[1:2])
    assert section is not None
    assert len(section.content) < 20_000


def test_columns_of_an_absent_file_are_none(tmp_path: Path) -> None:
    assert read_columns(tmp_path / "no.csv") == {}


def test_groups_of_the_gallery_hold_what_they_say(finished: Path, config: Config) -> None:
    examples = read_examples(finished / BOOTSTRAPPED, read_truth(Path(config.evaluate.truth or "")))
    assert len(examples) == 120
    noisy_kept = [e for e in examples if e.has("web", True, clean=False)]
    assert noisy_kept
    assert all(e.texts["web"]["itm_score"] > 0.5 for e in noisy_kept)
    assert not any(e.texts["web"]["kind"] == "clean" for e in noisy_kept)
    dropped = [e for e in examples if e.has("web", False, clean=False)]
    kinds = [e.texts["web"]["kind"] for e in choose(dropped, 5)]
    assert len(set(kinds)) == 5  # kinds take turns
    assert choose(dropped[::-1], 5) == choose(dropped, 5)  # whatever the order


def test_gallery_escapes_captions(finished: Path, config: Config) -> None:
    truths = read_truth(Path(config.evaluate.truth or ""))
    section = gallery_section(finished / BOOTSTRAPPED, truths, 10**6)
    assert section is not None
    assert "&lt;script&gt;alert" in section.content
    assert "<script" not in section.content + section.figures[0].picture()
    assert section.content.count("<article") <= 6 * PER_GROUP
    assert "Noise, wrongly kept" in section.content


def test_gallery_without_truth(finished: Path) -> None:
    section = gallery_section(finished / BOOTSTRAPPED, [], 10**6)
    assert section is not None
    assert "Web text dropped" in section.content
    assert "wrong" not in section.content
    assert gallery_section(finished / "datasets/web", [], 10**6) is None  # nobody judged it
    assert gallery_section(finished / "datasets/none", [], 10**6) is None


def test_large_images_become_small() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (700, 900, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    uri = image_uri(file.getvalue(), "png", 10**6)
    assert uri.startswith("data:image/jpeg;base64,")
    assert len(uri) < 150_000  # noise is the worst case; measured 97,000
    with pytest.raises(DataError, match="900 x 700 pixels"):
        image_uri(file.getvalue(), "png", 10**5)


def test_filter_draws_what_it_knows(root: Path) -> None:
    section = filter_section(root, 0.5)
    assert section is not None
    assert [figure.name for figure in section.figures] == ["scores", "kinds", "thresholds"]
    metrics = read_json(root / "results/filter/metrics.json")["filter"]
    assert f"{metrics['auc']['value']:.3f}" in section.content
    known = {name: metrics[name] for name in ("web_kept", "noise_ratio")}
    write_json(root / "results/filter/metrics.json", {"filter": known})  # as without a truth
    (root / "results/filter/thresholds.csv").unlink()
    section = filter_section(root, 0.5)
    assert section is not None
    assert [figure.name for figure in section.figures] == ["scores"]
    assert "Precision" not in section.content
    (root / "results/filter/metrics.json").unlink()
    assert filter_section(root, 0.5) is None


def test_corpora_are_what_the_arms_read(finished: Path) -> None:
    arms, versions = read_arms(finished), read_versions(finished)
    corpora = {arm.name: read_corpus(arm, versions) for arm in arms}
    human = corpora["human"]["human"]
    assert corpora["unfiltered"] == {"web": 120, "human": human}
    bootstrapped = next(v for v in versions if v.dataset.name == "bootstrapped")
    kept = sum(bootstrapped.dataset.captions()["kept"].to_pylist())
    assert corpora["bootstrapped"].total() == kept + human
    assert read_corpus(arms[2], versions[:1]) == {}  # a version is not here: nothing is claimed


def test_models_by_digest(finished: Path) -> None:
    record = read_json(finished / "models/captioner/stage.json")
    assert model_names(finished)[record["output"]] == "captioner"


def test_parameters_are_counted_from_the_header(tmp_path: Path) -> None:
    save_file(
        {"a": torch.zeros(3, 4), "b": torch.zeros(())}, tmp_path / "w.safetensors", {"x": "y"}
    )
    assert count_parameters(tmp_path / "w.safetensors") == 13
    (tmp_path / "w.safetensors").write_bytes(b"not a header at all")
    with pytest.raises(DataError, match=r"w.safetensors: cannot be read"):
        count_parameters(tmp_path / "w.safetensors")


def test_time_of_a_resumed_stage_is_its_work_alone(root: Path, config: Config) -> None:
    journal = next((root / "runs").glob("select-*/journal.jsonl"))
    key = read_json(root / BOOTSTRAPPED / "stage.json")["key"]
    assert journal.parent.name == f"select-{key[:16]}"
    events = [
        {"event": "start", "time": 100.0},
        {"event": "metrics", "time": 130.0, "step": 1, "values": {"perf/images_per_second": 10.0}},
        {"event": "start", "time": 1000.0},  # killed, and begun again
        {"event": "metrics", "time": 1005.0, "step": 2, "values": {"perf/images_per_second": 30.0}},
        {"event": "end", "time": 1010.0, "status": "FINISHED"},
    ]
    write_text(journal, "".join(json.dumps(event) + "\n" for event in events))
    cost = next(cost for cost in read_costs(root) if cost.name == "select bootstrapped")
    assert cost.seconds == 40.0
    assert cost.speeds == {"images": 20.0}
    forced = [
        {"event": "start", "time": 2000.0},
        {"event": "end", "time": 2007.0, "status": "FINISHED"},
    ]
    write_text(journal, "".join(json.dumps(event) + "\n" for event in [*events, *forced]))
    assert next(c for c in read_costs(root) if c.name == "select bootstrapped").seconds == 7.0
    journal.unlink()
    section = cost_section(root, config)
    assert section is not None
    assert "Not run here, but restored: select bootstrapped." in section.content


def test_durations() -> None:
    assert [clock(s) for s in (0.04, 59.94, 61, 3725)] == ["0.0 s", "59.9 s", "1:01", "1:02:05"]
