"""Imitate TensorRT and libcuda with ONNX Runtime and the memory of the host.

The names are those of the real libraries. The outputs are those of the ONNX file.
Kernels, fusion and speed are not imitated.
"""

import ctypes
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dermedge_export.evaluation.predictions import Run
from dermedge_export.synthetic.golden import golden_cases
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.golden import golden_files
from dermedge_runtime.spec import Artifact
from dermedge_runtime.tensorrt.api import TensorRt
from dermedge_runtime.tensorrt.cuda import Cuda
from support import toy_onnx

NO_DEVICE, INVALID_CONTEXT, INVALID_VALUE = 100, 201, 1
WORDS = {
    TensorProto.FLOAT: "Float",
    TensorProto.FLOAT16: "Half",
    TensorProto.INT8: "Int8",
    TensorProto.UINT8: "UInt8",
}
DTYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.UINT8: np.uint8,
}


class Driver:
    """Entry points of libcuda on the memory of the host, with checks of bounds."""

    def __init__(self, sm: str = "87", devices: int = 1) -> None:
        self.sm, self.devices = sm, devices
        self.blocks: dict[int, Any] = {}
        self.streams = 0
        self.here = threading.local()

    def cuInit(self, flags: Any) -> int:
        return 0 if self.devices else NO_DEVICE

    def cuDeviceGet(self, device: Any, ordinal: Any) -> int:
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        context._obj.value = 1234
        return 0

    def cuDeviceGetName(self, name: Any, size: Any, device: Any) -> int:
        name.value = b"Orin (fake)"
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12060
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:
        size._obj.value = 8 << 30
        return 0

    def cuDeviceGetAttribute(self, value: Any, number: Any, device: Any) -> int:
        value._obj.value = int(self.sm[{75: 0, 76: 1}[number.value]])
        return 0

    def cuGetErrorName(self, code: Any, text: Any) -> int:
        text._obj.value = {
            NO_DEVICE: b"CUDA_ERROR_NO_DEVICE",
            INVALID_CONTEXT: b"CUDA_ERROR_INVALID_CONTEXT",
        }.get(code.value, b"CUDA_ERROR_INVALID_VALUE")
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        self.here.context = context.value
        return 0

    def cuStreamCreate(self, stream: Any, flags: Any) -> int:
        stream._obj.value = 77
        self.streams += 1
        return self._ready()

    def cuStreamSynchronize(self, stream: Any) -> int:
        return self._ready()

    def cuStreamDestroy_v2(self, stream: Any) -> int:
        self.streams -= 1
        return self._ready()

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        block = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(block)
        self.blocks[ctypes.addressof(block)] = block
        return self._ready()

    def cuMemFree_v2(self, address: Any) -> int:
        return self._ready() if self.blocks.pop(address.value, None) is not None else INVALID_VALUE

    def cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> int:
        return self._copy(target, source, size, self.blocks.get(target.value))

    def cuMemcpyDtoHAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> int:
        return self._copy(target, source, size, self.blocks.get(source.value))

    def _copy(self, target: Any, source: Any, size: Any, block: Any) -> int:
        if self._ready():
            return INVALID_CONTEXT
        if block is None or size.value != len(block):
            return INVALID_VALUE
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def _ready(self) -> int:
        return 0 if getattr(self.here, "context", None) == 1234 else INVALID_CONTEXT


