"""The gate: each expectation holds on sound data, and names the data that breaks it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from blip.config import Validate
from blip.errors import DataError, IntegrationError
from blip.integrations.catalog import add, count_rows, open_catalog
from blip.integrations.catalog.database import writing
from blip.integrations.quality import validate
from blip.stage import RECORD, Job, run_stage
from blip.tracker import NullTracker

LIMITS = Validate(
    caption_characters=(3, 40),
    captions_per_image=(1, 2),
    image_side=(32, 640),
    max_duplicate_captions=0.5,
    max_count_drift=0.25,
    max_length_drift=0.5,
)


class Gate:
    """The gate on one catalogue, run as the stage that it is."""

    def __init__(self, engine: Engine, root: Path) -> None:
        self.engine, self.root = engine, root
        self.reports = root / "reports"

    def __call__(self, *datasets: Path, **limits: Any) -> Path:
        """Check; enter the output in the catalogue, as the command does, and give its folder."""
        job = Job(
            "validate",
            self.root / "results/validation",
            {"data": datasets},
            limits,
            runs=self.root / "runs",
        )
        with run_stage(job) as stage:
            assert stage
            config = LIMITS.model_copy(update=limits)
            validate(config, self.engine, datasets, stage.out, self.reports, NullTracker())
        add(self.engine, job.out)
        return job.out


@pytest.fixture
def gate(engine: Engine, tmp_path: Path) -> Gate:
    return Gate(engine, tmp_path)


@pytest.fixture
def local_gate(sqlite_url: str, tmp_path: Path) -> Gate:
    return Gate(open_catalog(sqlite_url), tmp_path)


def sound(
    files: Any, number: int = 4, words: str = "image number {}"
) -> tuple[list[Any], list[Any]]:
    """Give rows that break no limit."""
    names = [f"{n}.png" for n in range(number)]
    texts = [files.text(name, words.format(n), "web") for n, name in enumerate(names)]
    return [files.image(name) for name in names], texts


def test_sound_versions_pass(gate: Gate, files: Any, tmp_path: Path) -> None:
    web = files.dataset(tmp_path / "web", *sound(files))
    human = files.dataset(tmp_path / "human", *sound(files, 8))
    out = gate(web, human)
    metrics = json.loads((out / "metrics.json").read_text())["validate"]
    assert metrics["datasets"]["human"] == {"images": 8, "captions": 8, "mean_characters": 14.0}
    assert (metrics["expectations"], metrics["failed"]) == (32, 0)
    results = json.loads((out / "result.json").read_text())
    assert len(results) == 32
    assert all(result["success"] for result in results)
    observed = {r["expectation"]: r["observed"] for r in results if r["dataset"] == "human"}
    assert observed["texts_exist"] == 8
    assert observed["duplicate_captions"] == 1.0
    assert observed["image_drift"] is None
    page = (out / "index.html").read_text()
    assert "All expectations hold" in page
    assert "no earlier accepted version" in page
    assert "http" not in page.replace('lang="en"', "")
    assert not gate.reports.exists()
    first = {file.name: file.read_bytes() for file in out.iterdir() if file.name != RECORD}
    again = tmp_path / "again"
    again.mkdir()
    validate(LIMITS, gate.engine, [web, human], again, gate.reports, NullTracker())
    assert {name: (again / name).read_bytes() for name in first} == first


def _blank(images: list[Any], texts: list[Any], files: Any) -> None:
    texts[0] = files.text("0.png", "     ", "web")


def _no_key(images: list[Any], texts: list[Any], files: Any) -> None:
    texts[0] = {**texts[0], "key": ""}


def _orphan(images: list[Any], texts: list[Any], files: Any) -> None:
    texts.append(files.text("absent.png", "of no image here", "web"))


def _twice(images: list[Any], texts: list[Any], files: Any) -> None:
    texts.append(texts[0])


def _short(images: list[Any], texts: list[Any], files: Any) -> None:
    texts[1] = files.text("1.png", "ab", "web")


def _long(images: list[Any], texts: list[Any], files: Any) -> None:
    texts[1] = files.text("1.png", "ab" * 21, "web")


def _origin(images: list[Any], texts: list[Any], files: Any) -> None:
    texts[1] = files.text("1.png", "from elsewhere", "rumour")


def _repeated(images: list[Any], texts: list[Any], files: Any) -> None:
    texts[:] = [files.text(image["source"], "buy now", "web") for image in images]


def _many(images: list[Any], texts: list[Any], files: Any) -> None:
    texts += [files.text("0.png", f"another {number}", "web") for number in range(2)]


def _none(images: list[Any], texts: list[Any], files: Any) -> None:
    images.append(files.image("silent.png"))


def _narrow(images: list[Any], texts: list[Any], files: Any) -> None:
    images[2] = files.image("2.png", width=31)


def _high(images: list[Any], texts: list[Any], files: Any) -> None:
    images[2] = files.image("2.png", height=641)


def _image_twice(images: list[Any], texts: list[Any], files: Any) -> None:
    images.append(images[0])


def _empty(images: list[Any], texts: list[Any], files: Any) -> None:
    images.clear()
    texts.clear()


@pytest.mark.parametrize(
    ("harm", "expectation", "observed"),
    [
        (_blank, "text_present", "1 failing of 4 rows"),
        (_no_key, "key_present", "1 failing of 4 rows"),
        (_orphan, "image_present", "1 failing of 5 rows"),
        (_twice, "caption_unique", "2 failing of 5 rows"),
        (_short, "caption_characters", "1 failing of 4 rows"),
        (_long, "caption_characters", "1 failing of 4 rows"),
        (_origin, "origin_known", "1 failing of 4 rows"),
        (_repeated, "duplicate_captions", "0.25, limit at least 0.5"),
        (_many, "captions_per_image", "1 failing of 4 rows"),
        (_none, "captions_per_image", "1 failing of 5 rows"),
        (_narrow, "image_width", "1 failing of 4 rows"),
        (_high, "image_height", "1 failing of 4 rows"),
        (_image_twice, "image_unique", "2 failing of 5 rows"),
        (_empty, "images_exist", "0, limit at least 1"),
    ],
)
def test_each_expectation_names_what_breaks_it(
    local_gate: Gate,
    files: Any,
    tmp_path: Path,
    harm: Callable[..., None],
    expectation: str,
    observed: str,
) -> None:
    images, texts = sound(files)
    harm(images, texts, files)
    with pytest.raises(DataError) as caught:
        local_gate(files.dataset(tmp_path / "web", images, texts))
    message = str(caught.value)
    page = local_gate.reports / "validation.html"
    assert message.startswith(f"{tmp_path}/web: expectation ")
    assert str(page) in message
    assert not (tmp_path / "results/validation").exists()
    assert expectation in page.read_text().partition("holds")[0]  # what fails comes first
    if expectation in message:
        assert observed in message


def test_a_refusal_shows_failing_rows_and_goes_when_mended(
    local_gate: Gate, files: Any, tmp_path: Path
) -> None:
    images, texts = sound(files)
    _short(images, texts, files)
    web = files.dataset(tmp_path / "web", images, texts)
    with pytest.raises(
        DataError, match=r"caption_characters.*observed 1 failing.*limit no failing"
    ):
        local_gate(web)
    page = local_gate.reports / "validation.html"
    assert "1 of 16 expectations fail" in page.read_text()
    assert texts[1]["caption_id"] in page.read_text()
    assert "&#x27;ab&#x27;" in page.read_text()
    local_gate(web, caption_characters=(2, 40))
    assert not page.exists()


def test_drift_is_measured_from_the_last_accepted_version(
    gate: Gate, files: Any, tmp_path: Path
) -> None:
    gate(files.dataset(tmp_path / "1/web", *sound(files, 20)))
    with pytest.raises(DataError, match=r"image_drift .*observed 10, limit 15 to 25 \(1 more"):
        gate(files.dataset(tmp_path / "2/web", *sound(files, 10)))
    with pytest.raises(DataError, match=r"length_drift .*observed 5, limit 7\.25 to 21\.75"):
        gate(files.dataset(tmp_path / "3/web", *sound(files, 20, "n {:03}")))
    gate(files.dataset(tmp_path / "4/web", *sound(files, 24)))  # not the refused ten, but twenty
    gate(files.dataset(tmp_path / "5/web", *sound(files, 28)))  # twenty-four, not twenty
    gate(files.dataset(tmp_path / "6/other", *sound(files, 2)))  # another name
    gate(files.dataset(tmp_path / "7/web", *sound(files, 3), "photos"))  # another collection


def test_the_gate_leaves_nothing_behind(
    gate: Gate, files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    before = count_rows(gate.engine)
    gate(files.dataset(tmp_path / "web", *sound(files)))
    assert [*home.rglob("*"), *here.rglob("*")] == []
    tables = set(count_rows(gate.engine))
    assert tables == set(before)
    if gate.engine.dialect.name == "postgresql":
        gate.engine.dispose()
        with gate.engine.connect() as connection:
            connected = text(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND backend_type = 'client backend'"
            )
            deadline = time.monotonic() + 60
            while connection.scalar(connected) > 1 and time.monotonic() < deadline:
                time.sleep(0.05)  # the server notices a moment later that one has left
                connection.rollback()
            assert connection.scalar(connected) == 1  # our own


def test_what_cannot_be_evaluated_is_no_failing_dataset(
    local_gate: Gate, files: Any, tmp_path: Path
) -> None:
    web = files.dataset(tmp_path / "web", *sound(files))
    add(local_gate.engine, web)
    with writing(local_gate.engine) as connection:
        connection.execute(text("ALTER TABLE captions RENAME COLUMN origin TO provenance"))
    with pytest.raises(IntegrationError, match=r"origin"):
        local_gate(web)
