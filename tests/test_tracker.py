"""The journal: every whole line survives, torn ones are cut off."""

import math
from pathlib import Path

from blip.tracker import Journal, read_journal


def test_events_come_back_in_order_and_from_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "journal.jsonl"
    journal = Journal(path)
    journal.start(stage="toy")
    events, offset = read_journal(path)
    assert [event["event"] for event in events] == ["start"]
    journal.metrics({"train/loss": 1.5, "train/broken": math.nan}, step=3)
    journal.end("FINISHED")
    events, end = read_journal(path, offset)
    assert events[0]["values"] == {"train/loss": 1.5}
    assert events[0]["step"] == 3
    assert events[1]["status"] == "FINISHED"
    assert read_journal(path, end) == ([], end)


def test_torn_last_line_is_not_read_and_the_next_writer_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).metrics({"a": 1.0})
    with path.open("a") as file:
        file.write('{"event": "metr')
    assert len(read_journal(path)[0]) == 1
    Journal(path).metrics({"a": 2.0})
    assert [event["values"]["a"] for event in read_journal(path)[0]] == [1.0, 2.0]
