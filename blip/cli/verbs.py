"""How `blip --help` lists its commands: in sections, each command on one line, in full."""

from collections.abc import Mapping
from typing import Any

from typer.core import TyperGroup

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Whole experiments": ("run", "study", "report", "ui", "track"),
    "Stages of an experiment, in order": (
        "world",
        "ingest",
        "validate",
        "tokenizer",
        "pretrain",
        "finetune",
        "caption",
        "score",
        "select",
        "evaluate",
        "compare",
        "promote",
    ),
    "A model at work (see `caption` and `evaluate`, too)": ("vqa", "match", "features", "convert"),
    "Where results come from": ("lineage", "manifest", "catalog"),
    "The paper's benchmarks": ("benchmark", "reproduce"),
    "Clusters": ("k8s",),
}


class Verbs(TyperGroup):
    """The command that the others belong to."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands by section."""
        column = max(map(len, self.commands))
        for title, names in SECTIONS.items():
            with formatter.section(title):
                limit = formatter.width - column - 4
                formatter.write_dl(
                    [(n.ljust(column), self.commands[n].get_short_help_str(limit)) for n in names]
                )
