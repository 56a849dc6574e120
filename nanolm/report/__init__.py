"""Self-contained HTML pages: one file, no server, nothing loaded from elsewhere."""

from nanolm.report.pages import publish, reliability_lines, summary, write_run_page, write_split_page

__all__ = ["publish", "reliability_lines", "summary", "write_run_page", "write_split_page"]
