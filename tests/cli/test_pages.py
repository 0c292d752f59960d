"""What README, CONTRIBUTING and docs/ say: commands that are commands, and links that lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from tests.parse_command import parse_command

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def commands(page: Path) -> list[list[str]]:
    """Give the words of the commands in the shell blocks of a page, of each pipe's parts."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" | "):
                words = shlex.split(part, comments=True)
                if words:
                    found.append(words)
    return found


def test_the_pages_are_many_and_have_commands() -> None:
    assert len(PAGES) >= 10
    assert len(commands(ROOT / "README.md")) > 20


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_commands(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for program, *words in commands(ROOT / name):
        if program == "torchrun":
            program, *words = words[words.index("blip") :]
        if program == "blip" and "--help" not in words:
            parse_command(words)
        if program == "make":
            assert words[0] in targets


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in {anchor(title) for title in titles}, link


def anchor(title: str) -> str:
    """Give the name of a heading in links, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
