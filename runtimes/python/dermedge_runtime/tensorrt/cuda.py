"""Memory and streams of an NVIDIA GPU, by the library that the driver itself brings.

`libcuda.so.1` stands wherever a GPU does, under one name for CUDA 12 and 13, on JetPack and elsewhere; so no package
has to fit the CUDA version, and none is installed. Entry points as cuda.h of CUDA 12.9 declares them.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from dermedge_runtime.errors import EngineError

LIBRARY = "libcuda.so.1"
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
LONGEST_NAME = 256


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, its compute capability without the dot (`87`), the CUDA that its driver speaks, its bytes."""

    name: str
    sm: str
    cuda: str
    memory: int


class Cuda:
    """The first GPU, through `library`, which has the entry points of libcuda.

    Raises:
        EngineError: there is no GPU, or the driver refuses a call.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._call("cuInit", ctypes.c_uint(0))
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        # The primary context is the one that TensorRT, too, works in.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._device, self._context = device, context

    @classmethod
    def open(cls) -> "Cuda":
        """The GPU of this machine.

        Raises:
            OSError: no driver is installed.
            EngineError: there is no GPU.
        """
        return cls(ctypes.CDLL(LIBRARY))

    def gpu(self) -> Gpu:
        """What the GPU is."""
        name, version, memory = (
            ctypes.create_string_buffer(LONGEST_NAME),
            ctypes.c_int(),
            ctypes.c_size_t(),
        )
        self._call("cuDeviceGetName", name, ctypes.c_int(LONGEST_NAME), self._device)
        self._call("cuDriverGetVersion", ctypes.byref(version))
        self._call("cuDeviceTotalMem_v2", ctypes.byref(memory), self._device)
        sm = "".join(
            str(self._attribute(number)) for number in (CAPABILITY_MAJOR, CAPABILITY_MINOR)
        )
        cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return Gpu(name.value.decode(errors="replace"), sm, cuda, memory.value)

    def activate(self) -> None:
        """Make the GPU the calling thread's; before anything else a thread does with it."""
        self._call("cuCtxSetCurrent", self._context)

    def stream(self) -> int:
        """A new queue of work."""
        handle = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(handle), ctypes.c_uint(0))
        return handle.value or 0

    def wait(self, stream: int) -> None:
        """Until everything in the queue is done."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def drop(self, stream: int) -> None:
        """Give a queue back."""
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the GPU."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """Queue a copy of a contiguous array to the GPU."""
        source, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call(
            "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, size, ctypes.c_void_p(stream)
        )

    def download(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """Queue a copy from the GPU into a contiguous array."""
        target, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call(
            "cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), size, ctypes.c_void_p(stream)
        )

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(number), self._device)
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        result = int(getattr(self._library, name)(*arguments))
        if result:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(ctypes.c_int(result), ctypes.byref(text))
            reason = (text.value or b"an unknown error").decode(errors="replace")
            raise EngineError(
                f"CUDA's {name} failed with {reason} ({result}): check the GPU with nvidia-smi or tegrastats."
            )
