"""Build and open the contenders of the peers' benchmark.

Each builder follows its tool's quickstart for an image classifier on a CPU, with default
options. It writes into the `artifact` folder of the contender, whose files are its size.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from peers_elsewhere import SERVER, Worker, run
from peers_engine import SPLITS, Inputs, Opened
from peers_litert import build_dynamic, build_litert, build_static, open_litert

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import DataError

GRAPH, PROGRAM = "model.onnx", "model.pte"
BUNDLE = "bundle.txt"  # beside dermedge's artifact: the path of its bundle
OURS, PLAIN = "dermedge", "onnx"  # the other tools quantize the graph of PLAIN


@dataclass(frozen=True)
class Work:
    """One student in the benchmark, with its folder of results and its settings.

    `pythons` are the interpreters of tools that need their own environment. `bundle` is a
    finished bundle to measure instead of exporting one. `limit` is the number of images per
    split, or None for all. `budget` is the minutes of dermedge's search. `without` names the
    contenders that are left out.
    """

    student: Path
    folder: Path
    data: Path
    pythons: Mapping[str, Path] = field(default_factory=dict)
    bundle: Path | None = None
    limit: int | None = None
    budget: float = 10
    without: tuple[str, ...] = ()

    @property
    def inputs(self) -> Inputs:
        return Inputs(self.folder / "inputs")

    def artifact(self, name: str) -> Path:
        """Return the folder of a contender's files."""
        return self.folder / name / "artifact"


class Engine(Protocol):
    """A contender that is ready to run, here or in its own process; see `Opened`."""

    def outputs(self, split: str) -> dict[str, Any]: ...

    def times(self, call_name: str, count: int, clock: str) -> list[float]: ...

    @property
    def close(self) -> Callable[[], None]: ...


@dataclass(frozen=True)
class Contender:
    """A contender: `build` writes its artifact, `open` starts its engine with some threads.

    `environment` names the interpreter that it needs, or None for this one.
    """

    title: str
    build: Callable[[Work, Path], None]
    open: Callable[[Work, Path, int], Engine]
    environment: str | None = None


def build_dermedge(context: Work, artifact: Path) -> None:
    from dermedge.workflows.export import export
    from dermedge_export.options import ExportOptions

    path = context.bundle
    if path is None:
        path = export(
            context.student,
            "cpu",
            artifact.parent,
            data=context.data,
            options=ExportOptions(precision="auto", budget=context.budget, overwrite=True),
        ).path
    bundle = Bundle.open(path)
    artifact.with_name(BUNDLE).write_text(str(Path(path).resolve()))
    for name in _model_files(bundle):
        (artifact / Path(name).name).write_bytes(bundle.read(name))


def open_dermedge(context: Work, artifact: Path, threads: int) -> Opened:
    from dermedge_runtime.model import load

    model = load(artifact.with_name(BUNDLE).read_text(), threads=threads)
    names = context.inputs.contract.tasks

    def infer(images: Any) -> list[Any]:
        outputs = model.runtime.run(images)
        return [outputs[name] for name in names]

    return Opened(
        context.inputs,
        infer,
        prepare=lambda images: images,
        predict=model.predict,
        close=model.close,
    )


def _model_files(bundle: Bundle) -> list[str]:
    """Return the names of the files that the engine reads."""
    path = bundle.artifact.path
    return [name for name in bundle.files if name == path or name.startswith(f"{path}/")]


def build_torch(context: Work, artifact: Path) -> None:
    import torch
    from peers_network import plain

    torch.save(plain(context.student).state_dict(), artifact / "weights.pt")


def open_torch(context: Work, artifact: Path, threads: int) -> Opened:
    return _open_module(context, artifact, threads, lambda module: module)


def open_compiled(context: Work, artifact: Path, threads: int) -> Opened:
    import torch

    return _open_module(context, artifact, threads, torch.compile)


def _open_module(context: Work, artifact: Path, threads: int, wrap: Callable[[Any], Any]) -> Opened:
    import torch
    from peers_network import plain

    torch.set_num_threads(threads)
    module = plain(context.student)
    module.load_state_dict(torch.load(artifact / "weights.pt", weights_only=True))
    module = wrap(module)

    def infer(pixels: Any) -> list[Any]:
        with torch.inference_mode():
            return [output.numpy() for output in module(torch.from_numpy(pixels))]

    return Opened(context.inputs, infer)


def build_onnx(context: Work, artifact: Path) -> None:
    import torch
    from peers_network import plain

    torch.onnx.export(
        plain(context.student),
        (torch.from_numpy(context.inputs.calibration()[0]),),
        artifact / GRAPH,
    )


def open_onnx(context: Work, artifact: Path, threads: int) -> Opened:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = next(artifact.rglob("*.onnx"))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return Opened(context.inputs, lambda pixels: session.run(None, {name: pixels}))


