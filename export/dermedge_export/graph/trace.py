"""Trace a torch module into a sealed fp32 ONNX graph."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dermedge_export.graph.seal import seal
from dermedge_export.toolchain import quiet
from dermedge_runtime.errors import DermedgeError, MissingExtraError, UsageError
from dermedge_runtime.signature import INPUT
from dermedge_runtime.spec import Spec

if TYPE_CHECKING:
    import torch


def trace(
    module: "torch.nn.Module", spec: Spec, opset: int, *, dynamic_batch: bool = False
) -> bytes:
    """Trace a module in eval mode into an fp32 ONNX graph.

    Batch norms are folded, shapes are inferred, and the graph is checked and sealed.

    Args:
        module: Maps uint8 [N, S, S, 3] to float32 outputs [N, ...] by task.
        spec: The model's contract: tasks, input size, metadata.
        opset: The ONNX opset.
        dynamic_batch: Leave the batch size open; otherwise it is 1.

    Raises:
        MissingExtraError: torch or onnx is not installed.
        UsageError: ONNX has no equivalent of an operator of the network.
        DermedgeError: torch.onnx.export returns no program.

    Example:
        >>> import torch
        >>> from dermedge_runtime.spec import Preprocess, Spec, Task
        >>> class Mean(torch.nn.Module):
        ...     def forward(self, image):
        ...         return {"malignancy": image.float().mean((1, 2, 3))[:, None]}
        >>> spec = Spec("mean", "1", (Task("malignancy", "binary"),), Preprocess(32))
        >>> graph = trace(Mean().eval(), spec, opset=18)
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "export", "Export to ONNX") from error
    names = [task.name for task in spec.tasks]
    size = spec.preprocess.size
    # torch.export makes a constant of a batch of 1 even if the batch size is to stay
    # open.
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
            "torch.onnx.export returned no program. Install a torch version that constraints.txt "
            "lists."
        )
    return seal(program.model_proto, spec)


def _untraceable(error: Exception) -> UsageError:
    """Return an error that names the operator that ONNX lacks, if it is known."""
    text = " ".join(str(cause) for cause in (error, error.__cause__) if cause is not None)
    operator = re.search(r"(?:aten|prims|torchvision)[.:]+\w+", text)
    cause = f"the operator {operator[0]}" if operator else text.strip().partition("\n")[0]
    return UsageError(
        f"This network cannot be exported to ONNX ({cause}), which every target but ios needs. "
        "Try --target ios, or another backbone."
    )


def tuple_of(module: "torch.nn.Module", names: Sequence[str]) -> "torch.nn.Module":
    """Wrap a module so that it returns its outputs as a tuple in the order of `names`.

    Exporters sort the keys of a dict in an order of their own.
    """
    import torch

    class Ordered(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = self.inner(image)
            return tuple(outputs[name] for name in names)

    return Ordered().eval()
