"""Core ML: an ML program that takes an RGB image and gives logits by task, the same bytes for the same weights.

The converted program is compressed, by `coremltools.optimize.coreml`, and `coreml_simulation` reads back what was
written, so that what is measured is the file. `coremltools.optimize.torch` would compress the network before; its
quantizer of activations traces symbolically, which a network that looks at its input's shape does not survive.
"""

import json
import re
import tempfile
import uuid
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dermedge_export.calibration import Calibration, synthetic_calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, ExportContext, Simulation, unsupported_candidate
from dermedge_export.exporters.coreml.ranges import Ranges, overflowing, ranges
from dermedge_export.exporters.coreml.simulation import Program, read_program, simulated_run
from dermedge_export.graph.seal import METADATA_KEY
from dermedge_export.graph.trace import tuple_of
from dermedge_export.target import Target
from dermedge_export.toolchain import silence
from dermedge_runtime.canonical_json import pretty_json
from dermedge_runtime.errors import DataError, MissingExtraError, UsageError, first_line
from dermedge_runtime.files import sha256_hex
from dermedge_runtime.signature import INPUT
from dermedge_runtime.spec import Artifact, Spec, to_json

PATH = "model.mlpackage"
MODEL = "Data/com.apple.CoreML/model.mlmodel"
TOOLS = ("dermedge", "torch", "coremltools")
MACOS = {
    "iOS16": "13",
    "iOS17": "14",
    "iOS18": "15",
}  # released with it, and running the same programs
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PROBED = 64  # images that are asked whether something leaves fp16
# Smaller weights stay fp16: there are few, and coremltools finds their clusters by chance instead of exactly.
LEAST_PALETTIZED = 10_000
OTHERWISE = "export for android or cpu, or take another backbone (mobilenetv2_100 and convnext_atto convert)."


