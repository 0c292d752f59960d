"""The page: one file, whole or absent, that needs nothing else."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from blip.config import Config
from blip.errors import DataError
from blip.report.page import write_report


class Outline(HTMLParser):
    """Checks that elements close in order; collects what they point at."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.seen.append(name)
        self.links += [str(found[n]) for n in ("src", "href") if n in found]
        if found.get("id"):
            self.anchors.add(str(found["id"]))
        if name not in ("meta", "img", "br"):
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name


def read(page: Path) -> Outline:
    outline = Outline()
    outline.feed(page.read_text())
    outline.close()
    assert not outline.open
    return outline


def test_the_page_needs_nothing_else(finished: Path, config: Config, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.html"
    write_report(config, finished, out, tmp_path / "pictures")
    outline = read(out)
    assert "script" not in outline.seen
    for link in outline.links:
        assert link.startswith("data:image/") or link.removeprefix("#") in outline.anchors
    text = out.read_text()
    assert not re.search(r"url\(|@import|https?://", text)
    assert [m for m in re.findall(r'<section id="(\w+)"', text)] == [
        "curves", "gallery", "filter", "lineage", "cost", "configuration",
    ]  # fmt: skip
    assert len(text) < 3_000_000
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names >= {"comparison.svg", "curves.svg", "scores.svg", "examples.svg"}
    for path in (tmp_path / "pictures").iterdir():
        ElementTree.parse(path)


def test_equal_experiments_give_equal_pages(finished: Path, config: Config, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_report(config, finished, tmp_path / name, None)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize(
    ("absent", "section"),
    [
        ("runs", None),  # restored from a cache: no stage ran here
        ("models", "curves"),
        ("datasets", "lineage"),
        ("results/filter", "filter"),
        ("results/comparison", None),
    ],
)
def test_what_is_absent_is_left_out(
    root: Path, config: Config, absent: str, section: str | None
) -> None:
    shutil.rmtree(root / absent)
    write_report(config, root, root / "report.html", None)
    assert section not in read(root / "report.html").anchors


def test_an_empty_folder_gives_an_honest_page(config: Config, tmp_path: Path) -> None:
    write_report(config, tmp_path, tmp_path / "report.html", tmp_path)
    assert "No comparison with the unfiltered corpus yet" in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.glob("*.svg"))


def test_a_malformed_file_is_named_and_the_old_page_stays(root: Path, config: Config) -> None:
    out = root / "report.html"
    out.write_text("old")
    (root / "results/human/retrieval/metrics.json").write_text("{")
    with pytest.raises(DataError, match=r"human/retrieval/metrics.json: is not JSON"):
        write_report(config, root, out, None)
    assert out.read_text() == "old"


def test_a_page_that_cannot_be_written_leaves_nothing(
    finished: Path, config: Config, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"report.html: cannot be written"):
        write_report(config, finished, tmp_path / "file" / "report.html", None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
