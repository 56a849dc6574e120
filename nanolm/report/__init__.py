"""Self-contained HTML pages: one file, no server, nothing loaded from elsewhere."""

from nanolm.report.baseline import write_baseline_report
from nanolm.report.pages import write_evaluation_report, write_run_report

__all__ = ["write_baseline_report", "write_evaluation_report", "write_run_report"]
