"""ONNX: one graph from uint8 pixels to named logits, the same bytes for the same weights and versions."""

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from dermedge_export.candidate import Candidate
from dermedge_export.target import Target
from dermedge_export.workbench import Built, Workbench, unknown
from dermedge_runtime.errors import DermedgeError, MissingExtraError, UsageError
from dermedge_runtime.spec import Artifact, Spec, to_json

PATH = "model.onnx"
IR_VERSION = 9  # the newest that onnxruntime 1.17 reads
METADATA_KEY = "dermedge.spec"
TOOLS = ("dermedge", "torch", "onnx", "onnxscript")


def export_onnx(work: Workbench, target: Target, candidate: Candidate) -> Built:
    """Make an ONNX artifact: input `image` uint8 [N, S, S, 3], one float32 output per task, normalisation inside.

    Raises:
        MissingExtraError: torch, onnx or what quantizes is not installed.
        DermedgeError: a quantizer fails on this model.
    """
    if candidate.precision == "fp32":
        return artifact(work, target, candidate, work.graph(target.opset), TOOLS)
    if candidate.precision != "int8":
        raise unknown(candidate)
    from dermedge_export.quantize import quantize_onnx

    graph, tools, kept = quantize_onnx(work, target, candidate)
    return artifact(work, target, candidate, graph, (*TOOLS, *tools), {"kept_fp32": list(kept)})


def artifact(
    work: Workbench,
    target: Target,
    candidate: Candidate,
    graph: bytes,
    tools: Sequence[str],
    details: Mapping[str, Any] | None = None,
) -> Built:
    """An ONNX file with the description that its manifest carries; `tools` are the distributions that made it."""
    described = Artifact(
        target=target.name,
        format=candidate.format,
        path=PATH,
        precision=candidate.precision,
        requires=target.requires,
        toolchain={name: version(name) for name in tools},
        details={
            "opset": target.opset,
            "ir_version": IR_VERSION,
            "batch": "dynamic" if work.dynamic_batch else 1,
            "method": candidate.method,
            **({} if candidate.precision == "fp32" else dict(candidate.options)),
            **(details or {}),
        },
        calibration=work.calibration.to_json() if "int8" in candidate.precision else None,
    )
    return Built(described, {PATH: graph})


def trace(work: Workbench, opset: int) -> bytes:
    """The fp32 graph of a student's merged network: batch norms folded, shapes inferred, checked, and sealed.

    Raises:
        MissingExtraError: torch or onnx is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "export", "Export to ONNX") from error
    names = [task.name for task in work.spec.tasks]
    size = work.spec.preprocess.size
    # A batch of 1 would be burnt in as a constant where it ought to stay open.
    example = torch.zeros(2 if work.dynamic_batch else 1, size, size, 3, dtype=torch.uint8)
    try:
        with quiet():
            program = torch.onnx.export(
                tuple_of(work.module, names),
                (example,),
                input_names=["image"],
                output_names=names,
                opset_version=opset,
                dynamo=True,
                external_data=False,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},) if work.dynamic_batch else None,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise _untraceable(error) from error
    if program is None:
        raise DermedgeError(
            "torch.onnx.export gave no program: check that its version is one that constraints.txt names."
        )
    return seal(program.model_proto, work.spec)


def _untraceable(error: Exception) -> UsageError:
    """Names the operator that ONNX lacks, where the exporter tells which it is."""
    text = " ".join(str(cause) for cause in (error, error.__cause__) if cause is not None)
    found = re.search(r"(?:aten|prims|torchvision)[.:]+\w+", text)
    what = f"the operator {found[0]}" if found else text.strip().partition("\n")[0]
    return UsageError(
        f"This network cannot become ONNX ({what}), which every target but ios needs: try --target ios, or another "
        "backbone."
    )


def seal(model: Any, spec: Spec) -> bytes:
    """An ONNX model as bytes that depend on nothing but its mathematics and `spec`: what names the exporting machine's
    folders is dropped, the spec mirrored into its metadata, shapes inferred, everything checked.

    Raises:
        DermedgeError: the model is not valid ONNX.
    """
    import onnx

    strip(model)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "dermedge", version("dermedge")
    model.graph.name = spec.name
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(to_json(spec), sort_keys=True, ensure_ascii=False)
    try:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DermedgeError(
            f"The exported graph is not valid ONNX ({error}): export with another precision."
        ) from error
    sealed: bytes = model.SerializeToString(deterministic=True)
    return sealed


def tuple_of(module: Any, names: Sequence[str]) -> Any:
    """The module with its outputs in the order of `names`; an exporter would sort a dict's keys its own way."""
    import torch

    class Ordered(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = self.inner(image)
            return tuple(outputs[name] for name in names)

    return Ordered().eval()


def strip(model: Any) -> None:
    """Drop what names the exporting machine's source files, so that the bytes do not depend on a folder."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Toolchains print their progress and warn about themselves; neither is news to the user."""
    noisy = ("torch.onnx", "onnxscript", "onnx_ir", "nncf", "coremltools", "torch.utils.cpp_extension", "root")
    levels = {name: logging.getLogger(name).level for name in noisy}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
