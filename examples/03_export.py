"""Export the student of 02_distill.py, gated on the data that it was made from, and measure the bundle.

python examples/03_export.py OUT
"""

import sys
from pathlib import Path

from dermedge.evaluation import evaluate
from dermedge.workflows.export import export
from dermedge_runtime.errors import GateError


def main(out: Path) -> None:
    try:
        bundle = export(out / "student", "cpu", out, data=out / "data", overwrite=True)
    except GateError as error:
        sys.exit(f"not the same model any more: {error}")
    print(
        f"{bundle.path.name}: parity {bundle.parity['host']['status']} on {bundle.parity['host']['basis']}"
    )

    report = evaluate(bundle, out / "data")
    for name, value in report.overall.metrics.items():
        print(f"{name}: {value.value} ({value.low} to {value.high})")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
