"""Trace a torch module into a sealed fp32 ONNX graph."""

import re
from collections.abc import Sequence
from typing import Any

from dermedge_export.graph.seal import seal
from dermedge_export.toolchain import quiet
from dermedge_runtime.errors import DermedgeError, MissingExtraError, UsageError
from dermedge_runtime.signature import INPUT
from dermedge_runtime.spec import Spec


def trace(module: Any, spec: Spec, opset: int, *, dynamic_batch: bool = False) -> bytes:
    """Trace a module in eval mode into an fp32 ONNX graph: batch norms folded, shapes inferred, checked, and sealed.

    Raises:
        MissingExtraError: torch or onnx is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "export", "Export to ONNX") from error
    names = [task.name for task in spec.tasks]
    size = spec.preprocess.size
    # A batch of 1 would be burnt in as a constant where it ought to stay open.
    example = torch.zeros(2 if dynamic_batch else 1, size, size, 3, dtype=torch.uint8)
    try:
        with quiet():
            program = torch.onnx.export(
                tuple_of(module, names),
                (example,),
                input_names=[INPUT],
                output_names=names,
                opset_version=opset,
                dynamo=True,
                external_data=False,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},) if dynamic_batch else None,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise _untraceable(error) from error
    if program is None:
        raise DermedgeError(
            "torch.onnx.export gave no program: check that its version is one that constraints.txt names."
        )
    return seal(program.model_proto, spec)


def _untraceable(error: Exception) -> UsageError:
    """Names the operator that ONNX lacks, where the exporter tells which it is."""
    text = " ".join(str(cause) for cause in (error, error.__cause__) if cause is not None)
    found = re.search(r"(?:aten|prims|torchvision)[.:]+\w+", text)
    what = f"the operator {found[0]}" if found else text.strip().partition("\n")[0]
    return UsageError(
        f"This network cannot become ONNX ({what}), which every target but ios needs: try --target ios, or another "
        "backbone."
    )


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
