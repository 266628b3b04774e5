"""Write the HTML report of a bundle; needs no torch."""

from dermedge.report.html import write_report

__all__ = ["write_report"]
