"""Progress of long work: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

PLAIN_SECONDS = 5.0


class Progress:
    """Counts finished units of a task of known size.

    Args:
        name: What is being done.
        total: Number of units.
        unit: The unit's name in the plural.
        done: Units that an earlier, killed run finished.
        shown: Of several processes that do a share each, one is enough to be seen.
    """

    def __init__(
        self, name: str, total: int, unit: str = "steps", done: int = 0, shown: bool = True
    ) -> None:
        self.name, self.total, self.unit, self._shown = name, total, unit, shown
        self._first, self.done = done, done
        self._started = self._said = time.monotonic()
        self._bar = sys.stderr.isatty()

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count units; `note` is shown behind the rate, e.g. the loss."""
        self.done += units
        now = time.monotonic()
        last = self.done >= self.total
        soon = not last and now - self._said < (0.2 if self._bar else PLAIN_SECONDS)
        if soon or not self._shown:
            return
        self._said = now
        self._say(now, note, last)

    def _say(self, now: float, note: str, last: bool) -> None:
        elapsed = max(now - self._started, 1e-9)
        rate = (self.done - self._first) / elapsed
        share = self.done / max(self.total, 1)
        left = (
            f"done in {_clock(elapsed)}"
            if last
            else f"{_clock((self.total - self.done) / max(rate, 1e-9))} left"
        )
        text = (
            f"{self.done}/{self.total} {self.unit} {rate:.3g}/s {left}{'  ' + note if note else ''}"
        )
        if self._bar:
            filled = int(24 * min(share, 1.0))
            bar = "█" * filled + "░" * (24 - filled)
            sys.stderr.write(
                f"\r\033[K{self.name} {bar} {share:4.0%} {text}{chr(10) if last else ''}"
            )
        else:
            sys.stderr.write(f"{self.name} {share:4.0%} {text}\n")
        sys.stderr.flush()


def track(items: Iterable[T], name: str, total: int, unit: str, shown: bool = True) -> Iterator[T]:
    """Give the items, showing progress after each."""
    progress = Progress(name, total, unit, shown=shown)
    for item in items:
        yield item
        progress.advance()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
