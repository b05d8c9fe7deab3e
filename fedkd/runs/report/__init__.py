"""``report.html``: a run to look at, in one file without script, fonts or images from elsewhere.

The charts are SVG that is written here. With matplotlib they took seconds, and every run writes a report; these take
milliseconds, follow the page's colors in light and dark, and their text stays text.
"""

from fedkd.runs.report.run_page import write_report

__all__ = ["write_report"]
