"""Export Core ML programs from an RGB image to logits by task.

The same weights and tool versions give the same bytes. The converted program is
compressed by `coremltools.optimize.coreml`. The simulation then reads the written file,
so the file itself is measured. `coremltools.optimize.torch` would compress the network
before conversion. But its activation quantizer traces symbolically, which fails on a
network that reads the shape of its input.
"""

import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from dermedge_export.calibration import Calibration, synthetic_calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import (
    BuiltArtifact,
    ExportContext,
    Simulation,
    describe_artifact,
    unsupported_candidate,
)
from dermedge_export.exporters.coreml.compress import COMPRESS
from dermedge_export.exporters.coreml.package import PATH, read_files, write_package
from dermedge_export.exporters.coreml.ranges import (
    Ranges,
    exact_steps,
    measure_ranges,
    overflowing,
)
from dermedge_export.exporters.coreml.simulation import Program, read_program, simulated_runner
from dermedge_export.graph.exact import EXACT_KINDS
from dermedge_export.graph.trace import tuple_of
from dermedge_export.target import Target
from dermedge_export.toolchain import silence
from dermedge_runtime.errors import DataError, MissingExtraError, UsageError, first_line
from dermedge_runtime.signature import INPUT
from dermedge_runtime.spec import Spec

TOOLS = ("dermedge", "torch", "coremltools")
# The macOS version that was released with each iOS version and runs the same programs.
MACOS = {"iOS16": "13", "iOS17": "14", "iOS18": "15"}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_IMAGES = 64  # on which the ranges of values are measured
OTHERWISE = (
    "Export for android or cpu, or take another backbone (mobilenetv2_100 and convnext_atto "
    "convert)."
)

if TYPE_CHECKING:
    import torch
    from coremltools.converters.mil.mil import Operation
    from coremltools.models import MLModel


def export_coreml(context: ExportContext, target: Target, candidate: Candidate) -> BuiltArtifact:
    """Build an .mlpackage.

    The program has the input `image`, RGB of S x S pixels, and one float32 output per
    task. It contains the normalization of pixels. The diagnosis is not exported as a
    Core ML classifier, because a classifier returns probabilities: the outputs here are
    logits, whose temperature is fitted later. The labels are in the metadata.

    Raises:
        MissingExtraError: torch or coremltools is not installed.
        UsageError: Core ML lacks an operator of the network, or the target supports
            neither the candidate nor an open batch size.
    """
    _check(context, target, candidate)
    try:
        import torch  # noqa: F401

        with silence():
            import coremltools  # noqa: F401
    except ImportError as error:
        tool = error.name or "coremltools"
        raise MissingExtraError(
            tool, "export" if tool == "torch" else "coreml", "Export to Core ML"
        ) from error
    quantized = candidate.precision == "w8a8"
    images = context.calibration if quantized else _range_images(context)
    # All candidates of a target start from the same conversion, which takes most of the
    # time.
    key = ("coreml", target.name, images.digest)
    converted = context.cached(key, lambda: _convert_within_fp16(context, target, images))
    with silence():
        compress = COMPRESS[candidate.precision]
        model = compress(converted.model, candidate, converted.ranges)
        files = write_package(model, context.spec)
    described = describe_artifact(
        target,
        candidate,
        PATH,
        TOOLS,
        details=_details(target, candidate, images) | {"kept_fp32": converted.kept_fp32},
        calibration=context.calibration if quantized else None,
    )
    simulation = Simulation(
        "torch simulation of Core ML", version("torch"), simulated_runner(read_program(files))
    )
    return BuiltArtifact(
        described, {f"{PATH}/{name}": content for name, content in files.items()}, simulation
    )


def _check(context: ExportContext, target: Target, candidate: Candidate) -> None:
    """Check that Core ML and the target support the candidate and the tasks.

    Raises:
        UsageError: The candidate is unknown, the batch size is open, the target lacks
            8-bit activations, or Core ML cannot name a task.
    """
    if candidate.precision not in COMPRESS:
        raise unsupported_candidate(candidate)
    if context.dynamic_batch:
        raise UsageError(
            "Core ML runs a model with an open batch size on the CPU and not on the Neural Engine. "
            f"Leave it out for {target.name}; its runtime runs any number of images one by one."
        )
    if candidate.precision == "w8a8" and not target.facts.get("w8a8"):
        raise UsageError(
            f"{target.name} has no 8-bit activations. Choose among {', '.join(target.precisions)}."
        )
    for task in context.spec.tasks:
        if not NAME.fullmatch(task.name) or task.name == INPUT:
            raise UsageError(
                f"Core ML cannot name an output {task.name!r}. Name the task with letters, digits "
                f"and '_', but not {INPUT!r}."
            )


