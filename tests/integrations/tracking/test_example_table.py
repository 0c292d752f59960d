"""What an evaluation found goes to MLflow: metrics with their intervals, and the table of examples."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from blip.cli import app
from blip.data.dataset import write_table
from blip.files import read_json
from blip.integrations.tracking.example_table import ROWS, TABLE, write_example_table
from blip.integrations.tracking.settings import TrackingSettings
from blip.integrations.tracking.shipping import ship
from tests.tiny_benchmark import write_model, write_params, write_test_set

from .conftest import runs_of


def test_rows_are_bounded_and_spread(tmp_path: Path) -> None:
    table = pa.table({"key": [str(row) for row in range(3 * ROWS + 7)]})
    write_table(tmp_path / "per_example.parquet", table)
    write_example_table(tmp_path / "per_example.parquet", tmp_path)
    keys = [int(key) for (key,) in read_json(tmp_path / TABLE)["data"]]
    assert len(keys) == ROWS
    assert keys == sorted(set(keys))
    assert (keys[0], keys[-1]) == (0, 3003)
    before = (tmp_path / TABLE).read_bytes()
    write_example_table(tmp_path / "per_example.parquet", tmp_path)
    assert (tmp_path / TABLE).read_bytes() == before


def test_cells_that_json_has_not(tmp_path: Path) -> None:
    columns = {"score": [float("nan"), 0.5], "ranks": [[1, 2], []], "text": ["a", None]}
    write_table(tmp_path / "per_example.parquet", pa.table(columns))
    write_example_table(tmp_path / "per_example.parquet", tmp_path)
    assert json.loads((tmp_path / TABLE).read_text()) == {
        "columns": ["score", "ranks", "text"],
        "data": [[None, "[1, 2]", "a"], [0.5, "[]", None]],
    }


def test_an_empty_table(tmp_path: Path) -> None:
    write_table(tmp_path / "per_example.parquet", pa.table({"key": pa.array([], pa.string())}))
    write_example_table(tmp_path / "per_example.parquet", tmp_path)
    assert read_json(tmp_path / TABLE) == {"columns": ["key"], "data": []}


def test_an_evaluation_arrives_with_intervals_and_examples(
    settings: TrackingSettings, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLIP_TRACKING", "journal")
    config = write_params(Path())
    model = write_model(config, "matching", Path("model"))
    data = write_test_set(Path("coco"))
    command = f"evaluate retrieval --checkpoint {model} --data {data} --photos coco --out out"
    result = CliRunner().invoke(app, command.split(), catch_exceptions=False)
    assert result.exit_code == 0
    for _ in range(2):  # carried twice it is the same
        assert ship(Path("runs"), settings).problem == ""
        next(Path("runs").glob("*/shipped.json")).unlink()
    [run] = runs_of(client)
    found = read_json(Path("out/metrics.json"))["retrieval"]["tr_r1"]
    for name, end in (("", "value"), ("_low", "low"), ("_high", "high")):
        assert run.data.metrics[f"retrieval/tr_r1{name}"] == pytest.approx(found[end])
    table = client.load_table(run.info.experiment_id, TABLE, [run.info.run_id])
    assert table["key"].iloc[0] == "val2014/COCO_val2014_000000000000.jpg"
    assert len(table) == 6
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {TABLE, "metrics.json"}
