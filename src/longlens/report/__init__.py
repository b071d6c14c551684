"""Reports of stored scores: a self-contained HTML page, and its charts as PNG and SVG. Does not import torch."""

from longlens.report.html import write_report
from longlens.report.summary import ReportSummary, summarize_runs

__all__ = ["ReportSummary", "summarize_runs", "write_report"]
