"""Find where an artifact drifts from its student, tensor by tensor."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_export.class_map import map_task
from dermedge_export.context import Exportable, ExportContext
from dermedge_export.graph.inspect import (
    InspectableGraph,
    Node,
    ProbeTensors,
    inspect_bundle,
    inspect_onnx,
)
from dermedge_export.options import ExportOptions
from dermedge_export.synthetic import seeds
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_export.target import find_target
from dermedge_export.task_selection import select_outputs
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import UsageError
from dermedge_runtime.preprocess import preprocess

THRESHOLD = 20.0  # dB: the noise has a tenth of the signal's amplitude
CEILING = 150.0  # dB: more than float32 can resolve
LESIONS = 10
WEIGHTED_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ROUNDING_OPS = ("Cast", "DequantizeLinear", "FakeQuantize", "QuantizeLinear")


@dataclass(frozen=True)
class NodeDrift:
    """The difference of one node's output between the artifact and its student.

    Ratios are signal-to-noise ratios over all images, in dB within -150..150. The
    part that all images have in common counts as signal.

    Attributes:
        node: Name of the node.
        op: Its operator.
        tensor: Name of the compared output.
        snr_db: Ratio of the output.
        inherited_db: Ratio of the node's worst input.
        own_db: Ratio that counts only the noise which this node adds or amplifies. It
            includes the rounding of its weights and of its output.
        weights_db: Ratio of its stored weights; None if it has no comparable weights.
        max_abs: Largest absolute difference; None if it is not finite.
        quantized: The node reads 8-bit values.

    Example:
        >>> node = NodeDrift(
        ...     node="stem",
        ...     op="Conv",
        ...     tensor="stem_out",
        ...     snr_db=17.9,
        ...     inherited_db=41.0,
        ...     own_db=18.0,
        ...     weights_db=33.0,
        ...     max_abs=0.4,
        ...     quantized=True,
        ... )
        >>> node.own_db < node.inherited_db  # it adds more noise than it inherits
        True
    """

    node: str
    op: str
    tensor: str
    snr_db: float
    inherited_db: float
    own_db: float
    weights_db: float | None
    max_abs: float | None
    quantized: bool


@dataclass(frozen=True)
class DebugReport:
    """The report of `debug_parity`.

    Attributes:
        bundle: Id of the bundle.
        precision: Precision of the artifact.
        images: Number of images.
        compared: Number of tensors that both graphs hold.
        threshold_db: Ratio below which a node has drifted.
        first: First drifted node in the order of computation; None if no node has
            drifted.
        worst: The nodes that add the most noise of their own, the worst first.
        outputs: Signal-to-noise ratio in dB of each task's output.

    Example:
        >>> report = DebugReport(  # as `debug_parity` returns it
        ...     bundle="ab" * 32,
        ...     precision="fp32",
        ...     images=12,
        ...     compared=80,
        ...     threshold_db=20.0,
        ...     first=None,
        ...     worst=(),
        ...     outputs={"diagnosis": 120.0, "malignancy": 118.0},
        ... )
        >>> report.first is None, min(report.outputs.values()) > report.threshold_db
        (True, True)
    """

    bundle: str
    precision: str
    images: int
    compared: int
    threshold_db: float
    first: NodeDrift | None
    worst: tuple[NodeDrift, ...]
    outputs: Mapping[str, float]


@dataclass(frozen=True)
class _Pair:
    """A tensor that both graphs hold.

    Attributes:
        tensor: Its name in the student's graph.
        rounded: Name of the tensor that its consumers read in the artifact.
        producer: Node that computes it in the artifact.
    """

    tensor: str
    rounded: str
    producer: Node


def debug_parity(
    bundle: Bundle | Path | str,
    against: Exportable,
    *,
    images: NDArray[np.uint8] | None = None,
    nodes: int = 5,
    threshold: float = THRESHOLD,
) -> DebugReport:
    """Find the node at which an artifact first drifts from its student.

    Both graphs are computed operator by operator, in floating point between the
    artifact's rounding steps. Errors of an engine's own kernels do not show here;
    `verify` finds them.

    Args:
        bundle: A bundle or its path.
        against: The student that the bundle was exported from.
        images: Preprocessed images, uint8 [N, S, S, 3]. By default ten synthetic
            lesions.
        nodes: Number of nodes to report, those that add the most noise first.
        threshold: Signal-to-noise ratio in dB below which a node has drifted.

    Raises:
        UsageError: The bundle was exported from another student, or its format has no
            readable graph. Also if the images have another type or shape, or `nodes`
            is below 1.
        MissingExtraError: torch, onnx or the engine is not installed.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    names = [task.name for task in bundle.spec.tasks if against.spec.task(task.name)]
    explain = map_task(bundle.spec) is not None
    against = select_outputs(against, ExportOptions(tasks=names, explain=explain))
    _check_arguments(bundle, against, images, nodes)
    artifact = inspect_bundle(bundle)
    student = inspect_onnx(_student_graph(bundle, against))
    images = _default_images(bundle) if images is None else images
    pairs = _match_tensors(bundle, student, artifact, images[:1])
    probes = (
        student.probe_tensors([pair.tensor for pair in pairs]),
        artifact.probe_tensors([pair.rounded for pair in pairs]),
    )
    ratios, peaks = _compare_tensors(*probes, images)
    drifts = _list_drifts(pairs, artifact, ratios, peaks)
    first = next((drift for drift in drifts if drift.snr_db < threshold), None)
    noisy = [drift for drift in drifts if drift.own_db < CEILING]
    worst = sorted(noisy, key=lambda drift: drift.own_db)[:nodes]
    weights = _compare_weights(
        student,
        artifact,
        [drift.node for drift in (*worst, *([first] if first else []))],
        images[:1],
    )
    by_tensor = {drift.tensor: drift.snr_db for drift in drifts}
    return DebugReport(
        bundle=bundle.id,
        precision=bundle.artifact.precision,
        images=len(images),
        compared=len(pairs),
        threshold_db=threshold,
        first=None if first is None else replace(first, weights_db=weights.get(first.node)),
        worst=tuple(replace(drift, weights_db=weights.get(drift.node)) for drift in worst),
        outputs={task.name: by_tensor[task.name] for task in bundle.spec.tasks},
    )


