import shutil
from pathlib import Path

import pytest

from blip.errors import ConfigError
from blip.integrations.tracking.settings import load_settings

ROOT = Path(__file__).parents[3]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Path(shutil.copy(ROOT / "mlflow.yaml", tmp_path / "mlflow.yaml"))


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_places_are_relative_to_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    settings = load_settings(file)
    assert settings.tracking_uri == f"sqlite:///{file.parent}/mlflow.db"
    assert settings.artifact_location == (file.parent / "mlartifacts").as_uri()
    assert {task: model.name for task, model in settings.models.items()} == {
        "captioning": "blip-captioner",
        "retrieval": "blip-retrieval",
    }


def test_the_environment_goes_first_and_a_server_keeps_its_artifacts(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    settings = load_settings(file)
    assert settings.tracking_uri == "http://127.0.0.1:5000"
    assert settings.artifact_location is None


def test_an_artifact_uri_is_left_alone(file: Path) -> None:
    edit(file, "artifact_location: mlartifacts", "artifact_location: s3://bucket/blip")
    assert load_settings(file).artifact_location == "s3://bucket/blip"


def test_a_password_is_not_shown(file: Path) -> None:
    edit(file, "sqlite:///mlflow.db", "postgresql+psycopg://me:secret@db:5432/runs")
    shown = load_settings(file).shown_uri
    assert shown == "postgresql+psycopg://me:***@db:5432/runs"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("experiment: blip", "experiments: blip", r"mlflow\.yaml: experiments: Extra inputs"),
        ("floor: 5.0", "floor: high", r"models\.captioning\.gate\.floor: .*number"),
        ("confidence: 0.9,", "confidence: 1.5,", r"gate\.confidence: .*less than 1"),
        ("  captioning:", "  vqa:", r"models\.vqa.*: Input should be 'captioning' or 'retrieval'"),
        ("tracking_uri: sqlite:///mlflow.db", "", r"tracking_uri: Field required"),
        ("experiment: blip", "experiment: [", r"is not YAML"),
    ],
)
def test_a_mistake_is_named(file: Path, old: str, new: str, message: str) -> None:
    edit(file, old, new)
    with pytest.raises(ConfigError, match=message):
        load_settings(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot be read"):
        load_settings(tmp_path / "nothing.yaml")
