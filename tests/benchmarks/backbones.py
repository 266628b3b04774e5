r"""Train each backbone for one epoch and export it to each kind of target.

    python tests/benchmarks/backbones.py OUT.jsonl [--only NAME ...] [--limit 600]
    python tests/benchmarks/backbones.py OUT.jsonl --table

Weights are random, and the images are drawn lesions, so the result says that the
toolchains handle the network. It says nothing about accuracy. OUT.jsonl gets a line per
backbone and target, and an interrupted run continues. A process per backbone does the
work, so that a crash or a hang costs one cell. The table is printed at the end;
`--table` prints it alone.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from dermedge.data.draw import draw_data_set
from dermedge.data.split import with_split
from dermedge.data.table import read_table
from dermedge.models import TrainedModel, load_model_folder, save_model_folder
from dermedge.models.network import count_macs, count_parameters
from dermedge.train.finetune import FinetuneOptions, finetune
from dermedge.train.loop import Schedule
from dermedge_export import ExportOptions, ExportSession
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.errors import DermedgeError, first_line
from dermedge_runtime.hardware import describe_device
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.report import PARITY_REPORT
from dermedge_runtime.verify import verify
from support.varied_graphs import augmented

Cell = dict[str, Any]
TOOLS = ("coremltools", "onnxruntime", "onnxscript", "sklearn.metrics", "torch.onnx", "nncf")
VERSIONS = ("torch", "timm", "onnxruntime", "coremltools")
TRAIN = "train"
# Largest difference of an fp32 output, where outputs differ between images by about 1.
TOLERANCE = 1e-3
# fp16 has 13 bits of precision less than fp32. A larger difference is not rounding.
COARSER = 2**13
COUNTS = ("parameters", "macs")
# The precision that changes the student least, for each target.
PRECISIONS = {
    "cpu": "fp32",
    "android": "fp32",
    "android-onnx": "fp32",
    "jetson": "fp16",
    "ios": "fp16",
}


@dataclass(frozen=True)
class Case:
    """A backbone with the side of its input in pixels and its arguments."""

    name: str
    size: int = 64
    args: Mapping[str, Any] = field(default_factory=dict)


def resized(name: str, size: int, **args: Any) -> Case:
    """Return a backbone that is created for its input size."""
    return Case(name, size, {"img_size": size, **args})


_ANY_SIZE = """
mobilenetv2_100 mobilenetv3_small_100 mobilenetv4_conv_small mobileone_s0 repvgg_a0 lcnet_050
resnet18 convnext_atto starnet_s1 fasternet_t0 regnety_002 efficientvit_b0 mobilevit_xxs
mobilevitv2_050 edgenext_xx_small fastvit_t8 pvt_v2_b0 poolformerv2_s12 efficientnet_lite0
efficientnet_b0 tiny_vit_5m_224 mambaout_femto inception_next_atto iformer_t shvit_s1
repvit_m0_9 ghostnetv2_100 repghostnet_100 mnasnet_100 gernet_s hgnetv2_b0 rexnet_100
convnextv2_atto hardcorenas_a tinynet_e mixnet_s resnet10t mobilenetv3_large_100
mobilenetv4_hybrid_medium tf_efficientnetv2_b0 fbnetc_100 spnasnet_100 semnasnet_100
nf_regnet_b0 regnetx_002 ese_vovnet19b_dw skresnet18 ghostnet_100 ghostnetv3_100
fastvit_sa12 densenet121 dla60x_c hrnet_w18_small convnext_femto convnext_pico
efficientnet_lite1 efficientnet_lite2 regnetx_008 regnety_008 mobilenetv4_conv_medium
"""
CASES = (
    # The published networks of these two families have more than 12 M parameters. A
    # smaller one of the same layers stands for each.
    resized("hiera_tiny_224", 64, stages=[1, 1, 1, 1], embed_dim=48),
    resized("swin_tiny_patch4_window7_224", 64, embed_dim=48, depths=[1, 1, 2, 1], window_size=2),
    # These accept only the size that they are created for.
    resized("vit_tiny_patch16_224", 64),
    resized("xcit_nano_12_p16_224", 64),
    resized("cait_xxs24_224", 64),
    resized("maxvit_rmlp_pico_rw_256", 64),
    resized("coatnet_pico_rw_224", 64),
    Case("levit_128s", 224),
    Case("efficientformer_l1", 224),
    Case("swiftformer_xs", 224),
    *(Case(name) for name in _ANY_SIZE.split()),
    Case("efficientformerv2_s0", 224),
    resized("efficientvit_m0", 224),
    resized("deit_tiny_patch16_224", 64),
    resized("eva02_tiny_patch14_224", 70),
    Case("pit_ti_224", 224),
    Case("coat_lite_tiny", 224),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these backbones again")
    parser.add_argument("--limit", type=float, default=600, help="seconds per backbone")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    if not options.table:
        sweep(options.out, options.only or [], options.limit)
    print(format_table(read_cells(options.out).values()))


def read_cells(out: Path) -> dict[tuple[str, str], Cell]:
    """Return the last line of each backbone and target."""
    lines = out.read_text().splitlines() if out.exists() else []
    return {(cell["backbone"], cell["target"]): cell for cell in map(json.loads, lines)}


def sweep(out: Path, only: list[str], limit: float) -> None:
    """Measure the cells that failed or that OUT lacks, or all of the backbones in `only`."""
    known = {key for key, cell in read_cells(out).items() if cell["state"] != "failed"}
    torch.set_num_threads(1)
    for module in TOOLS:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as temporary:
        draw_images(Path(temporary))
        for case in CASES:
            if only and case.name not in only:
                continue
            finished = set() if only else known
            steps = [step for step in PRECISIONS if (case.name, step) not in finished]
            if steps or (case.name, TRAIN) not in finished:
                measure_in_processes(case, [TRAIN, *steps], Path(temporary), out, limit)


def draw_images(folder: Path) -> None:
    """Draw the data set that every backbone trains on."""
    draw_data_set(folder / "lesions", count=32, seed=3, size=(96, 72))
    table = with_split(read_table(folder / "lesions"))
    table.frame.to_csv(folder / "lesions" / "metadata.csv", index=False)


def measure_in_processes(
    case: Case, steps: list[str], folder: Path, out: Path, limit: float
) -> None:
    """Measure steps in a child process; after a crash, the rest in another one."""
    # The child is forked from this process, which has imported everything.
    context = multiprocessing.get_context("fork")
    while steps:
        before = len(read_lines(out))
        child = context.Process(target=measure, args=(case, steps, folder, out))
        child.start()
        child.join(limit)
        end = f"exit code {child.exitcode}"
        if child.is_alive():
            child.kill()
            child.join()
            end = f"no result within {limit:.0f} s"
        done = [json.loads(line)["target"] for line in read_lines(out)[before:]]
        steps = [step for step in steps if step not in done]
        if TRAIN in done and read_cells(out)[case.name, TRAIN]["state"] != "ok":
            return
        if steps:
            write_cell(out, case, steps.pop(0), {"state": "failed", "message": end})


def read_lines(out: Path) -> list[str]:
    return out.read_text().splitlines() if out.exists() else []


def write_cell(out: Path, case: Case, step: str, facts: Mapping[str, Any]) -> None:
    cell = {"backbone": case.name, "target": step, "size": case.size, "args": dict(case.args)}
    versions = {name: version(name) for name in VERSIONS}
    with out.open("a") as file:
        file.write(json.dumps({**cell, **facts, "versions": versions}) + "\n")
    print(f"{case.name:28} {step:8} {facts['state']:8} {facts.get('message', '')}", flush=True)


def measure(case: Case, steps: list[str], folder: Path, out: Path) -> None:
    """Train the backbone, and export it for each target (in the child process)."""
    student = folder / case.name
    if TRAIN in steps:
        write_cell(out, case, TRAIN, attempt(partial(train, case, folder, student)))
    if not student.exists():
        return
    session = ExportSession.open(load_model_folder(student))
    for step in steps:
        if step != TRAIN:
            # The images of a class differ too little for a network of random weights to
            # tell them apart, so the gate's accuracy means nothing here.
            options = ExportOptions(
                precision=PRECISIONS[step], overwrite=True, allow_parity_failure=True
            )
            work = partial(export_and_verify, replace(session, options=options), step)
            write_cell(out, case, step, attempt(partial(work, folder / "out")))


def attempt(work: Callable[[], Mapping[str, Any]]) -> Cell:
    """Return the result of `work`, or the error, with the seconds it took.

    `refused` is an error that tells the user what to do. Any other one is `failed`.
    """
    start = time.perf_counter()
    try:
        facts = {"state": "ok", **work()}
    except DermedgeError as error:
        refused = error.exit_code in (1, 2)
        facts = {"state": "refused" if refused else "failed", "message": str(error)}
    except Exception as error:
        facts = {"state": "failed", "message": f"{type(error).__name__}: {first_line(error)}"}
    return {**facts, "seconds": round(time.perf_counter() - start, 1)}


def train(case: Case, folder: Path, student: Path) -> Cell:
    options = FinetuneOptions(
        backbone=case.name,
        backbone_args=dict(case.args),
        size=case.size,
        role="student",
        schedule=Schedule(epochs=1, batch_size=8),
    )
    model = finetune(folder / "lesions", folder / "trained", options, overwrite=True)
    spread_outputs(model)
    save_model_folder(model, student)
    return {
        "parameters": count_parameters(model.module),
        "macs": count_macs(model.module, model.spec),
    }


@torch.no_grad()
def spread_outputs(model: TrainedModel) -> None:
    """Scale the heads so that outputs differ between images by 1 on average.

    The outputs of a network that is hardly trained are nearly constant, and such a
    network hides the faults of a converter.
    """
    spec = model.spec.preprocess
    lesions = [preprocess(draw_lesion(seed).image, spec) for seed in range(24)]
    images = torch.from_numpy(augmented(np.stack(lesions), np.random.default_rng(0)))
    for module in model.module.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            # Without momentum, the running statistics are those of one pass.
            module.momentum = None
            module.reset_running_stats()
    model.module.train()(images)
    for name, logits in model.module.eval()(images).items():
        head = model.module.get_submodule(f"heads.{name}")
        head.weight.div_(logits.std(dim=0).mean().clamp_min(1e-6))


def export_and_verify(session: ExportSession, target: str, out: Path) -> Cell:
    """Export for one target, verify the bundle, and return its largest difference."""
    bundle = session.export(target, out)
    # `export` has verified the bundle with an engine or a simulation. A new process
    # without it can verify the files and the decoding.
    verified = verify(bundle.path)
    if verified.status not in ("passed", "not_run"):
        return {"state": "failed", "message": f"verify: {verified.status}"}
    agreement = json.loads((bundle.path / PARITY_REPORT).read_text())["agreement"]
    difference = agreement["max_abs"]
    if bundle.artifact.precision == "fp32" and not difference <= TOLERANCE:
        return {"state": "failed", "message": f"outputs differ by {difference:.3g}"}
    return {
        "max_difference": difference,
        "host": bundle.parity["host"]["status"],
        "verify": verified.status,
    }


def format_table(cells: Iterable[Cell]) -> str:
    """Return the support matrix as Markdown, with the message of every refusal."""
    rows: dict[str, dict[str, Cell]] = {}
    messages: list[str] = []
    for cell in cells:
        rows.setdefault(cell["backbone"], {})[cell["target"]] = cell
        if cell["state"] != "ok" and cell["message"] not in messages:
            messages.append(cell["message"])
    lines = [
        f"| backbone | pixels | M parameters | M MACs | {' | '.join(PRECISIONS)} |",
        f"|---|--:|--:|--:|{'---|' * len(PRECISIONS)}",
    ]
    for name, row in sorted(rows.items()):
        facts = row.get(TRAIN, {})
        size = next(iter(row.values()))["size"]
        counts = (f"{facts[key] / 1e6:.1f}" if facts.get(key) else "" for key in COUNTS)
        states = (_state(row, step, messages) for step in PRECISIONS)
        lines.append(f"| {' | '.join([name, str(size), *counts, *states])} |")
    notes = [f"{number}. {message}" for number, message in enumerate(messages, 1)]
    return "\n".join([describe_machine(), "", *lines, "", *notes])


def describe_machine() -> str:
    device = describe_device()
    tools = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    return f"{device['cpu']} ({device['flags']}), 1 thread, {tools}."


def _state(row: Mapping[str, Cell], step: str, messages: list[str]) -> str:
    """Return a cell of the table: the largest difference, or the number of a note."""
    # A backbone that cannot train is not exported.
    cell = row.get(step, row.get(TRAIN))
    if cell is None or (cell["target"] == TRAIN and cell["state"] == "ok"):
        return "not measured"
    if cell["state"] != "ok":
        return f"{cell['state']} ({messages.index(cell['message']) + 1})"
    exact = row.get("cpu", {}).get("max_difference")
    if exact is not None and not cell["max_difference"] <= COARSER * exact:
        return f"failed: {cell['max_difference']:.0e}"
    gate = "" if cell["host"] == "passed" else f", gate {cell['host']}"
    return f"{cell['max_difference']:.0e}{gate}"


if __name__ == "__main__":
    main()
