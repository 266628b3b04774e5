"""Options of short federated trainings, and a marker for tests that need Flower."""

import importlib.util

import pytest

from dermedge.federated.options import FederatedOptions
from support import small

needs_flower = pytest.mark.skipif(
    importlib.util.find_spec("flwr") is None,
    reason="flwr is not installed: `make test-federated` runs these tests in their environment",
)


def options(**changes: object) -> FederatedOptions:
    """Return options of a training that takes about a second."""
    base = {"backbone": small.EXPORTED, "size": small.SIZE, "rounds": 2, "batch_size": 8}
    return FederatedOptions(**{**base, "tasks": ("malignancy",), "lr": 1e-2, **changes})
