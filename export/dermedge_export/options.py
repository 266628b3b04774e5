"""Settings of an export."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ExportOptions:
    """The settings of an export; every target of one session shares them.

    Example:
        >>> from dermedge_export import ExportOptions
        >>> options = ExportOptions(precision="int8", overwrite=True)
        >>> options.budget
        30.0

    Attributes:
        precision: One of the target's precisions, or `auto`. None tries the target's
            precisions in order and takes the first that passes. `auto` builds all
            candidates and selects the best one that passes.
        tasks: Names of the tasks to export, in any order. Empty exports all of them.
        explain: Add the class activation maps of the diagnosis as an output. Models
            whose maps would not be exact are refused.
        engine: Build only artifacts for this engine; None allows every engine of the
            target.
        budget: Minutes after which `auto` starts no further candidate.
        dynamic_batch: Leave the batch size open; it is 1 by default, because engines
            optimize a fixed shape better.
        allow_parity_failure: Write the bundle even if the gate fails. The manifest
            records the failure.
        overwrite: Replace an existing bundle.
        sensitivity: Share of malignant val images that the decision threshold keeps
            from being called benign.
        coverage: Share of the val images of each label whose conformal set holds that
            label. The same share of benign images is not called malignant.
    """

    precision: str | None = None
    tasks: Sequence[str] = ()
    explain: bool = False
    engine: str | None = None
    budget: float = 30.0
    dynamic_batch: bool = False
    allow_parity_failure: bool = False
    overwrite: bool = False
    sensitivity: float = 0.9
    coverage: float = 0.9
