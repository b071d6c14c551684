"""Pictures of stored scores: one HTML page that needs no network, and the same charts as PNG and SVG. No torch here."""

from longlens.report.html import write_report
from longlens.report.summary import ReportSummary, summarize_runs

__all__ = ["ReportSummary", "summarize_runs", "write_report"]
