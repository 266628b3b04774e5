"""Protocols that measure a teacher's frozen features: linear probe, nearest neighbours, segmentation, few-shot."""

from dermedge.evaluate.probe.probing import probe
from dermedge.evaluate.probe.question import TASKS
from dermedge.evaluate.probe.report import ProbeReport, ProbeResult
from dermedge.evaluate.probe.setup import PROTOCOLS

__all__ = ["PROTOCOLS", "TASKS", "ProbeReport", "ProbeResult", "probe"]
