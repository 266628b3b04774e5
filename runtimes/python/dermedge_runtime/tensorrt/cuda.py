"""Manage memory and streams of an NVIDIA GPU through the driver's own library.

Every machine with a GPU has `libcuda.so.1`, under one name for CUDA 12 and 13, on
JetPack and elsewhere. So no package that fits the CUDA version must be installed. The
entry points are those that cuda.h of CUDA 12.9 declares.
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
    """Facts about a GPU.

    `sm` is the compute capability without the dot (`87`), `cuda` the CUDA version that
    the driver supports, `memory` the size in bytes.

    Example:
        >>> gpu = Gpu("Orin", sm="87", cuda="12.6", memory=8 << 30)
        >>> f"{gpu.name}, SM {gpu.sm}, {gpu.memory / 2**30:.0f} GiB"
        'Orin, SM 87, 8 GiB'
    """

    name: str
    sm: str
    cuda: str
    memory: int


class Cuda:
    """The first GPU of this machine.

    Args:
        library: Library with the entry points of libcuda.

    Raises:
        EngineError: There is no GPU, or the driver refuses a call.

    Example:
        >>> class Driver:  # a driver that finds no GPU
        ...     def cuInit(self, flags):
        ...         return 100
        ...     def cuGetErrorName(self, code, text):
        ...         text._obj.value = b"CUDA_ERROR_NO_DEVICE"
        >>> Cuda(Driver())
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.EngineError: CUDA's cuInit failed with CUDA_ERROR_NO...
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._call("cuInit", ctypes.c_uint(0))
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        # TensorRT works in the primary context as well; memory of another context would
        # be invalid there.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._device, self._context = device, context

    @classmethod
    def open(cls) -> "Cuda":
        """Open the first GPU of this machine.

        Raises:
            OSError: No driver is installed.
            EngineError: There is no GPU.
        """
        return cls(ctypes.CDLL(LIBRARY))

    def gpu(self) -> Gpu:
        """Return the facts about the GPU."""
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
        """Make the GPU current in the calling thread; a thread must call this first."""
        self._call("cuCtxSetCurrent", self._context)

    def stream(self) -> int:
        """Create a stream, a queue of work on the GPU; return its handle."""
        handle = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(handle), ctypes.c_uint(0))
        return handle.value or 0

    def wait(self, stream: int) -> None:
        """Wait until all work in a stream is done."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def drop(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes on the GPU; return their address."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        """Free allocated memory."""
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

    def _call(self, name: str, *arguments: object) -> None:
        result = int(getattr(self._library, name)(*arguments))
        if result:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(ctypes.c_int(result), ctypes.byref(text))
            reason = (text.value or b"an unknown error").decode(errors="replace")
            raise EngineError(
                f"CUDA's {name} failed with {reason} ({result}). "
                "Check the GPU with nvidia-smi or tegrastats."
            )
