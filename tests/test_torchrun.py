"""torchrun whose exit code says what became of its processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.torchrun import exit_code

# So that both end at once, whichever began first.
PROCESS = """
import os, sys, time
from pathlib import Path
rank, told = os.environ["RANK"], Path(__file__).with_name("told")
tell = told.touch
def wait():
    while not told.exists(): time.sleep(0.01)
"""


@given(st.lists(st.sampled_from([1, 2, 75, 143, -9, -11, -15]), min_size=1))
def test_the_cause_goes_before_who_suffered_from_it(codes: list[int]) -> None:
    code = exit_code(codes)
    assert code in {128 - c if c < 0 else c for c in codes}
    if 2 in codes:
        assert code == 2
    elif set(codes) - {75, 143, -15}:
        assert code in (1, 137, 139)
    elif 75 not in codes or {143, -15} & set(codes):
        assert code == 143


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ("tell() if rank == '1' else wait(); sys.exit(2 if rank == '1' else 75)", 2),
        ("os.kill(os.getpid(), 9) if rank == '0' else time.sleep(600)", 137),
        ("sys.exit(143)", 143),
        ("os.kill(os.getppid(), 15) if rank == '1' else None; time.sleep(600)", 143),
        ("pass", 0),
    ],
)
def test_the_code_of_real_processes(tmp_path: Path, ends: str, code: int) -> None:
    script = tmp_path / "ends.py"
    script.write_text(PROCESS + ends)
    command = [sys.executable, "-m", "blip.torchrun", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(script)], env=os.environ, check=False, timeout=300)
    assert done.returncode == code
