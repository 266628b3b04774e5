"""Evaluate a teacher's frozen features by published protocols."""

from dermedge.probing.options import PROTOCOLS, ProbeOptions
from dermedge.probing.probe import probe
from dermedge.probing.report import ProbeReport, ProbeResult
from dermedge.probing.task import TASKS

__all__ = ["PROTOCOLS", "TASKS", "ProbeOptions", "ProbeReport", "ProbeResult", "probe"]
