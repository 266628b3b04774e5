"""Seed ranges of the synthetic lesions, one per purpose.

The ranges do not overlap, so no synthetic lesion has two purposes. A lesion that
calibrates quantization, for example, never measures agreement.

Example:
    >>> from dermedge_export.synthetic.seeds import CALIBRATION
    >>> list(CALIBRATION[:3])
    [5000, 5001, 5002]
"""

AGREEMENT = range(1000)
"""Lesions on which a candidate is compared with its student when there is no data."""

GOLDEN = range(1000, 5000)
"""Lesions of the golden cases in a bundle."""

CALIBRATION = range(5000, 7000)
"""Lesions that calibrate quantization when there is no data."""

DEBUG = range(7000, 8000)
"""Lesions with which `debug_parity` compares two graphs."""
