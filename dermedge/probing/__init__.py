"""Protocols that measure a teacher's frozen features: linear probe, nearest neighbours, segmentation, few-shot."""

from dermedge.probing.config import PROTOCOLS
from dermedge.probing.probe import probe
from dermedge.probing.report import ProbeReport, ProbeResult
from dermedge.probing.task import TASKS

__all__ = ["PROTOCOLS", "TASKS", "ProbeReport", "ProbeResult", "probe"]
