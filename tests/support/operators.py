"""List the operators of a network, as every converter reads them."""

import torch

from dermedge_export.context import inference_copy


def operators(network: torch.nn.Module, size: int) -> list[str]:
    """Return the names of the ATen operators that the network is traced to."""
    image = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    program = torch.export.export(inference_copy(network), (image,))
    return sorted({str(node.target) for node in program.graph.nodes if node.op == "call_function"})