def export_coreml(context: ExportContext, target: Target, candidate: Candidate) -> BuiltArtifact:
    """Make an .mlpackage: input `image`, RGB of S x S pixels, one float32 output per task, normalisation inside.

    The diagnosis is no Core ML classifier: that would want probabilities where the outputs are logits, whose
    temperature is fitted later. Its labels are in the metadata.

    Raises:
        MissingExtraError: torch or coremltools is not installed.
        UsageError: the network has what Core ML lacks, or the target cannot have the candidate or an open batch size.
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
    looked_at = context.calibration if quantized else _probed(context)
    # Compressed variants begin with the same conversion, which is most of the time.
    key = ("coreml", target.name, looked_at.digest)
    model, program, found, kept = context.cached(
        key, lambda: _within_fp16(context, target, looked_at)
    )
    with silence():
        files = _package(COMPRESS[candidate.precision](model, candidate, found), context.spec)
    described = Artifact(
        target=target.name,
        format=target.format,
        path=PATH,
        precision=candidate.precision,
        requires=target.requires,
        toolchain={name: version(name) for name in TOOLS},
        details=_details(target, candidate, looked_at) | {"kept_fp32": _in_fp32(program, kept)},
        calibration=context.calibration.to_json() if quantized else None,
    )
    simulation = Simulation(
        "torch simulation of Core ML", version("torch"), simulated_run(read_program(files))
    )
    return BuiltArtifact(
        described, {f"{PATH}/{name}": content for name, content in files.items()}, simulation
    )


def _check(context: ExportContext, target: Target, candidate: Candidate) -> None:
    if candidate.precision not in COMPRESS:
        raise unsupported_candidate(candidate)
    if context.dynamic_batch:
        raise UsageError(
            "Core ML runs a model with an open batch size on the CPU and not on the Neural Engine: leave it out for "
            f"{target.name}, whose runtime answers any number of images one by one."
        )
    if candidate.precision == "w8a8" and not target.facts.get("w8a8"):
        raise UsageError(
            f"{target.name} has no 8-bit activations: choose among {', '.join(target.precisions)}."
        )
    for task in context.spec.tasks:
        if not NAME.fullmatch(task.name) or task.name == INPUT:
            raise UsageError(
                f"Core ML cannot name an output {task.name!r}: name the task with letters, digits and '_', and not "
                f"{INPUT!r}."
            )


def _details(target: Target, candidate: Candidate, looked_at: Calibration) -> dict[str, Any]:
    details = {
        "deployment": target.facts["deployment"],
        "macos": MACOS[target.facts["deployment"]],
        "batch": 1,
        "method": candidate.method,
        **candidate.options,
        "ranges": f"{len(looked_at)} images of split {looked_at.split}",
    }
    if candidate.precision != "fp16":
        details["compressed_by"] = "coremltools.optimize.coreml, once converted"
    if candidate.precision == "w8a8":
        details["faster_on"] = "A17 Pro, M4 and newer; elsewhere only smaller"
    return details


def _probed(context: ExportContext) -> Calibration:
    """Images to learn from whether fp16 is wide enough; where a table has too few, drawn ones do."""
    try:
        found = context.calibration
    except DataError:
        found = synthetic_calibration(context.spec.preprocess)
    every = -(-len(found) // PROBED)
    return Calibration(found.images[::every], found.digests[::every], found.split)


def _within_fp16(
    context: ExportContext, target: Target, looked_at: Calibration
) -> tuple[Any, Program, Ranges, set[str]]:
    """The network as a Core ML model in fp16, but for operators whose numbers leave fp16 on some image.

    Returns:
        The model, its program, the range of the program's values, and the names of the operators in fp32.

    Raises:
        UsageError: torch cannot trace the network, or Core ML lacks one of its operators.
    """
    traced = _traced(context)
    kept: set[str] = set()
    while True:
        model = _converted(traced, context.spec, target, kept)
        program = read_program(_files(model))
        found = ranges(program, looked_at.images)
        more = overflowing(program, found) - kept
        if not more:
            return model, program, found, kept
        kept |= more


def _in_fp32(program: Program, kept: set[str]) -> list[str]:
    return sorted(
        kept.intersection(
            name for step in program.steps if not any(step.half) for name in step.outputs
        )
    )


def _traced(context: ExportContext) -> Any:
    """The merged network as a torch.export program from float32 [1, 3, S, S] of 0..255, which is what Core ML makes of
    an image; the two permutes that then stand at its beginning cancel out when it is converted.
    """
    import torch

    class FromImage(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tuple_of(context.module, [task.name for task in context.spec.tasks])

        def forward(self, image: torch.Tensor) -> Any:
            return self.inner(image.permute(0, 2, 3, 1))

    size = context.spec.preprocess.size
    with silence():
        try:
            return torch.export.export(
                FromImage().eval(), (torch.zeros(1, 3, size, size),)
            ).run_decompositions({})
        except Exception as error:
            refusal = first_line(error)
    raise UsageError(f"torch.export cannot trace the network ({refusal}): {OTHERWISE}")


def _converted(traced: Any, spec: Spec, target: Target, kept: set[str]) -> Any:
    import coremltools as ct

    def in_fp16(operation: Any) -> bool:
        return kept.isdisjoint((operation.name, *(output.name for output in operation.outputs)))

    size = spec.preprocess.size
    with silence():
        try:
            return ct.convert(
                traced,
                inputs=[
                    ct.ImageType(
                        INPUT, shape=(1, 3, size, size), scale=1.0, color_layout=ct.colorlayout.RGB
                    )
                ],
                outputs=[ct.TensorType(task.name, dtype=np.float32) for task in spec.tasks],
                minimum_deployment_target=ct.target[target.facts["deployment"]],
                compute_precision=ct.transform.FP16ComputePrecision(op_selector=in_fp16),
                skip_model_load=True,
            )
        except (
            Exception
        ) as error:  # which holds a folder of coremltools' that warns when it goes: let it go here
            refusal = first_line(error)
    raise UsageError(f"Core ML has not all that the network needs ({refusal}): {OTHERWISE}")


def _plain(model: Any, candidate: Candidate, found: Ranges) -> Any:
    return model


def _linear_weights(model: Any, candidate: Candidate, found: Ranges) -> Any:
    """int8 weights, symmetric, with a scale per output channel."""
    from coremltools.optimize.coreml import (
        OpLinearQuantizerConfig,
        OptimizationConfig,
        linear_quantize_weights,
    )

    config = OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_channel"
    )
    return linear_quantize_weights(model, OptimizationConfig(global_config=config))


def _palettized(model: Any, candidate: Candidate, found: Ranges) -> Any:
    """Weights as indices into a table of 2^bits values per tensor, found by exact one-dimensional k-means."""
    from coremltools.optimize.coreml import (
        OpPalettizerConfig,
        OptimizationConfig,
        palettize_weights,
    )

    config = OpPalettizerConfig(
        mode="kmeans", nbits=candidate.options["bits"], weight_threshold=LEAST_PALETTIZED
    )
    return palettize_weights(model, OptimizationConfig(global_config=config))


def _linear_all(model: Any, candidate: Candidate, found: Ranges) -> Any:
    """int8 weights, and int8 activations before and behind convolutions, matrix products, sums and pooling.

    `linear_quantize_activations` finds the ranges by running Core ML, which only a Mac can; its passes take them from
    anywhere.
    """
    from coremltools.converters.mil.mil.passes.graph_pass import PassOption
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
    from coremltools.models.utils import _apply_graph_pass
    from coremltools.optimize.coreml import OpLinearQuantizerConfig, OptimizationConfig

    config = OptimizationConfig(global_config=OpLinearQuantizerConfig(mode="linear_symmetric"))
    stats = {name: {"rmin": value.low, "rmax": value.high} for name, value in found.values.items()}
    passes = [
        PASS_REGISTRY[f"compression::insert_{side}_quantize_dequantize_pair"]
        for side in ("prefix", "suffix")
    ]
    for each in passes:
        each.set_options([PassOption("config", config), PassOption("activation_stats", stats)])
    passes.append(PASS_REGISTRY["common::dequantize_quantize_pair_elimination"])
    quantized = _apply_graph_pass(model, passes, spec_version=model.get_spec().specificationVersion)
    return _linear_weights(quantized, candidate, found)


COMPRESS: Mapping[str, Callable[[Any, Candidate, Ranges], Any]] = {
    "fp16": _plain,
    "w8": _linear_weights,
    "palettized": _palettized,
    "w8a8": _linear_all,
}


def _files(model: Any) -> dict[str, bytes]:
    """What coremltools writes for a model, by path inside the package."""
    with tempfile.TemporaryDirectory(prefix="dermedge-") as folder, silence():
        package = Path(folder) / PATH
        model.save(str(package))
        found = [path for path in sorted(package.rglob("*")) if path.is_file()]
        return {path.relative_to(package).as_posix(): path.read_bytes() for path in found}


def _package(model: Any, spec: Spec) -> dict[str, bytes]:
    """The package of a model without the date, the random names and the debugging map, with our metadata."""
    written = _files(model)
    files = {name: content for name, content in written.items() if name.startswith("Data/")}
    files[MODEL] = _described(files[MODEL], spec)
    manifest = json.loads(written["Manifest.json"])
    items = manifest["itemInfoEntries"]
    names = {
        name: str(uuid.UUID(sha256_hex(item["path"].encode())[:32])) for name, item in items.items()
    }
    manifest["itemInfoEntries"] = {names[name]: item for name, item in items.items()}
    manifest["rootModelIdentifier"] = names[manifest["rootModelIdentifier"]]
    return {"Manifest.json": pretty_json(manifest), **files}


def _described(content: bytes, spec: Spec) -> bytes:
    """A serialized model with the metadata that Xcode shows and that runtimes read."""
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model.FromString(content)
    metadata, size = model.description.metadata, spec.preprocess.size
    metadata.Clear()  # the day of the conversion, among others
    metadata.shortDescription = (
        spec.intended_use or f"{spec.name}: its maker stated no intended use."
    )
    metadata.versionString = spec.version
    metadata.author = str(spec.lineage.get("author") or "made with dermedge")
    metadata.license = str(spec.lineage.get("licence") or "see LICENSES in the bundle")
    metadata.userDefined[METADATA_KEY] = json.dumps(
        to_json(spec), sort_keys=True, ensure_ascii=False
    )
    if spec.diagnosis is not None:
        labels = [label.id for label in spec.diagnosis.labels]
        metadata.userDefined["dermedge.labels"] = json.dumps(labels, ensure_ascii=False)
    (image,) = model.description.input
    image.shortDescription = (
        f"RGB, {size} x {size}, fitted by {spec.preprocess.fit} as the bundle says; not scaled."
    )
    for output in model.description.output:
        task = spec.task(output.name)
        labels = [label.id for label in task.labels] if task is not None else []
        output.shortDescription = f"Logits of {', '.join(labels)}." if labels else "Logit."
    sealed: bytes = model.SerializeToString(deterministic=True)
    return sealed
