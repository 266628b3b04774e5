r"""Measure false alarms of the fp32 gate on good exports, and which faults it catches.

    python tests/benchmarks/gate_false_alarms.py OUT.jsonl [--seeds 200] \
        [--faults-every 20]

Each case is a network of random weights that is exported to ONNX and run by
onnxruntime. The gate's `max_abs` compares it with torch. Every `--faults-every`-th seed
also exports the network with each fault. OUT.jsonl gets a line per case, and an
interrupted run continues. The table is printed at the end; `--table` prints it alone.
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from dermedge_export.context import inference_copy, module_runner
from dermedge_export.evaluation.metrics import relative_difference
from dermedge_export.parity.gate import LIMITS
from support.varied_graphs import (
    BACKBONES,
    FAULTS,
    GraphOutputs,
    GraphTemplate,
    Outputs,
    lesions,
    varied_model,
)

Case = dict[str, Any]
NO_EFFECT = 1e-5


def differences(reference: Outputs, candidate: Outputs) -> dict[str, float]:
    """Return each task's relative difference, and the largest absolute one."""
    measured = {name: relative_difference(reference[name], candidate[name]) for name in reference}
    largest = max(
        float(np.abs(reference[name].astype(np.float64) - candidate[name]).max())
        for name in reference
    )
    return {**measured, "absolute": largest}


def measure(
    backbone: str, seed: int, template: GraphTemplate, images: Any, faults: bool
) -> Iterator[Case]:
    model = varied_model(backbone, seed, images)
    reference = module_runner(model.module)(images)
    correct = GraphOutputs(template.graph(model))(images)
    good = differences(reference, correct)
    case: Case = {"backbone": backbone, "seed": seed, "fault": "", "differences": good}
    if faults:
        # The difference of torch's float32 from its own float64 is rounding only.
        with torch.no_grad():
            exact = inference_copy(model.module).double()(torch.from_numpy(images))
        wide = {name: output.numpy() for name, output in exact.items()}
        case["rounding"] = differences(reference, wide)
    yield case
    for number, fault in enumerate(FAULTS if faults else ()):
        graph = template.graph(model, fault, np.random.default_rng([seed, number]))
        faulty = GraphOutputs(graph)(images)
        # A weight that only meets padding, for example, changes nothing.
        effect = max(relative_difference(correct[name], faulty[name]) for name in correct)
        yield {
            "backbone": backbone,
            "seed": seed,
            "fault": fault.name,
            "effect": effect,
            "differences": differences(reference, faulty),
        }


def largest(case: Mapping[str, Any]) -> float:
    return max(value for name, value in case["differences"].items() if name != "absolute")


def table(cases: Sequence[Case]) -> str:
    limit = LIMITS["max_abs"]["fp32"]
    assert limit is not None
    lines = [f"limit {limit:g}", ""]
    lines += ["good exports: backbone, cases, median, 99 %, largest, false alarms, ... if absolute"]
    good = [case for case in cases if not case["fault"]]
    for name in (*BACKBONES, "all"):
        chosen = [case for case in good if name in (case["backbone"], "all")]
        if chosen:
            values = [largest(case) for case in chosen]
            median, high, top = np.quantile(values, [0.5, 0.99, 1])
            alarms = sum(value > limit for value in values)
            absolute = sum(case["differences"]["absolute"] > limit for case in chosen)
            lines.append(
                f"{name:22} {len(chosen):4} {median:8.1e} {high:8.1e} {top:8.1e}"
                f" {alarms:4} {absolute:4}"
            )
    lines += [
        "",
        f"faults that change outputs by over {NO_EFFECT:g}: cases, smallest, median, caught",
    ]
    for fault in FAULTS:
        lines.append(fault.name)
        for name in (*BACKBONES, "all"):
            chosen = [
                case
                for case in cases
                if case["fault"] == fault.name
                and name in (case["backbone"], "all")
                and case["effect"] > NO_EFFECT
            ]
            if chosen:
                values = [largest(case) for case in chosen]
                caught = sum(value > limit for value in values)
                lines.append(
                    f"  {name:20} {len(chosen):4} {min(values):8.1e}"
                    f" {np.median(values):8.1e} {caught:4}"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--faults-every", type=int, default=20)
    parser.add_argument("--table", action="store_true", help="print the table of OUT, run nothing")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    lines = chosen.out.read_text().splitlines() if chosen.out.exists() else []
    # The line of an interrupted write is dropped; its case runs again.
    cases = [json.loads(line) for line in lines if line.endswith("}}")]
    if not chosen.table:
        done = {(case["backbone"], case["seed"], case["fault"]) for case in cases}
        images, templates = lesions(chosen.images), {}
        with chosen.out.open("a") as out:
            for seed in range(chosen.seeds):
                for name in BACKBONES:
                    faults = seed % chosen.faults_every == 0
                    last = FAULTS[-1].name if faults else ""
                    if (name, seed, last) in done:
                        continue
                    if name not in templates:
                        templates[name] = GraphTemplate(varied_model(name, 0, images))
                    for case in measure(name, seed, templates[name], images, faults):
                        if (name, seed, case["fault"]) not in done:
                            cases.append(case)
                            out.write(json.dumps(case) + "\n")
                            out.flush()
                        print(
                            name, seed, case["fault"] or "good", f"{largest(case):.1e}", flush=True
                        )
    print(table(cases))


if __name__ == "__main__":
    main()
