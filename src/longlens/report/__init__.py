"""Reports of stored scores: one HTML page without network access, and its charts as PNG and SVG. Imports no torch."""

from longlens.report.html import write_report
from longlens.report.summary import ReportSummary, summarize_runs

__all__ = ["ReportSummary", "summarize_runs", "write_report"]
