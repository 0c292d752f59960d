"""The console: plain lines for files, bars at the bottom for terminals."""

import io
import re

from blip.integrations.console import Console
from blip.integrations.runner import Outcome
from blip.progress import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def screen(text: str) -> list[str]:
    """Give the lines that a terminal would show after the text."""
    lines: list[str] = []
    for part in re.split(r"(\033\[\d+F\033\[J)", text):
        if up := re.match(r"\033\[(\d+)F", part):
            del lines[-int(up[1]) :]
        else:
            lines += part.splitlines()
    return lines


def test_elsewhere_every_line_comes_with_its_stage() -> None:
    stream = io.StringIO()
    console = Console(stream, ("pretrain@web", "score"))
    console.say("score", "score  45% 270/600 texts 7.1/s 0:46 left")
    console.done(Outcome("pretrain@web", "ran", 12.34))
    console.done(Outcome("score", "failed", 1.0, "ended with exit code 2: blip: bad"))
    assert stream.getvalue().splitlines() == [
        "score         score  45% 270/600 texts 7.1/s 0:46 left",
        "pretrain@web  + ran in 12.3 s",
        "score         ! failed in 1.0 s: ended with exit code 2: blip: bad",
    ]


def test_on_a_terminal_bars_stay_at_the_bottom_until_their_stage_ends() -> None:
    stream = Terminal()
    console = Console(stream, ("left", "right"))
    console.say("left", "train  10% 10/100 steps 2/s 0:45 left")
    console.say("right", "train  50% 50/100 steps 2/s 0:25 left")
    console.say("left", "a warning")
    console.say("left", "train  20% 20/100 steps 2/s 0:40 left")
    shown = screen(stream.getvalue())
    assert shown[0] == "left   a warning"
    assert shown[1] == "left   ████░░░░░░░░░░░░░░░░  20% 20/100 steps 2/s 0:40 left"
    assert shown[2].startswith("right  ██████████░░░░")
    assert len(shown) == 3
    console.done(Outcome("left", "ran", 50.0))
    shown = screen(stream.getvalue())
    assert shown[1] == "left   + ran in 50.0 s"
    assert len(shown) == 3


def test_it_understands_what_stages_say(capsys: object) -> None:
    from blip.integrations.console import PROGRESS

    progress = Progress("ingest web", 4500, "images")
    progress.advance(4500, "loss 1.2")
    written = capsys.readouterr().err.strip()  # type: ignore[attr-defined]
    match = PROGRESS.match(written)
    assert match is not None, written
    assert match["percent"] == "100"
