"""The page of the gate: every expectation with what was observed, readable without a network."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from blip.integrations.quality.checkpoint import Finding
from blip.report.markup import Markup, tag

STYLE = Markup("""
:root { color-scheme: light dark; --line: #8884; --good: #18794e; --bad: #c62a2f; }
@media (prefers-color-scheme: dark) { :root { --good: #4cc38a; --bad: #ff8b8b; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .25rem; }
p { margin: .25rem 0 1rem; } code { font-size: .85em; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .4rem .75rem .4rem 0; }
th, td { border-top: 1px solid var(--line); }
th { font-weight: 600; border-top: 0; } td.number { font-variant-numeric: tabular-nums; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
ul { margin: .25rem 0; padding-left: 1.2rem; columns: 16rem; } summary { cursor: pointer; }
@media (max-width: 40rem) {
  thead { display: none; }
  tr { display: block; padding: .5rem 0; border-top: 1px solid var(--line); }
  td { display: block; border: 0; padding: 0; }
  td[data-label]::before { content: attr(data-label) ": "; opacity: .7; }
}
""")


def format_page(findings: list[Finding]) -> str:
    """Give the page: a section for each version, its failing expectations first."""
    failed = sum(not finding.success for finding in findings)
    verdict = (
        f"{failed} of {len(findings)} expectations fail" if failed else "All expectations hold"
    )
    title = f"Validation: {verdict}"
    sections = [
        _section(list(group)) for _, group in groupby(findings, lambda finding: finding.subject.id)
    ]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", STYLE),
    )
    heading = tag("h1", "Validation: ", tag("span", verdict, class_="bad" if failed else "good"))
    return "<!doctype html>\n" + tag("html", head, tag("body", heading, sections), lang="en") + "\n"


def _section(findings: list[Finding]) -> Markup:
    subject = findings[0].subject
    facts = (
        f"{subject.images:,} images, {subject.captions:,} texts of "
        f"{subject.mean_characters:.1f} characters on average; version "
    )
    before = (
        ("; measured against ", tag("code", subject.previous.digest[:12]))
        if subject.previous
        else "; no earlier accepted version to measure against"
    )
    columns = ("", "Expectation", "Observed", "Limit")
    rows = sorted(findings, key=lambda finding: finding.success)
    return tag(
        "section",
        tag("h2", subject.name),
        tag("p", facts, tag("code", subject.digest[:12]), before),
        tag(
            "table",
            tag("thead", tag("tr", [tag("th", column) for column in columns])),
            tag("tbody", [_row(finding) for finding in rows]),
        ),
    )


def _row(finding: Finding) -> Markup:
    mark = (
        tag("span", "holds", class_="good")
        if finding.success
        else tag("span", "fails", class_="bad")
    )
    says = (tag("code", finding.rule.name), tag("br"), finding.rule.says, _examples(finding))
    return tag(
        "tr",
        tag("td", mark),
        tag("td", says),
        tag("td", finding.words, class_="number", data_label="Observed"),
        tag("td", finding.rule.limit, class_="number", data_label="Limit"),
    )


def _examples(finding: Finding) -> Markup | None:
    if not finding.examples:
        return None
    items = [tag("li", tag("code", _example(example))) for example in finding.examples]
    return tag("details", tag("summary", "Failing rows"), tag("ul", items), open="open")


def _example(example: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value!r}" for name, value in example.items())