def build_ort_static(context: Work, artifact: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.feeds = iter([{name: image} for image in context.inputs.calibration()])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    prepared = _prepared(context, artifact)
    quantize_static(prepared, artifact / GRAPH, Reader(_input_name(prepared)))


def build_ort_dynamic(context: Work, artifact: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(_prepared(context, artifact), artifact / GRAPH)


def _prepared(context: Work, artifact: Path) -> Path:
    """Apply the pre-processing that ONNX Runtime recommends before quantization."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = artifact.parent / "prepared.onnx"
    quant_pre_process(_plain_graph(context), path)
    return path


def build_olive(context: Work, artifact: Path) -> None:
    """Call `olive run` with the static quantization pass, which reads images as raw files."""
    graph = _plain_graph(context)
    name, images = _input_name(graph), context.inputs.calibration()
    raw = artifact.parent / "calibration"
    (raw / name).mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        image.tofile(raw / name / f"{index:04}.bin")
    config = {
        "input_model": {"type": "OnnxModel", "model_path": str(graph)},
        "data_configs": [
            {
                "name": "calibration",
                "type": "RawDataContainer",
                "load_dataset_config": {
                    "data_dir": str(raw),
                    "input_names": [name],
                    "input_shapes": [list(images[0].shape)],
                },
            }
        ],
        "passes": {
            "quantization": {"type": "OnnxStaticQuantization", "data_config": "calibration"}
        },
        "output_dir": str(artifact.parent / "output"),
        "cache_dir": str(artifact.parent / "cache"),
    }
    path = artifact.parent / "olive.json"
    path.write_text(json.dumps(config, indent=1))
    run(context.pythons["olive"], "-m", "olive", "run", "--config", path)
    shutil.copy(artifact.parent / "output" / GRAPH, artifact)


def build_nncf_onnx(context: Work, artifact: Path) -> None:
    import nncf
    import onnx

    graph = _plain_graph(context)
    name = _input_name(graph)
    onnx.save(
        nncf.quantize(
            onnx.load(graph),
            nncf.Dataset([{name: image} for image in context.inputs.calibration()]),
        ),
        artifact / GRAPH,
    )


def build_nncf_openvino(context: Work, artifact: Path) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(_plain_graph(context))
    openvino.save_model(
        nncf.quantize(model, nncf.Dataset(context.inputs.calibration())), artifact / "model.xml"
    )


def open_openvino(context: Work, artifact: Path, threads: int) -> Opened:
    import openvino

    compiled = openvino.Core().compile_model(
        artifact / "model.xml", "CPU", {"INFERENCE_NUM_THREADS": threads}
    )
    count = len(compiled.outputs)

    def infer(pixels: Any) -> list[Any]:
        outputs = compiled(pixels)
        return [outputs[index] for index in range(count)]

    return Opened(context.inputs, infer)


def build_executorch(context: Work, artifact: Path) -> None:
    student, inputs, out = (
        path.resolve() for path in (context.student, context.inputs.folder, artifact / PROGRAM)
    )
    run(context.pythons["executorch"], SERVER, "build", student, inputs, out)


def open_executorch(context: Work, artifact: Path, threads: int) -> Worker:
    return Worker(context.pythons["executorch"], context.inputs, artifact / PROGRAM, threads)


CONTENDERS = {
    OURS: Contender("dermedge, cpu, auto", build_dermedge, open_dermedge),
    "torch": Contender("PyTorch, eager", build_torch, open_torch),
    "compile": Contender("torch.compile", build_torch, open_compiled),
    PLAIN: Contender("ONNX Runtime, torch.onnx.export", build_onnx, open_onnx),
    "ort-static": Contender("ONNX Runtime, quantize_static", build_ort_static, open_onnx),
    "ort-dynamic": Contender("ONNX Runtime, quantize_dynamic", build_ort_dynamic, open_onnx),
    "olive": Contender("Olive, int8", build_olive, open_onnx, "olive"),
    "nncf-onnx": Contender("NNCF on ONNX, ONNX Runtime", build_nncf_onnx, open_onnx),
    "nncf-openvino": Contender("NNCF on OpenVINO", build_nncf_openvino, open_openvino),
    "executorch": Contender(
        "ExecuTorch, XNNPACK int8", build_executorch, open_executorch, "executorch"
    ),
    "litert": Contender("LiteRT, litert-torch", build_litert, open_litert),
    "litert-static": Contender("LiteRT, static int8", build_static, open_litert),
    "litert-dynamic": Contender("LiteRT, dynamic int8", build_dynamic, open_litert),
}


def build(name: str, context: Work) -> dict[str, Any]:
    """Build a contender, run it over val and test with one thread, and return its size."""
    contender, artifact = CONTENDERS[name], context.artifact(name)
    artifact.mkdir(parents=True, exist_ok=True)
    contender.build(context, artifact)
    opened = contender.open(context, artifact, 1)
    for split in SPLITS:
        np.savez(artifact.parent / f"{split}.npz", **opened.outputs(split))
    opened.close()
    files = [path for path in artifact.rglob("*") if path.is_file()]
    return {"bytes": sum(path.stat().st_size for path in files)} | (
        _describe(artifact) if name == OURS else {}
    )


def _describe(artifact: Path) -> dict[str, Any]:
    made = Bundle.open(artifact.with_name(BUNDLE).read_text()).artifact
    return {
        "precision": made.precision,
        "format": made.format,
        "calibration": dict(made.calibration or {}),
    }


def _plain_graph(context: Work) -> Path:
    path = context.artifact(PLAIN) / GRAPH
    if not path.is_file():
        raise DataError(
            f"{path} is missing, because torch.onnx.export failed. There is no graph to quantize."
        )
    return path


def _input_name(graph: Path) -> str:
    import onnx

    name: str = onnx.load(graph, load_external_data=False).graph.input[0].name
    return name