def module(version: str = "10.3.0", *, sm: str = "87", forgets_types: bool = False) -> Any:
    """Return an imitation of the module `tensorrt`.

    Its attribute `builds` lists the options of each build, for the tests to check.
    `refuse` makes the next calls fail; `miscompile` changes the right outputs.

    Args:
        version: Version that it reports.
        sm: Compute capability that its engines are for.
        forgets_types: Build every network in fp32 and ignore the types of the model.
    """
    trt: Any = SimpleNamespace(
        __version__=version, builds=[], refuse="", miscompile=lambda values: values
    )
    newer = version.startswith("11.")
    trt.ILogger = type(
        "ILogger", (), {"ERROR": "error", "INTERNAL_ERROR": "internal", "INFO": "info"}
    )
    trt.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=0 if newer else 1)
    trt.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed", LAYER_NAMES_ONLY="names")
    trt.BuilderFlag = SimpleNamespace(TF32="tf32")
    trt.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    trt.LayerInformationFormat = SimpleNamespace(JSON="json")
    trt.TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    trt.nptype = DTYPES.__getitem__
    stamp = f"{version} {sm}\n".encode()

    class Network:
        def __init__(self, flags: int) -> None:
            self.typed = newer or bool(flags & 2)
            self.model = onnx.ModelProto()
            self.image = SimpleNamespace(shape=())

        def get_input(self, index: int) -> Any:
            return self.image

    class OnnxParser:
        def __init__(self, network: Network, logger: Any) -> None:
            self.network, self.errors = network, list[Any]()

        num_errors = property(lambda self: len(self.errors))

        def get_error(self, index: int) -> Any:
            return self.errors[index]

        def parse(self, data: bytes) -> bool:
            try:
                self.network.model = onnx.load_model_from_string(data)
            except Exception as error:
                text = str(error)
                self.errors.append(SimpleNamespace(desc=lambda: text))
                return False
            self.network.image.shape = _shape(self.network.model.graph.input[0])
            return True

    class Config:
        def __init__(self) -> None:
            self.options: dict[str, Any] = {"tf32": True, "verbosity": "names", "workspace": None}

        profiling_verbosity = property(
            lambda self: self.options["verbosity"],
            lambda self, value: self.options.update(verbosity=value),
        )

        def clear_flag(self, flag: str) -> None:
            self.options[flag] = False

        def set_memory_pool_limit(self, pool: str, size: int) -> None:
            self.options[pool] = size

        def create_timing_cache(self, data: bytes) -> Any:
            return (
                None
                if data == b"damaged"
                else SimpleNamespace(data=data, serialize=lambda: stamp + b"timings")
            )

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            fits = not cache.data or cache.data.startswith(stamp)
            if fits:
                self.cache = cache
                self.options["timings"] = cache.data
            return fits

        def get_timing_cache(self) -> Any:
            return self.cache

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, flags: int = 0) -> Network:
            return Network(flags)

        def create_builder_config(self) -> Config:
            return Config()

        def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
            trt.builds.append({**config.options, "typed": network.typed})
            if trt.refuse:
                self.logger.log(trt.ILogger.ERROR, trt.refuse)
                return None
            model = network.model
            for value in (*model.graph.input, *model.graph.output):
                value.type.tensor_type.shape.dim[0].dim_value = network.image.shape[0]
            facts = {
                "detailed": config.options["verbosity"] == "detailed",
                "typed": network.typed and not forgets_types,
            }
            return stamp + json.dumps(facts).encode() + b"\n" + model.SerializeToString()

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            if not plan.startswith(stamp):
                self.logger.log(
                    trt.ILogger.ERROR, "The engine plan file is not compatible with this version"
                )
                return None
            _, facts, model = plan.split(b"\n", 2)
            return Engine(json.loads(facts), onnx.load_model_from_string(model))

    class Engine:
        def __init__(self, facts: dict[str, bool], model: onnx.ModelProto) -> None:
            self.facts, self.model = facts, model
            self.values = {value.name: value for value in (*model.graph.input, *model.graph.output)}
            self.num_io_tensors, self.num_layers = len(self.values), len(model.graph.node)

        def get_tensor_name(self, index: int) -> str:
            return list(self.values)[index]

        def get_tensor_mode(self, name: str) -> str:
            return "input" if name == self.model.graph.input[0].name else "output"

        def get_tensor_dtype(self, name: str) -> int:
            return self.values[name].type.tensor_type.elem_type

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return _shape(self.values[name])

        def create_execution_context(self) -> Any:
            return Context(self)

        def create_engine_inspector(self) -> Any:
            return SimpleNamespace(
                get_layer_information=lambda index, form: self._describe_layer(
                    self.model.graph.node[index]
                )
            )

        def _describe_layer(self, node: onnx.NodeProto) -> str:
            if not self.facts["detailed"]:
                return json.dumps(node.name)
            layer: dict[str, Any] = {"Name": node.output[0], "LayerType": f"Cask{node.op_type}"}
            if node.op_type in ("Conv", "Gemm", "MatMul"):
                width = WORDS[_weight_type(self.model, node)] if self.facts["typed"] else "Float"
                layer["Inputs"] = [
                    {"Name": node.input[0], "DataType" if newer else "Format/Datatype": width}
                ]
            return json.dumps(layer)

    class Context:
        def __init__(self, engine: Engine) -> None:
            import onnxruntime

            self.engine, self.addresses = engine, dict[str, int]()
            self.session = onnxruntime.InferenceSession(
                engine.model.SerializeToString(), providers=["CPUExecutionProvider"]
            )

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            name = self.engine.model.graph.input[0].name
            found = self.session.run(None, {name: self._array(name)})
            for output, values in zip(self.engine.model.graph.output, found, strict=True):
                self._array(output.name)[...] = trt.miscompile(values)
            return not trt.refuse

        def _array(self, name: str) -> Any:
            dtype, shape = (
                DTYPES[self.engine.get_tensor_dtype(name)],
                self.engine.get_tensor_shape(name),
            )
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            return np.frombuffer(
                (ctypes.c_char * size).from_address(self.addresses[name]), dtype
            ).reshape(shape)

    trt.Builder, trt.OnnxParser, trt.Runtime = Builder, OnnxParser, Runtime
    return trt


