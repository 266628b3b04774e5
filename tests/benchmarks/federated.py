r"""Train at several simulated hospitals, and compare with local and pooled training.

    python tests/benchmarks/federated.py DATA WEIGHTS OUT [--only NAME ...]

DATA holds the folders ham10000, isic2017 and pad_ufes_20. WEIGHTS is a safetensors file of
tf_efficientnet_lite0. The backbone stays frozen, so its features are computed once per image and
kept in OUT/features. All settings are fixed here and were not tuned on test images. The
tables of docs/federated.md are printed at the end. A finished setting is not repeated.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dermedge.data.table import Table, read_table
from dermedge.federated.options import FederatedOptions
from dermedge.federated.partition import Partition
from dermedge.federated.report import FederatedReport
from dermedge.federated.simulate import simulate_federated

HOSPITALS = ("ham10000", "isic2017", "pad_ufes_20")
SKEWED = Partition(clients=3, skew=0.3)
COMMON: Mapping[str, Any] = {
    "tasks": ("malignancy",),
    "backbone": "tf_efficientnet_lite0",
    "size": 96,
    "rounds": 20,
    "local_ids": True,
}
# Settings by name: the tables, and the options that differ.
SETTINGS: Mapping[str, tuple[tuple[str, ...], Partition | None, Mapping[str, Any]]] = {
    "hospitals-fedavg": (HOSPITALS, None, {}),
    "hospitals-fedprox": (HOSPITALS, None, {"strategy": "fedprox"}),
    "hospitals-fedadam": (HOSPITALS, None, {"strategy": "fedadam"}),
    "hospitals-epsilon-8": (HOSPITALS, None, {"epsilon": 8.0}),
    "hospitals-epsilon-2": (HOSPITALS, None, {"epsilon": 2.0}),
    "skew-fedavg": (("ham10000",), SKEWED, {}),
    "skew-fedprox": (("ham10000",), SKEWED, {"strategy": "fedprox"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=SETTINGS)
    arguments = parser.parse_args()
    for name in arguments.only or SETTINGS:
        tables, partition, changes = SETTINGS[name]
        options = FederatedOptions(**{**COMMON, "init": str(arguments.weights), **changes})
        report = simulate_federated(
            {table: read_with_test(arguments.data / table) for table in tables},
            arguments.out / name,
            options,
            partition=partition,
            cache=arguments.out / "features",
            progress=lambda done, total, note: None,
        )
        print(format_report(name, report), flush=True)


def read_with_test(folder: Path) -> Table:
    """Read a table; assign all splits again if it has none for test, as isic2017 here."""
    table = read_table(folder)
    if (table.frame["split"] == "test").any():
        return table
    return table.replace(table.frame.assign(split=""))


def format_report(name: str, report: FederatedReport) -> str:
    """Return the malignant AUROC by client and model as a table in Markdown."""
    rows = {(row.client, row.model): row for row in report.results}
    lines = [
        f"{name}: kept round {report.best_round}, {report.bytes} bytes",
        "| client | test images | malignant | local | pooled | federated | federated - local |",
        "|---|---|---|---|---|---|---|",
    ]
    for client in dict.fromkeys(row.client for row in report.results):
        own = rows[client, "federated"].scores
        cells = [client, str(own.cases), str(own.malignant)]
        cells += [show(rows[client, model].scores.metrics) for model in ("local", "pooled")]
        cells += [show(own.metrics), show(rows[client, "local"].change)]
        lines.append(f"| {' | '.join(cells)} |")
    for group in rows["all", "federated"].subgroups:
        values = {
            model: show(
                next(
                    one.scores.metrics
                    for one in rows["all", model].subgroups
                    if one.value == group.value and one.column == group.column
                )
            )
            for model in ("local", "pooled", "federated")
        }
        lines.append(f"{group.column} {group.value}, {group.scores.cases} images: {values}")
    spent = report.rounds[-1].get("epsilon")
    return "\n".join([*lines, *([f"epsilon {spent}"] if spent else []), ""])


def show(metrics: Mapping[str, Any]) -> str:
    """Format the malignant AUROC with its interval."""
    value = metrics.get("malignant_auroc")
    if value is None:
        return "-"
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"


if __name__ == "__main__":
    main()
