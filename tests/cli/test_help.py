"""What `--help` says: every command in its section, in full, with examples that are commands."""

import shlex

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from blip.cli import app
from blip.cli.examples import EXAMPLES
from blip.cli.verbs import SECTIONS
from tests.parse_command import parse_command

ROOT = get_command(app)


def commands(group: object = ROOT, prefix: str = "") -> list[str]:
    """List the commands of a group and of those in it."""
    assert isinstance(group, TyperGroup)
    found = []
    for name, command in group.commands.items():
        inner = isinstance(command, TyperGroup)
        found += commands(command, f"{name} ") if inner else [prefix + name]
    return found


def shown(*words: str) -> str:
    return CliRunner().invoke(app, [*words, "--help"], prog_name="blip", terminal_width=80).output


def test_every_command_is_in_one_section_and_told_in_full() -> None:
    assert isinstance(ROOT, TyperGroup)
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(ROOT.commands)
    lines = shown().splitlines()
    for title, names in SECTIONS.items():
        place = lines.index(f"{title}:")
        section = lines[place + 1 : place + 1 + len(names)]
        assert [line.split()[0] for line in section] == list(names)
        assert all(line.endswith(".") and not line.endswith("..") for line in section), section


def test_every_command_has_examples() -> None:
    assert sorted(EXAMPLES) == sorted(commands())


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples_are_commands_and_end_the_help(command: str) -> None:
    ending = shown(*command.split()).splitlines()
    for example in EXAMPLES[command]:
        assert [line for line in example.splitlines() if f"    {line}" not in ending] == []
        blip, *words = shlex.split(example.replace("\\\n", " ").partition(" | ")[0])
        assert blip == "blip"
        assert words[: len(command.split())] == command.split()
        parse_command(words)
