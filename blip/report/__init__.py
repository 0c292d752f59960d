"""The report of an experiment: one page that opens from disk and says what bootstrapping gained, and why."""

from blip.report.page import write_report

__all__ = ["write_report"]
