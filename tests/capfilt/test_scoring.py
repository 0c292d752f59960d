import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from blip.capfilt import caption, score, select
from blip.data.dataset import CAPTIONS, count_texts, open_dataset, write_manifest, write_table
from blip.data.loader import image_batches
from blip.data.text import VOCABULARY, Tokenizer, clean_caption
from blip.errors import CheckpointError, DataError
from blip.files import digest_directory, read_json
from blip.models.checkpoint import load_model
from blip.stage import input_digest
from blip.tracker import NullTracker


def make(demo, name: str) -> Path:
    out = demo.web.parent / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return out


@pytest.fixture(scope="module")
def synthetic(demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, run_dir = make(demo, "synthetic_to_score"), tmp_path_factory.mktemp("run")
    caption(demo.config, demo.captioner, demo.web, out, run_dir, NullTracker())
    return out


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def scored(demo, synthetic: Path, run_dir: Path) -> Path:
    out = make(demo, "scored")
    score(demo.config, demo.filter, [demo.web, synthetic], out, run_dir, NullTracker())
    return out


def test_every_text_is_judged_beside_its_image(demo, synthetic: Path, scored: Path) -> None:
    dataset, web = open_dataset(scored), open_dataset(demo.web)
    dataset.verify()
    rows = dataset.captions().to_pylist()
    keys = web.records()["key"].to_pylist()
    assert [row["key"] for row in rows] == [key for key in keys for _ in range(2)]
    assert [row["origin"] for row in rows] == ["web", "synthetic"] * len(keys)
    before = {
        row["caption_id"]: row
        for d in (web, open_dataset(synthetic))
        for row in d.captions().to_pylist()
    }
    for row in rows:
        for name in ("text", "generator", "decoding"):
            assert row[name] == before[row["caption_id"]][name]
        assert row["filter"] == input_digest(demo.filter)
        assert 0 < row["itm_score"] < 1
        assert -1 <= row["itc_score"] <= 1
    assert read_json(scored / "metrics.json")["score"]["texts"] == 60


def test_scores_are_those_of_each_pair_alone(demo, scored: Path) -> None:
    model = load_model(demo.filter, "retrieval").eval()
    tokenizer = Tokenizer(demo.filter / VOCABULARY)
    dataset = open_dataset(scored)
    images = {
        k: i
        for keys, batch in image_batches(dataset, 64, 1)
        for k, i in zip(keys, batch, strict=True)
    }
    worst = 0.0
    for row in dataset.captions().to_pylist()[:12]:
        ids, mask = tokenizer.encode([clean_caption(row["text"], 30)], 35)
        with torch.no_grad():
            tokens = model.encode_image(images[row["key"]][None])
            match = model.match(ids, mask, model.project_images(tokens)).softmax(1)[0, 1]
            cosine = (model.embed_image(tokens) @ model.embed_text(model.encode_text(ids, mask)).T)[
                0, 0
            ]
        worst = max(worst, abs(match - row["itm_score"]), abs(cosine - row["itc_score"]))
    assert worst < 1e-5  # measured 1.2e-7


def test_finished_shards_are_not_judged_again(
    demo, synthetic: Path, scored: Path, run_dir: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "web"
    shutil.copytree(demo.web, copy)
    for shard in open_dataset(copy).shards:
        shard.images.write_bytes(b"")  # whoever reads an image fails
    out = make(demo, "scored_again")
    score(demo.config, demo.filter, [demo.web, synthetic], out, run_dir, NullTracker())
    assert digest_directory(out) == digest_directory(scored)
    score(demo.config, demo.filter, [copy, synthetic], tmp_path, run_dir, NullTracker())
    (run_dir / "shards/000001.parquet").unlink()
    with pytest.raises(DataError, match="tar"):
        score(demo.config, demo.filter, [copy, synthetic], tmp_path, run_dir, NullTracker())


def test_a_text_of_two_versions_is_judged_once(demo, scored: Path, tmp_path: Path) -> None:
    out = make(demo, "scored_twice")
    data = [demo.web, demo.web, scored]
    score(demo.config, demo.filter, data, out, tmp_path, NullTracker())
    ids = open_dataset(out).captions()["caption_id"].to_pylist()
    assert sorted(ids) == sorted(open_dataset(scored).captions()["caption_id"].to_pylist())


def test_images_without_texts_are_no_trouble(demo, synthetic: Path, tmp_path: Path) -> None:
    partly = make(demo, "partly")
    first, *others = open_dataset(synthetic).shards
    digest = write_table(partly / "empty.parquet", CAPTIONS.empty_table())
    empty = replace(first, captions=partly / "empty.parquet", captions_digest=digest)
    write_manifest(partly, [replace(empty, num_captions=0), *others], {}, {})
    out = make(demo, "scored_partly")
    score(demo.config, demo.filter, [partly], out, tmp_path, NullTracker())
    dataset = open_dataset(out)
    assert [shard.num_captions for shard in dataset.shards] == [0, 10, 10]


def test_versions_of_other_images_are_refused(demo, tmp_path: Path) -> None:
    other = make(demo, "fewer")
    web = open_dataset(demo.web)
    write_manifest(other, list(web.shards[1:]), {}, {})
    with pytest.raises(DataError, match=r"fewer and .*web: are of other images, shard"):
        score(demo.config, demo.filter, [demo.web, other], tmp_path, tmp_path / "r", NullTracker())


def test_tampered_captions_are_named(demo, synthetic: Path, tmp_path: Path) -> None:
    copy = make(demo, "tampered")
    web = open_dataset(demo.web)
    captions = web.shards[0].captions
    forged = replace(web.shards[0], captions_digest="0" * 64)
    write_manifest(copy, [forged, *web.shards[1:]], {}, {})
    with pytest.raises(DataError, match=f"{captions.name}: its content is not what"):
        score(demo.config, demo.filter, [copy, synthetic], tmp_path, tmp_path / "r", NullTracker())


def test_a_captioner_cannot_judge(demo, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="retrieval"):
        score(demo.config, demo.captioner, [demo.web], tmp_path, tmp_path / "r", NullTracker())


def selected(demo, scored: Path, name: str, **settings) -> tuple[Path, list[dict]]:
    out = make(demo, name)
    capfilt = demo.config.capfilt.model_copy(update=settings)
    select(demo.config.model_copy(update={"capfilt": capfilt}), scored, out, NullTracker())
    dataset = open_dataset(out)
    dataset.verify()
    for shard in dataset.shards:
        assert shard.texts == count_texts(shard.read_captions())
    return out, dataset.captions().to_pylist()


def test_texts_above_the_threshold_are_kept(demo, scored: Path) -> None:
    before = open_dataset(scored).captions().to_pylist()
    threshold = float(np.median([row["itm_score"] for row in before]))
    out, rows = selected(demo, scored, "both", threshold=threshold)
    for row, old in zip(rows, before, strict=True):
        assert {**row, "kept": None, "reason": None} == old
        assert row["kept"] == (row["itm_score"] > threshold)
        assert (
            row["reason"] == f"match probability {'' if row['kept'] else 'not '}above {threshold}"
        )
    found = read_json(out / "metrics.json")["select"]
    assert (
        found["kept"]
        == sum(row["kept"] for row in rows)
        == found["web_kept"] + found["synthetic_kept"]
    )
    rejected = [not row["kept"] for row in rows if row["origin"] == "synthetic"]
    assert found["noise_ratio"] == pytest.approx(np.mean(rejected))
    again, _ = selected(demo, scored, "both_again", threshold=threshold)
    assert digest_directory(out) == digest_directory(again)


def test_the_ablations_of_the_paper(demo, scored: Path) -> None:
    before = open_dataset(scored).captions().to_pylist()
    threshold = float(np.median([row["itm_score"] for row in before]))
    _, rows = selected(demo, scored, "filter_only", threshold=threshold, keep="filter")
    for row in rows:
        assert row["kept"] == (row["origin"] == "web" and row["itm_score"] > threshold)
    assert {row["reason"] for row in rows if row["origin"] == "synthetic"} == {
        "synthetic texts are left out"
    }
    out, rows = selected(demo, scored, "captioner_only", threshold=threshold, keep="captioner")
    assert all(row["kept"] for row in rows)
    found = read_json(out / "metrics.json")["select"]
    assert found["kept_share"] == 1
    assert 0 < found["noise_ratio"] < 1  # what the filter says, used or not


def test_nothing_kept_is_an_error_that_says_what_would_help(demo, scored: Path) -> None:
    message = (
        r"none of 60 texts is kept: match probabilities go from 0\.\d+ to 0\.\d+, "
        r"capfilt\.threshold is 1\.0: lower it"
    )
    with pytest.raises(DataError, match=message):
        selected(demo, scored, "none", threshold=1.0)


def test_texts_without_scores_cannot_be_selected(demo) -> None:
    with pytest.raises(
        DataError, match="10 of 10 texts have no match probability: run `blip score`"
    ):
        selected(demo, demo.web, "unscored", threshold=0.5)


def test_missing_columns_are_named(demo, scored: Path) -> None:
    dataset = open_dataset(scored)
    shard = dataset.shards[0]
    out = make(demo, "columns")
    file = out / "captions/cut.parquet"
    digest = write_table(file, shard.read_captions().drop_columns(["itm_score"]))
    shards = [replace(shard, captions=file, captions_digest=digest), *dataset.shards[1:]]
    write_manifest(out, shards, {}, {})
    with pytest.raises(DataError, match=r"cut\.parquet: has columns"):
        selected(demo, out, "from_columns", threshold=0.5)
