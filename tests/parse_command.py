"""Reads the words of a command as `blip` itself does, without running it."""

from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup
from typer.main import get_command

from blip.cli import app


def parse_command(words: Sequence[str]) -> dict[str, Any]:
    """Give the parameters of the words behind `blip`; raises what the command line would refuse."""
    command: Any = get_command(app)
    context = command.make_context("blip", list(words))
    while isinstance(command, TyperGroup):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    return dict(context.params)
