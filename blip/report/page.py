"""The page as a whole: sections in the order of the questions, one file that opens from disk."""

import logging
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import yaml

from blip.config import Config, dump_config
from blip.data.truth import read_truth
from blip.files import digest_json, write_text
from blip.report.arms import CANDIDATE, read_arms
from blip.report.cost import cost_section
from blip.report.curves import curves_section
from blip.report.document import to_document
from blip.report.figure import Section
from blip.report.filtering import filter_section
from blip.report.gallery import gallery_section
from blip.report.headline import headline_section
from blip.report.markup import Markup, join, tag
from blip.report.provenance import provenance_section
from blip.report.versions import read_corpus, read_versions

log = logging.getLogger(__name__)

_PACKAGES = ("torch", "mlflow", "dvc", "prefect", "numpy", "pyarrow")


def write_report(config: Config, root: Path, out: Path, pictures: Path | None) -> None:
    """Write the report of a finished experiment: one self-contained HTML file.

    What the experiment does not have (the truth about photos, an arm, journals of stages that ran
    elsewhere) is left out of the page.

    Args:
        config: The experiment.
        root: The project's folder, with `results/`, `datasets/`, `models/` and `runs/`.
        out: The file to write.
        pictures: A folder for the figures, one SVG file each; None for none.

    Raises:
        DataError: A file is malformed, or the page cannot be written.
    """
    sections = read_sections(config, root)
    title = f"{config.name}: {sections[0].title}"
    write_text(out, to_document(title, _body(config, sections)))
    log.info("%s: %d kB", out, out.stat().st_size // 1000)
    if pictures is not None:
        for figure in (figure for section in sections for figure in section.figures):
            write_text(pictures / f"{figure.name}.svg", figure.picture())


def read_sections(config: Config, root: Path) -> list[Section]:
    """Read the experiment and give the sections that it has something for, the answer first."""
    arms, versions = read_arms(root), read_versions(root)
    corpora = {arm.name: read_corpus(arm, versions) for arm in arms}
    truth = root / config.evaluate.truth if config.evaluate.truth else None
    truths = read_truth(truth) if truth and truth.is_file() else []
    found = [
        headline_section(root, arms, corpora, config.evaluate.confidence),
        curves_section(root, arms),
        gallery_section(root / "datasets" / CANDIDATE, truths, config.ingest.max_pixels),
        filter_section(root, config.capfilt.threshold),
        provenance_section(root, arms, corpora, versions),
        cost_section(root, config),
        _configuration(config),
    ]
    return [section for section in found if section is not None]


def _configuration(config: Config) -> Section:
    document = yaml.safe_dump(
        dump_config(config), sort_keys=False, default_flow_style=None, width=110
    )
    versions = {
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
    }
    content = [
        tag("details", tag("summary", "params.yaml as it was read"), tag("pre", document)),
        tag(
            "p", ", ".join(f"{name} {version}" for name, version in versions.items()), class_="note"
        ),
    ]
    return Section("configuration", "Configuration", join(content))


def _body(config: Config, sections: Sequence[Section]) -> Markup:
    first, *others = sections
    experiment = f"{config.name}-{digest_json(dump_config(config))[:8]}"
    links = [tag("a", section.title, href=f"#{section.name}") for section in others]
    header = tag(
        "header", tag("p", "BLIP experiment ", tag("b", experiment)), tag("h1", first.title)
    )
    parts = [tag("section", tag("h2", s.title), s.content, id=s.name) for s in others]
    return tag("main", header, first.content, tag("nav", links), parts)
