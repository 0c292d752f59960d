"""Shows a run where a person looks: each line after its stage's name; on a terminal, bars below."""

import re
import shutil
import threading
from typing import TextIO

from blip.integrations.runner import Outcome, State

PROGRESS = re.compile(r"^(?P<what>.*?) +(?P<percent>\d{1,3})% (?P<rest>\d+/\d+ .*)$")
BAR = 20
MARKS: dict[State, str] = {
    "cached": "=",
    "restored": "<",
    "ran": "+",
    "failed": "!",
    "skipped": "-",
    "stopped": "!",
}


class Console:
    """Writes what the stages of a run say.

    Elsewhere than on a terminal every line is written as it comes. On a terminal a line that tells
    of progress becomes a bar, one for each stage under way, which stays at the bottom and gives way
    to one line on what became of the stage.

    Args:
        stream: Where to write, e.g. `sys.stderr`.
        names: The stages' names, to align their lines; more may come.
    """

    def __init__(self, stream: TextIO, names: tuple[str, ...] = ()) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._width = max((len(name) for name in names), default=24)
        self._bars: dict[str, str] = {}
        self._drawn = 0
        self._lock = threading.Lock()

    def say(self, name: str, line: str) -> None:
        """Show a line that a stage printed."""
        progress = PROGRESS.match(line)
        with self._lock:
            if self._terminal and progress:
                self._bars[name] = _bar(int(progress["percent"]), progress["rest"])
                self._write([])
            else:
                self._write([f"{name:<{self._width}}  {line}"])

    def done(self, outcome: Outcome) -> None:
        """Show what became of a stage."""
        took = f" in {outcome.seconds:.1f} s" if outcome.seconds >= 0.05 else ""
        why = f": {outcome.message}" if outcome.message else ""
        line = f"{outcome.name:<{self._width}}  {MARKS[outcome.state]} {outcome.state}{took}{why}"
        with self._lock:
            self._bars.pop(outcome.name, None)
            self._write([line])

    def _write(self, lines: list[str]) -> None:
        """Write lines above the bars, and draw the bars anew."""
        up = f"\033[{self._drawn}F\033[J" if self._drawn else ""
        bars: list[str] = []
        if self._terminal:
            columns = shutil.get_terminal_size().columns
            bars = [
                f"{name:<{self._width}}  {bar}"[: columns - 1] for name, bar in self._bars.items()
            ]
        self._drawn = len(bars)
        self._stream.write(up + "".join(f"{line}\n" for line in [*lines, *bars]))
        self._stream.flush()


def _bar(percent: int, rest: str) -> str:
    filled = BAR * min(percent, 100) // 100
    return f"{'█' * filled}{'░' * (BAR - filled)} {percent:3}% {rest}"
