"""Build and run a student with ExecuTorch, in ExecuTorch's own environment.

    python peers_executorch.py build STUDENT INPUTS MODEL.pte
    python peers_executorch.py serve INPUTS MODEL.pte THREADS

`build` follows the guide of the XNNPACK backend: static int8, per channel. `serve` reads
requests from standard input, one JSON object per line, and times the engine in this process.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from peers_engine import Inputs, Opened


def build(student: Path, inputs: Inputs, out: Path) -> None:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from peers_network import plain
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    images = [
        torch.from_numpy(inputs.normalised(image[None])) for image in inputs.images("calibration")
    ]
    example = (images[0],)
    quantizer = XNNPACKQuantizer().set_global(
        get_symmetric_quantization_config(is_per_channel=True)
    )
    with torch.no_grad():
        prepared = prepare_pt2e(torch.export.export(plain(student), example).module(), quantizer)
        for image in images:
            prepared(image)
        exported = torch.export.export(convert_pt2e(prepared), example)
        program = to_edge_transform_and_lower(
            exported, partitioner=[XnnpackPartitioner()]
        ).to_executorch()
    out.write_bytes(program.buffer)


def opened(inputs: Inputs, path: Path, threads: int) -> Opened:
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.kernels import quantized  # noqa: F401  registers the operators that XNNPACK leaves over
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(threads)
    method = Runtime.get().load_program(path).load_method("forward")
    return Opened(
        inputs,
        lambda pixels: [output.numpy() for output in method.execute([torch.from_numpy(pixels)])],
    )


def serve(contender: Opened, replies: Any) -> None:
    """Serve requests from standard input until it ends."""
    for line in sys.stdin:
        request = json.loads(line)
        reply: Any = None
        if request["do"] == "times":
            reply = contender.times(request["call_name"], request["count"], request["clock"])
        else:
            np.savez(request["to"], **contender.outputs(request["split"]))
        print(json.dumps(reply), file=replies, flush=True)


def main() -> None:
    verb, *arguments = sys.argv[1:]
    if verb == "build":
        student, inputs, out = map(Path, arguments)
        build(student, Inputs(inputs), out)
        return
    # Libraries print to standard output too, so the replies have their own descriptor.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contender = opened(Inputs(Path(arguments[0])), Path(arguments[1]), int(arguments[2]))
    print(json.dumps("ready"), file=replies, flush=True)
    serve(contender, replies)


if __name__ == "__main__":
    main()
