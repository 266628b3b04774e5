"""Find the exporter of a format."""

from dermedge_export.context import Exporter
from dermedge_runtime.registry import lookup

EXPORTERS: dict[str, str] = {
    "onnx": "dermedge_export.exporters.onnx:export_onnx",
    "openvino": "dermedge_export.exporters.openvino:export_openvino",
    "litert": "dermedge_export.exporters.litert:export_litert",
    "tensorrt": "dermedge_export.exporters.tensorrt.export:export_tensorrt",
    "coreml": "dermedge_export.exporters.coreml.export:export_coreml",
}
GROUP = "dermedge.exporters"


def find_exporter(name: str) -> Exporter:
    """Return the exporter of a format, built in or installed.

    Args:
        name: Name of the format.

    Raises:
        UsageError: No exporter has this name; the message names the closest one.

    Example:
        >>> from dermedge_export.exporters.registry import find_exporter
        >>> find_exporter("onnx").__name__
        'export_onnx'
    """
    exporter: Exporter = lookup("format", name, EXPORTERS, GROUP)
    return exporter
