"""What is known about a bundle, as one page to open and to hand on; needs no torch."""

from dermedge.report.html import write_report

__all__ = ["write_report"]
