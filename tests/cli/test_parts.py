"""A stage by parts, as the pods of an Indexed Job type them."""

from pathlib import Path

import pytest

from blip.files import digest_directory
from tests.cli.conftest import TINY, Project

pytestmark = pytest.mark.slow

INGEST = "ingest web --out datasets/web --metrics reports/web.json"


def test_parts_and_the_whole(project: Project, tmp_path: Path) -> None:
    for index in (1, 0):
        project.run(f"{INGEST} --part {index}/2")
        assert not (project.path / "datasets").exists()
        assert not (project.path / "reports").exists()
    (run_dir,) = (project.path / "runs").glob("ingest-*")
    assert len(list(run_dir.glob("shards/0*"))) == 3
    printed = project.run(INGEST)
    assert "images" not in printed, "a shard was done again"
    assert "up to date" in project.run(f"{INGEST} --part 1/2")

    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "data").symlink_to((tmp_path / "data").resolve())
    alone = Project(tmp_path / "alone", TINY)
    alone.run(INGEST)
    for made in ("datasets/web", "reports"):
        assert digest_directory(project.path / made) == digest_directory(alone.path / made)


def test_parts_that_cannot_be(project: Project) -> None:
    assert "--part 2/2: must be I/N with I from 0" in project.run(f"{INGEST} --part 2/2", code=2)
    assert "does not go with --force" in project.run(f"{INGEST} --part 0/2 --force", code=2)
    printed = project.run("caption data --checkpoint models/captioner --part 0/2", code=2)
    assert "--part does not go with IMAGE, --checkpoint" in printed
    assert not list((project.path / "runs").glob("ingest-*"))
