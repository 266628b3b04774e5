"""Export the student of 02_distill.py for CPUs, and evaluate the bundle on test images.

python examples/03_export.py OUT

It needs `pip install 'dermedge[export]'`.
"""

import sys
from pathlib import Path

import dermedge


def main(out: Path) -> None:
    # Train images calibrate, val selects the candidate, and test decides if the gate
    # passes.
    options = dermedge.ExportOptions(overwrite=True)
    try:
        bundle = dermedge.export(out / "student", "cpu", out, data=out / "data", options=options)
    except dermedge.GateError as error:
        sys.exit(f"the artifact lost too much accuracy: {error}")
    host = bundle.parity["host"]
    print(f"{bundle.path.name}: parity {host['status']} on {host['basis']}")

    report = dermedge.evaluate(bundle, out / "data")
    for name, value in report.overall.metrics.items():
        print(f"{name}: {value.value} ({value.low} to {value.high})")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