def machine(version: str = "10.3.0", *, sm: str = "87", forgets_types: bool = False) -> TensorRt:
    """Return a device with a TensorRT."""
    return TensorRt(module(version, sm=sm, forgets_types=forgets_types), Cuda(Driver(sm)))


def typed(graph: bytes) -> bytes:
    """Return the toy model in fp16, with fp32 normalisation and outputs."""
    model = onnx.load_model_from_string(graph)
    half = {
        "conv.weight",
        "conv.bias",
        "diagnosis.weight",
        "diagnosis.bias",
        "malignancy.weight",
        "malignancy.bias",
    }
    for tensor in model.graph.initializer:
        if tensor.name in half:
            values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    cast = helper.make_node("Cast", ["nchw"], ["nchw.half"], to=TensorProto.FLOAT16)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.input[0] = "nchw.half"
    model.graph.node.insert(list(model.graph.node).index(conv), cast)
    for node in model.graph.node:
        if node.op_type == "Gemm":
            task = node.output[0]
            node.output[0] = f"{task}.half"
            model.graph.node.append(
                helper.make_node("Cast", [f"{task}.half"], [task], to=TensorProto.FLOAT)
            )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def bundle(path: Path, *, files: Mapping[str, bytes] | None = None, **changes: Any) -> Bundle:
    """Write a Jetson bundle: student in fp32, artifact a typed graph."""
    graph = typed(toy_onnx.graph())
    student, artifact = toy_run(toy_onnx.graph()), toy_run(graph)
    described = {
        "target": "jetson",
        "format": "tensorrt",
        "path": "model.onnx",
        "precision": "fp16",
    }
    golden = golden_files(golden_cases(toy_onnx.spec(), student, artifact, toy_onnx.POSTPROCESSING))
    return write_bundle(
        path,
        spec=toy_onnx.spec(),
        artifact=Artifact(**(described | changes)),
        postprocessing=toy_onnx.POSTPROCESSING,
        tolerance={"diagnosis": 0.5, "malignancy": 0.5},
        parity={"host": {"status": "not_run"}, "device": {"status": "not_run"}},
        files={"model.onnx": graph, **golden, **(files or {})},
    )


def toy_run(graph: bytes) -> Run:
    """Return an ONNX model with a batch of one as a function of many images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        rows = [session.run(names, {"image": image[None]}) for image in images]
        return {
            name: np.concatenate([row[index] for row in rows]) for index, name in enumerate(names)
        }

    return run


def _weight_type(model: onnx.ModelProto, node: onnx.NodeProto) -> int:
    """Return the type of a layer's weights, before they are dequantized or cast."""
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    makers = {output: maker for maker in model.graph.node for output in maker.output}
    name = node.input[1]
    while name not in stored and name in makers:
        name = makers[name].input[0]
    return stored.get(name, TensorProto.FLOAT)


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else -1
        for dim in value.type.tensor_type.shape.dim
    )