def _details(target: Target, candidate: Candidate, images: Calibration) -> dict[str, object]:
    """Return the facts about the artifact that the manifest contains."""
    details = {
        "deployment": target.facts["deployment"],
        "macos": MACOS[target.facts["deployment"]],
        "batch": 1,
        "method": candidate.method,
        **candidate.options,
        "ranges": f"{len(images)} images of split {images.split}",
    }
    if candidate.precision != "fp16":
        details["compressed_by"] = "coremltools.optimize.coreml, once converted"
    if candidate.precision == "w8a8":
        details["faster_on"] = "A17 Pro, M4 and newer; elsewhere only smaller"
    return details


def _range_images(context: ExportContext) -> Calibration:
    """Return images to measure ranges on; synthetic lesions if calibration fails."""
    try:
        images = context.calibration
    except DataError:
        images = synthetic_calibration(context.spec.preprocess)
    every = -(-len(images) // MAX_IMAGES)
    return Calibration(images.images[::every], images.digests[::every], images.split)


@dataclass(frozen=True)
class _Converted:
    """A network as a Core ML model in fp16, with the ranges of its values.

    `kept_fp32` names the operators whose numbers leave fp16.
    """

    model: "MLModel"
    ranges: Ranges
    kept_fp32: list[str]


def _convert_within_fp16(context: ExportContext, target: Target, images: Calibration) -> _Converted:
    """Convert a network to fp16, except for exact heads and operators that overflow.

    Raises:
        UsageError: torch cannot trace the network, or Core ML lacks one of its
            operators.
    """
    program = _trace(context)
    exact = {task.name for task in context.spec.tasks if task.kind in EXACT_KINDS}
    kept: set[str] = set()
    # An operator in fp32 may return numbers that the next one cannot hold in fp16, so
    # convert until no further operator overflows. The set only grows, so the loop ends.
    while True:
        model = _convert(program, context.spec, target, kept)
        converted = read_program(read_files(model))
        ranges = measure_ranges(converted, images.images)
        more = (overflowing(converted, ranges) | exact_steps(converted, exact)) - kept
        if not more:
            return _Converted(model, ranges, _operators_in_fp32(converted, kept))
        kept |= more


def _operators_in_fp32(program: Program, kept: set[str]) -> list[str]:
    """Return the outputs of the program that are fp32 because they are in `kept`."""
    outputs = {name for step in program.steps if not any(step.half) for name in step.outputs}
    return sorted(kept & outputs)


def _trace(context: ExportContext) -> "torch.export.ExportedProgram":
    """Trace the network as a program from float32 [1, 3, S, S], 0 to 255.

    Core ML passes images on in that form. The network permutes the axes back, and the
    conversion removes both permutes.
    """
    import torch

    class FromImage(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tuple_of(context.module, [task.name for task in context.spec.tasks])

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs: tuple[torch.Tensor, ...] = self.inner(image.permute(0, 2, 3, 1))
            return outputs

    size = context.spec.preprocess.size
    with silence():
        try:
            program = torch.export.export(FromImage().eval(), (torch.zeros(1, 3, size, size),))
            decomposed: torch.export.ExportedProgram = program.run_decompositions({})
            _remove_aliases(decomposed)
            return decomposed
        except Exception as error:  # torch.export has no base class for its errors
            reason = first_line(error)
    raise UsageError(f"torch.export cannot trace the network ({reason}). {OTHERWISE}")


def _remove_aliases(program: "torch.export.ExportedProgram") -> None:
    """Remove operators that return their input, in place.

    coremltools converts no `aten.alias`, which torch writes for the masks of Swin.
    """
    import torch

    graph = program.graph_module.graph
    for node in list(graph.nodes):
        source = node.args[0] if node.target is torch.ops.aten.alias.default else None
        # The program's signature names its outputs, so those stay.
        if isinstance(source, torch.fx.Node) and graph.output_node() not in node.users:
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _convert(
    program: "torch.export.ExportedProgram", spec: Spec, target: Target, kept: set[str]
) -> "MLModel":
    """Convert a traced network to fp16, except for the operators in `kept`.

    Raises:
        UsageError: Core ML lacks an operator of the network.
    """
    import coremltools as ct

    def in_fp16(operation: "Operation") -> bool:
        return kept.isdisjoint((operation.name, *(output.name for output in operation.outputs)))

    size = spec.preprocess.size
    image = ct.ImageType(
        INPUT, shape=(1, 3, size, size), scale=1.0, color_layout=ct.colorlayout.RGB
    )
    with silence():
        try:
            return ct.convert(
                program,
                inputs=[image],
                outputs=[ct.TensorType(task.name, dtype=np.float32) for task in spec.tasks],
                minimum_deployment_target=ct.target[target.facts["deployment"]],
                compute_precision=ct.transform.FP16ComputePrecision(op_selector=in_fp16),
                skip_model_load=True,
            )
        except Exception as error:
            # The error refers to a temporary folder of coremltools, whose deletion
            # warns. It is not raised from here, so that it is deleted inside `silence`.
            reason = first_line(error)
    raise UsageError(f"Core ML lacks an operator of the network ({reason}). {OTHERWISE}")
