"""The verdict on dataset versions: may they be trained on, and if not, a page that says why."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from blip.config import Validate
from blip.data.dataset import open_dataset
from blip.errors import DataError
from blip.files import write_json, write_text
from blip.integrations.catalog import add, reading
from blip.integrations.catalog.tables import Caption, Entry, Run, RunInput, Version, VersionShard
from blip.integrations.quality.checkpoint import Finding, check
from blip.integrations.quality.page import format_page
from blip.integrations.quality.rules import Subject, rules_of
from blip.stage import input_digest
from blip.tracker import Tracker

log = logging.getLogger(__name__)

PAGE = "validation.html"


def validate(
    config: Validate,
    engine: Engine,
    datasets: Sequence[Path],
    out: Path,
    report_dir: Path,
    tracker: Tracker,
) -> None:
    """Check dataset versions against the limits, in the catalogue, and stop where one breaks them.

    Drift is measured from the newest other version of that name and source that passed, so that
    a version that was refused never becomes the measure of the next.

    Writes `metrics.json` (numbers of expectations and of each version), `result.json` (what each
    expectation saw), `index.html` (the same as a page) and `passed.json` (digests of the versions
    that passed and nothing else: what trains on them depends on it, and so not on the limits).

    Args:
        config: The limits.
        engine: An open catalogue; the versions are entered where they are not there.
        datasets: The versions to check.
        out: The stage's output folder.
        report_dir: Where the page of a failing gate is kept, since `out` does not outlive it.
        tracker: Told the numbers, and the page of a failing gate.

    Raises:
        DataError: An expectation fails; it is named, with what was observed and where the page is.
        IntegrationError: The database or Great Expectations refuses.
    """
    for path in datasets:
        add(engine, path)
    with reading(engine) as session:
        subjects = [_subject(session, path) for path in datasets]
    findings = check(engine, [(subject, rules_of(config, subject)) for subject in subjects])
    failed = [finding for finding in findings if not finding.success]
    tracker.metrics({"validate/expectations": len(findings), "validate/failed": len(failed)})
    page, refused = format_page(findings), report_dir / PAGE
    if failed:
        write_text(refused, page)
        tracker.artifact(refused, "validation")
        raise DataError(_refusal(failed, refused))
    refused.unlink(missing_ok=True)  # it would tell of a failure that is mended
    write_text(out / "index.html", page)
    write_json(out / "result.json", [finding.as_json() for finding in findings])
    write_json(out / "metrics.json", {"validate": _metrics(subjects, findings)})
    write_json(out / "passed.json", {path.name: open_dataset(path).digest for path in datasets})
    log.info("%d expectations hold on %d dataset versions", len(findings), len(subjects))


def _refusal(failed: list[Finding], page: Path) -> str:
    first, *others = failed
    more = f" ({len(others)} more fail)" if others else ""
    return (
        f"{first.subject.path}: expectation {first.rule.name} ({first.rule.says}) fails: "
        f"observed {first.words}, limit {first.rule.limit}{more}: see {page}; "
        "mend the data, or change the limit under `validate`"
    )


def _metrics(subjects: list[Subject], findings: list[Finding]) -> dict[str, Any]:
    return {
        "expectations": len(findings),
        "failed": sum(not finding.success for finding in findings),
        "datasets": {
            subject.name: {
                "images": subject.images,
                "captions": subject.captions,
                "mean_characters": subject.mean_characters,
            }
            for subject in subjects
        },
    }


def _subject(session: Session, path: Path) -> Subject:
    """Give what the catalogue says of a version, and of the one that it is measured by."""
    version = session.scalars(select(Version).where(Version.output == input_digest(path))).one()
    accepted = (
        select(RunInput.digest)
        .join(Run, Run.id == RunInput.run_id)
        .where(Run.verb == "validate", RunInput.role == "data")
    )
    others = select(Version).where(
        Version.name == version.name,
        Version.digest != version.digest,
        Version.output.in_(accepted),
    )
    # Another collection under the same name (another preset's) is no measure of this one.
    earlier = session.scalars(others.order_by(Version.id.desc()))
    previous = next((other for other in earlier if other.source == version.source), None)
    before = None if previous is None else _describe(session, previous, path, None)
    return _describe(session, version, path, before)


def _describe(session: Session, version: Version, path: Path, previous: Subject | None) -> Subject:
    mean = session.scalar(
        select(func.avg(func.length(Caption.text)))
        .join(Entry, Entry.caption_id == Caption.caption_id)
        .join(VersionShard, VersionShard.caption_shard_id == Entry.shard_id)
        .where(VersionShard.version_id == version.id)
    )
    return Subject(
        id=version.id,
        name=version.name,
        path=path,
        digest=version.digest,
        images=version.num_images,
        captions=version.num_captions,
        mean_characters=round(float(mean or 0.0), 3),
        previous=previous,
    )