def _check_arguments(
    bundle: Bundle, against: Exportable, images: NDArray[np.uint8] | None, nodes: int
) -> None:
    for part in ("name", "tasks", "preprocess"):
        ours, theirs = getattr(bundle.spec, part), getattr(against.spec, part)
        if ours != theirs:
            raise _other_student_error(
                bundle, f"its {part} is {_describe(ours)}, the student's is {_describe(theirs)}"
            )
    size = bundle.spec.preprocess.size
    if images is not None and (
        images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or not len(images)
    ):
        raise UsageError(
            f"The images are {images.dtype} {list(images.shape)}, not "
            f"uint8 [N, {size}, {size}, 3]. Preprocess them first."
        )
    if nodes < 1:
        raise UsageError(f"nodes is {nodes}. Give 1 or more.")


def _describe(value: Any) -> str:
    """Return a short text for a field of a spec."""
    if isinstance(value, tuple):
        return ", ".join(f"{task.name} ({task.kind}, {len(task.labels)} labels)" for task in value)
    return repr(value)


def _other_student_error(bundle: Bundle, why: str) -> UsageError:
    return UsageError(
        f"{bundle.path} was not exported from this student ({why}). Give the student that its "
        "lineage names, or export this student again."
    )


def _student_graph(bundle: Bundle, against: Exportable) -> bytes:
    """Return the student's fp32 graph, from which the bundle's exporter started."""
    details = bundle.artifact.details
    opset = details.get("opset") or find_target(bundle.artifact.target).opset
    return ExportContext(against, dynamic_batch=details.get("batch") == "dynamic").graph(opset)


def _default_images(bundle: Bundle) -> NDArray[np.uint8]:
    # Not the golden images: some are very dark or bright, and saturate a sound artifact.
    lesions = [
        preprocess(draw_lesion(seed).image, bundle.spec.preprocess, exact=True)
        for seed in seeds.DEBUG[:LESIONS]
    ]
    return np.stack(lesions)


def _match_tensors(
    bundle: Bundle, student: InspectableGraph, artifact: InspectableGraph, image: NDArray[np.uint8]
) -> list[_Pair]:
    """Return the floating-point tensors that both graphs hold, in the student's order.

    Exporters keep the names of the student's tensors, so tensors match by name. If less
    than half of the layers or tensors match, the graphs have different architectures.

    Raises:
        UsageError: The graphs have different architectures.
    """
    producers = artifact.producers
    computed = {name: node for node in student.nodes if node.inputs for name in node.outputs}
    known = {node.name for node in student.nodes}
    common = [name for name in computed if name in producers]
    pairs = [
        _Pair(
            name,
            artifact.rounded.get(name, name),
            _find_producer(name, producers, computed[name], known),
        )
        for name in common
    ]
    values = (
        student.probe_tensors(common)(image),
        artifact.probe_tensors([pair.rounded for pair in pairs])(image),
    )
    floats = [
        (pair, first.shape == second.shape)
        for pair, first, second in zip(pairs, *values, strict=True)
        if np.issubdtype(first.dtype, np.floating)
    ]
    alike = [pair for pair, same in floats if same]
    missing = {task.name for task in bundle.spec.tasks} - {pair.tensor for pair in alike}
    layers = {node.name for node in student.nodes if node.op in WEIGHTED_OPS}
    shared = layers & {node.name for node in artifact.nodes}
    if missing or 2 * len(alike) < len(floats) or 2 * len(shared) < len(layers):
        counts = (
            f"{len(shared)} of the {len(layers)} layers "
            f"and {len(alike)} of the {len(computed)} tensors"
        )
        raise _other_student_error(bundle, f"it has {counts} of the student's graph")
    return alike


