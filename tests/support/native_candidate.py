"""The candidates that an export would offer on the machine that runs the tests."""

from dermedge_export.candidate import Candidate, list_candidates
from dermedge_export.target import CPU
from dermedge_runtime.hardware import describe_device


def native_candidate(method: str) -> Candidate:
    """Return the int8 ONNX candidate of `method` for this machine's CPU.

    A CPU without VNNI saturates sums of 8-bit products, so its candidates have
    7-bit weights. A test that compares int8 results must use the same options.
    """
    flags = describe_device()["flags"].split()
    return next(
        candidate
        for candidate in list_candidates(CPU, flags)
        if (candidate.precision, candidate.format, candidate.method) == ("int8", "onnx", method)
    )
