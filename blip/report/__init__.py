"""The report of an experiment: one page that says what bootstrapping gained, and why."""

from blip.report.page import write_report

__all__ = ["write_report"]
