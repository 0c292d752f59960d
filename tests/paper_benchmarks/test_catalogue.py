"""The catalogue of files: complete, checked, and true to the copies at hand."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from blip.benchmarks.catalogue import load_catalogue
from blip.cli import app
from blip.errors import BlipError, ConfigError

from .web_server import Site, serve

ENTRY = {"purpose": "words", "licence": "free"}


def run(command: str) -> Result:
    return CliRunner().invoke(app, command.split())


def write(folder: Path, files: dict[str, object], **benchmarks: list[str]) -> Path:
    named = {name: {"title": name, "files": places} for name, places in benchmarks.items()}
    (folder / "files.yaml").write_text(yaml.safe_dump({"files": files, "benchmarks": named}))
    return folder / "files.yaml"


def test_every_file_belongs_to_a_benchmark() -> None:
    catalogue = load_catalogue()
    used = {place for benchmark in catalogue.benchmarks.values() for place in benchmark.files}
    assert used == set(catalogue.files)


def test_checksums_are_those_of_the_files_at_hand(shared: Path) -> None:
    found = 0
    for place, file in load_catalogue().files.items():
        for path in (shared / "data").rglob(Path(place).name):
            if file.size is not None and path.is_file():
                content = path.read_bytes()
                assert len(content) == file.size
                assert file.sha256 in (None, hashlib.sha256(content).hexdigest())
                assert file.md5 in (None, hashlib.md5(content).hexdigest())
                found += 1
    assert found >= 9


def test_what_unpacks_or_lies_in_it_has_a_source() -> None:
    catalogue = load_catalogue()
    assert catalogue.source("coco/val2014/COCO_val2014_1.jpg") == "coco/val2014.zip"
    assert catalogue.source("coco/val2014.zip") == "coco/val2014.zip"
    assert catalogue.source("ovad/ovad2000.json") == "ovad/ovad.zip"
    assert catalogue.source("ovad/other.json") is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (ENTRY, "has neither a url nor a word on how to obtain it"),
        ({**ENTRY, "url": "ftp://a/b"}, "url"),
        ({**ENTRY, "url": "http://a/b", "sha256": "abc"}, "sha256"),
        ({**ENTRY, "obtain": "ask", "colour": "red"}, "colour"),
        ({**ENTRY, "obtain": "ask", "unpacks": "../x"}, "no plain relative path"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, entry: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_catalogue(write(tmp_path, {"a/b": entry}))


def test_wrong_places_and_names(tmp_path: Path) -> None:
    entry = {**ENTRY, "obtain": "ask"}
    with pytest.raises(ConfigError, match=r"'/etc/passwd' is no plain relative path"):
        load_catalogue(write(tmp_path, {"/etc/passwd": entry}))
    with pytest.raises(ConfigError, match=r"benchmarks.one: 'b' is not among the files"):
        load_catalogue(write(tmp_path, {"a": entry}, one=["b"]))
    with pytest.raises(BlipError, match=r"no benchmark 'two': it is one of coco-retrieval"):
        load_catalogue().find("two")


def test_list_tells_what_is_here(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "a/one": {**ENTRY, "url": "http://x/one", "size": 3},
        "a/two": {**ENTRY, "obtain": "ask them", "about": "6 GB"},
        "a/three.zip": {**ENTRY, "url": "http://x/three.zip", "unpacks": "a/three"},
        "a/four": {**ENTRY, "url": "http://x/four", "size": 123456},
        "a/five": {**ENTRY, "url": "http://x/five", "size": 9},
    }
    (tmp_path / "a/three").mkdir(parents=True)
    (tmp_path / "a/one").write_text("123")
    (tmp_path / "a/five").write_text("123")
    (tmp_path / "a/.four.part").write_text("12345")
    table = write(tmp_path, files, best=list(files))
    printed = run(f"benchmark list best --out {tmp_path} --catalogue {table}").output
    lines = [[cell for cell in line.split("  ") if cell] for line in printed.splitlines()]
    assert lines[0] == ["best: best"]
    assert [(line[0].strip(), line[1].strip(), line[2].strip()) for line in lines[1:]] == [
        ("here", "a/one", "3 B"),
        ("missing", "a/two", "6 GB"),
        ("unpacked", "a/three.zip", "?"),
        ("5 B of it", "a/four", "123 kB"),
        ("another", "a/five", "9 B"),
    ]
    assert lines[2][-1].strip() == "ask them"
    whole = run("benchmark list").output
    assert all(name in whole for name in load_catalogue().benchmarks)


def test_fetch_brings_says_and_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with serve(Site(files={"/one": b"123"})) as site:
        url = f"{site.address}/one"
        files: dict[str, object] = {
            "a/one": {**ENTRY, "url": url, "size": 3},
            "a/two": {**ENTRY, "obtain": "ask them"},
            "a/three.zip": {**ENTRY, "url": url, "unpacks": "a/three"},
        }
        write(tmp_path, files, best=list(files))
        command = "benchmark fetch best --catalogue files.yaml"
        assert "paper/a/one: 3 bytes" in run(f"{command} --only one").output
        assert not Path("paper/a/three.zip").exists()
        result = run(command)
        assert "unpack it from paper/a/three.zip, or give --unpack" in result.output
        assert "paper/a/two: ask them" in str(result.exception)
        Path("paper/a/two").touch()
        assert run(command).exit_code == 0
        assert "cannot be unpacked" in str(run(f"{command} --unpack").exception)
        assert "best has no file 'four'" in str(run(f"{command} --only four").exception)


def test_a_file_that_is_refused_does_not_keep_the_others_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with serve(Site(files={"/one": b"123"})) as site:
        url = f"{site.address}/one"
        files: dict[str, object] = {
            "a/gone": {**ENTRY, "url": f"{site.address}/gone", "obtain": "ask its authors"},
            "a/wrong": {**ENTRY, "url": url, "size": 4},
            "a/one": {**ENTRY, "url": url, "size": 3},
            "a/two": {**ENTRY, "obtain": "ask them"},
        }
        write(tmp_path, files, best=list(files))
        result = run("benchmark fetch best --catalogue files.yaml")
    assert "paper/a/one: 3 bytes" in result.output
    for message in (
        "/gone: is not there (404): ask its authors",
        "paper/a/wrong: size is 3, the catalogue gives 4",
        "a person must get:\npaper/a/two: ask them",
    ):
        assert message in str(result.exception)


def test_dvc_pins_what_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["git", "init", "--quiet"], ["dvc", "init", "--quiet"]):
        subprocess.run([sys.executable, "-m", *words] if words[0] == "dvc" else words, check=True)
    ignored = (Path(__file__).parents[2] / ".gitignore").read_text()
    Path(".gitignore").write_text(ignored)
    with serve(Site(files={"/one": b"123"})) as site:
        write(tmp_path, {"a/one": {**ENTRY, "url": f"{site.address}/one"}}, best=["a/one"])
        for _ in range(2):  # a pinned file may be read-only, or a link into the cache
            result = run("benchmark fetch best --catalogue files.yaml")
            assert "pinned by DVC" in result.output, result.exception
    pin = yaml.safe_load(Path("paper/a/one.dvc").read_text())
    assert pin["outs"][0] == {**pin["outs"][0], "path": "one", "size": 3}
    status = subprocess.run(
        ["git", "status", "--short", "-uall", "paper"], capture_output=True, text=True, check=True
    )
    assert [line.split()[1] for line in status.stdout.splitlines()] == [
        "paper/a/one.dvc",
        "paper/fetched.json",
    ]
