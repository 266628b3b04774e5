"""Toolchains report their use to their makers as engines do, and are silenced alike."""

from dermedge_runtime.telemetry import no_telemetry as no_telemetry
from dermedge_runtime.telemetry import silent as silent
