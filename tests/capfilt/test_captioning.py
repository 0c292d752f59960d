import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blip.capfilt import caption
from blip.config import dump_config
from blip.data.dataset import open_dataset
from blip.errors import CheckpointError, DataError
from blip.files import digest_directory, read_json
from blip.stage import input_digest
from blip.tracker import NullTracker

# Runs `caption` and is killed in the middle of writing its third shard.
KILLED = """
import json, os, signal, sys
from pathlib import Path
from blip.capfilt import caption, versions
from blip.config import Config
from blip.tracker import NullTracker

class Parquet:
    read_table, calls = versions.pq.read_table, 0
    def write_table(self, table, file):
        Parquet.calls += 1
        if Parquet.calls == 3:
            file.write(b"PAR1half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        versions_pq.write_table(table, file)

versions_pq, versions.pq = versions.pq, Parquet()
config, model, data, out, run_dir = sys.argv[1:]
Path(out).mkdir()
caption(Config.model_validate(json.loads(config)), Path(model), Path(data), Path(out),
        Path(run_dir), NullTracker())
"""


@pytest.fixture(scope="module")
def written(demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = demo.web.parent / "synthetic"
    out.mkdir()
    run_dir = tmp_path_factory.mktemp("run")
    caption(demo.config, demo.captioner, demo.web, out, run_dir, NullTracker())
    return out


def test_every_image_gets_one_caption_that_says_who_wrote_it(demo, written: Path) -> None:
    dataset, parent = open_dataset(written), open_dataset(demo.web)
    dataset.verify()
    assert [s.images_digest for s in dataset.shards] == [s.images_digest for s in parent.shards]
    assert not (written / "images").exists()
    rows = dataset.captions().to_pylist()
    assert [row["key"] for row in rows] == parent.records()["key"].to_pylist()
    for row in rows:
        assert row["origin"] == "synthetic"
        assert row["generator"] == input_digest(demo.captioner)
        how = json.loads(row["decoding"])
        assert (how["method"], how["top_p"], how["seed"]) == ("nucleus", 0.9, demo.config.seed)
        assert row["filter"] is row["itm_score"] is row["kept"] is None
    found = read_json(written / "metrics.json")["caption"]
    assert found["captions"] == 30
    assert 0 < found["distinct_share"] <= 1
    assert found["words_mean"] > 1


def test_captions_depend_on_the_image_and_the_seed_alone(
    demo, written: Path, tmp_path: Path
) -> None:
    def texts(**decoding: int) -> list[str]:
        config = demo.config.model_copy(deep=True)
        settings = config.capfilt.decoding.model_copy(update=decoding)
        capfilt = config.capfilt.model_copy(update={"decoding": settings})
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        out.mkdir()
        seed = config.seed + decoding.get("top_k", 50) - 50
        config = config.model_copy(update={"capfilt": capfilt, "seed": seed})
        caption(config, demo.captioner, demo.web, out, out / "run", NullTracker())
        return open_dataset(out).captions()["text"].to_pylist()

    same = open_dataset(written).captions()["text"].to_pylist()
    assert texts(batch_size=9) == same
    assert texts(top_k=51) != same  # another seed


def test_a_killed_run_goes_on_and_writes_the_same_bytes(
    demo, written: Path, tmp_path: Path
) -> None:
    run_dir, first, second = tmp_path / "run", demo.web.parent / "dead", demo.web.parent / "again"
    config = json.dumps(dump_config(demo.config))
    paths = [demo.captioner, demo.web, first, run_dir]
    killed = subprocess.run([sys.executable, "-c", KILLED, config, *paths], check=False)
    assert killed.returncode == -signal.SIGKILL
    finished = sorted((run_dir / "shards").glob("*.parquet"))
    assert [part.name for part in finished] == ["000000.parquet", "000001.parquet"]
    assert not (first / "manifest.json").exists()
    times = [part.stat().st_mtime_ns for part in finished]
    second.mkdir()
    caption(demo.config, demo.captioner, demo.web, second, run_dir, NullTracker())
    assert [part.stat().st_mtime_ns for part in finished] == times
    assert digest_directory(second) == digest_directory(written)


def test_a_tampered_image_shard_is_named(demo, tmp_path: Path) -> None:
    copy = tmp_path / "web"
    shutil.copytree(demo.web, copy)
    shard = open_dataset(copy).shards[1]
    content = bytearray(shard.images.read_bytes())
    content[5000] ^= 1
    shard.images.write_bytes(content)
    with pytest.raises(DataError, match=shard.images.name):
        caption(demo.config, demo.captioner, copy, tmp_path, tmp_path / "run", NullTracker())
    assert not (tmp_path / "manifest.json").exists()


def test_a_model_without_a_decoder_is_refused(demo, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="captioning"):
        caption(demo.config, demo.filter, demo.web, tmp_path, tmp_path / "run", NullTracker())
    nothing = tmp_path / "nothing"
    with pytest.raises(CheckpointError, match=r"nothing/config\.json"):
        caption(demo.config, nothing, demo.web, tmp_path, tmp_path / "run", NullTracker())
