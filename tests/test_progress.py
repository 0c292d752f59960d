"""The bar, on a real terminal: where it stands, how long is left, also of a run that goes on."""

import os
import pty
import re
import subprocess
import sys

import pytest

from blip import progress
from blip.progress import Progress, track

# Half of the work was done by an earlier run; this one does 20 steps a second.
PROGRAM = """
import time
from blip.progress import Progress
bar = Progress("pretrain", 1000, "steps", done=500)
for step in range(30):
    time.sleep(0.05)
    bar.advance(note="loss 1.234")
"""


def seconds(clock: str) -> int:
    total = 0
    for part in clock.split(":"):
        total = 60 * total + int(part)
    return total


def on_terminal(program: str) -> str:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", program], stderr=theirs)
    os.close(theirs)
    written = b""
    while True:
        try:
            chunk = os.read(ours, 1 << 16)
        except OSError:  # Linux says so that the other end is closed
            break
        if not chunk:
            break
        written += chunk
    os.close(ours)
    assert process.wait() == 0
    return written.decode()


def test_a_resumed_run_on_a_terminal_tells_its_own_rate() -> None:
    written = on_terminal(PROGRAM)
    states = written.split("\r\x1b[K")[1:]  # each one is written over the last
    assert len(states) >= 3
    assert "\n" not in written
    for state in states:
        found = re.fullmatch(
            r"pretrain █{12}░{12}  5[0-3]% (\d+)/1000 steps ([\d.]+)/s (\d+:\d\d) left  loss 1.234",
            state,
        )
        assert found, state
        done, rate, left = int(found[1]), float(found[2]), seconds(found[3])
        assert 500 < done <= 530
        assert rate <= 20.5  # not what the earlier run's steps would make of it
        assert left == pytest.approx((1000 - done) / rate, rel=0.01, abs=1.0)  # of three digits


def test_the_end_is_said_once_in_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = Progress("pretrain", 4000, done=1000)
    for _ in range(3000):
        now[0] += 4.0
        bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pretrain  25% 1002/4000 steps 0.25/s 3:19:52 left"
    assert lines[-1] == "pretrain 100% 4000/4000 steps 0.25/s done in 3:20:00"
    assert sum("done" in line for line in lines) == 1


def test_one_of_several_processes_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (True, False):
        assert list(track("ab", "answering", 2, "photos", shown)) == ["a", "b"]
    assert capsys.readouterr().err.count("answering 100% 2/2 photos") == 1