def _find_producer(
    name: str, producers: Mapping[str, Node], own: Node, known: Collection[str]
) -> Node:
    """Return the artifact's node that computes a tensor, under the student's name.

    A rounding step only passes on the output of another node. An exporter may also
    merge an activation into the node before it, or split a bias off a node. Such nodes
    get the name and operator of the student's node.
    """
    node = producers[name]
    while node.op in ROUNDING_OPS and node.name not in known and node.inputs[0] in producers:
        node = producers[node.inputs[0]]
    return node if node.name in known else replace(node, name=own.name, op=own.op)


def _compare_tensors(
    student: ProbeTensors, artifact: ProbeTensors, images: NDArray[np.uint8]
) -> tuple[list[float], list[float | None]]:
    """Return the signal-to-noise ratio in dB and the largest difference per tensor.

    The tensors of only one image are in memory at a time.
    """
    sums: list[Any] = []
    for image in images:
        rows = [
            _measure_powers(*values)
            for values in zip(student(image[None]), artifact(image[None]), strict=True)
        ]
        sums.append(rows)
    table = np.array(sums)
    ratios = [_to_decibels(signal, noise) for signal, noise in table[:, :, :2].sum(axis=0)]
    peaks = table[:, :, 2].max(axis=0)
    return ratios, [float(peak) if np.isfinite(peak) else None for peak in peaks]


def _measure_powers(reference: NDArray[Any], artifact: NDArray[Any]) -> tuple[float, float, float]:
    """Return the powers of signal and noise, and the largest absolute difference."""
    signal = reference.astype(np.float64).ravel()
    with np.errstate(invalid="ignore"):
        noise = artifact.astype(np.float64).ravel() - signal
    return float(signal @ signal), float(noise @ noise), float(np.abs(noise).max(initial=0.0))


def _to_decibels(signal: float, noise: float) -> float:
    """Return a ratio of powers in dB within -150..150; infinite noise gives -150."""
    if not np.isfinite(noise):
        return -CEILING
    tiny = np.finfo(np.float64).tiny
    ratio = 10 * (np.log10(max(signal, tiny)) - np.log10(max(noise, tiny)))
    return float(np.clip(ratio, -CEILING, CEILING))


def _list_drifts(
    pairs: Sequence[_Pair],
    artifact: InspectableGraph,
    ratios: Sequence[float],
    peaks: Sequence[float | None],
) -> list[NodeDrift]:
    by_rounded = {pair.rounded: ratio for pair, ratio in zip(pairs, ratios, strict=True)}
    producers = artifact.producers
    rounded = set(artifact.rounded.values())
    drifts = []
    for pair, ratio, peak in zip(pairs, ratios, peaks, strict=True):
        inherited = min(
            (by_rounded[name] for name in _find_sources(pair.producer, producers, by_rounded)),
            default=CEILING,
        )
        # Independent noise powers add up, as shares of the signal's power. So the
        # difference between this output and the worst input is this node's own noise.
        added = 10 ** (-ratio / 10) - 10 ** (-inherited / 10)
        drifts.append(
            NodeDrift(
                node=pair.producer.name,
                op=pair.producer.op,
                tensor=pair.tensor,
                snr_db=ratio,
                inherited_db=inherited,
                own_db=_to_decibels(1.0, max(added, 0.0)),
                weights_db=None,
                max_abs=peak,
                quantized=bool(rounded & set(pair.producer.inputs)),
            )
        )
    return drifts


def _find_sources(node: Node, producers: Mapping[str, Node], compared: Collection[str]) -> set[str]:
    """Return the nearest compared tensors upstream of a node."""
    sources: set[str] = set()
    pending, visited = list(node.inputs), set()
    while pending:
        name = pending.pop()
        if name in compared:
            sources.add(name)
        elif name in producers and name not in visited:
            visited.add(name)
            pending += producers[name].inputs
    return sources


def _compare_weights(
    student: InspectableGraph,
    artifact: InspectableGraph,
    nodes: Sequence[str],
    image: NDArray[np.uint8],
) -> dict[str, float]:
    """Return the signal-to-noise ratio in dB of the weights of the named nodes.

    Nodes without weights in both graphs are left out.
    """
    ours = {node.name: node for node in student.nodes}
    theirs = {node.name: node for node in artifact.nodes if artifact.constants}
    stored = {}
    for name in dict.fromkeys(nodes):
        ranks = [len(student.constants.get(of, ())) for of in ours[name].inputs]
        place = next(
            (i for i, rank in enumerate(ranks) if rank > 1 and ours[name].op in WEIGHTED_OPS), None
        )
        if place is not None and name in theirs:
            stored[name] = ours[name].inputs[place], theirs[name].inputs[place]
    if not stored:
        return {}
    first, second = zip(*stored.values(), strict=True)
    values = zip(
        stored,
        student.probe_tensors(first)(image),
        artifact.probe_tensors(second)(image),
        strict=True,
    )
    return {
        name: _to_decibels(*_measure_powers(a, b)[:2])
        for name, a, b in values
        if a.shape == b.shape
    }
