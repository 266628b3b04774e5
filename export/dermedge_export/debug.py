"""Where an artifact drifts from its student: the same images through both graphs, compared tensor by tensor."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_export.context import Exportable, ExportContext
from dermedge_export.graph.inspect import (
    InspectableGraph,
    Node,
    ProbeTensors,
    inspect_bundle,
    inspect_onnx,
)
from dermedge_export.synthetic import seeds
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_export.target import find_target
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import UsageError
from dermedge_runtime.preprocess import preprocess

THRESHOLD = 20.0  # dB: noise of a tenth of the signal's amplitude
CEILING = 150.0  # dB: more than float32 can tell apart
LESIONS = 4
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
HANDING_ON = ("Cast", "DequantizeLinear", "FakeQuantize", "QuantizeLinear")


@dataclass(frozen=True)
class NodeDrift:
    """How far what one node of the artifact hands on is from what the student's graph has there, in dB within
    -150..150, over all images.

    `snr_db` is the signal-to-noise ratio, what all images have in common counting as signal. `inherited_db` is that of
    the worst that the node reads, and `own_db` counts only the noise that came between: what the node adds or
    amplifies, the rounding of its weights and of its result included.
    `weights_db` is the ratio of its weights as they are stored, None where it has none or they are not comparable;
    `max_abs` the largest difference, None where it is not finite. `quantized` nodes read 8-bit values.
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
    """What `debug` found.

    `first` is the first node, in the order of computation, whose signal-to-noise ratio is below `threshold_db`, None
    where there is none; `worst` are those that add the most noise of their own; `outputs` has the ratio of every task's
    output. `compared` counts the tensors that both graphs have.
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
    """A tensor of both graphs: its name in the student's, the one that its readers see in the artifact, and the node
    that makes it there.
    """

    tensor: str
    seen: str
    maker: Node


def debug_parity(
    bundle: Bundle | Path | str,
    against: Exportable,
    *,
    images: NDArray[np.uint8] | None = None,
    nodes: int = 5,
    threshold: float = THRESHOLD,
) -> DebugReport:
    """Find the node at which a bundle's artifact first drifts from its student, and the nodes that add the most noise.

    Both graphs are computed operator by operator, in floating point between the artifact's rounding steps: what an
    engine's own kernels add is not seen here, but by `verify`.

    Args:
        bundle: the bundle, or its path.
        against: the student that it was made from.
        images: preprocessed, uint8 [N, S, S, 3]; by default those of the golden cases and four drawn lesions.
        nodes: how many of the worst to report.
        threshold: dB below which a node counts as drifted.

    Raises:
        UsageError: the bundle was not made from this student, its format cannot be looked into, or an argument makes
            no sense.
        MissingExtraError: torch, onnx or the engine is not installed.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    _check(bundle, against, images, nodes)
    candidate = inspect_bundle(bundle)
    student = inspect_onnx(_graph(bundle, against))
    looked = _images(bundle) if images is None else images
    pairs = _matching(bundle, student, candidate, looked[:1])
    watches = (
        student.probe_tensors([pair.tensor for pair in pairs]),
        candidate.probe_tensors([pair.seen for pair in pairs]),
    )
    ratios, peaks = _compare(*watches, looked)
    drifts = _drifts(pairs, candidate, ratios, peaks)
    first = next((drift for drift in drifts if drift.snr_db < threshold), None)
    noisy = [drift for drift in drifts if drift.own_db < CEILING]
    worst = sorted(noisy, key=lambda drift: drift.own_db)[:nodes]
    weights = _weights(
        student,
        candidate,
        [drift.node for drift in (*worst, *([first] if first else []))],
        looked[:1],
    )
    by_tensor = {drift.tensor: drift.snr_db for drift in drifts}
    return DebugReport(
        bundle=bundle.id,
        precision=bundle.artifact.precision,
        images=len(looked),
        compared=len(pairs),
        threshold_db=threshold,
        first=None if first is None else replace(first, weights_db=weights.get(first.node)),
        worst=tuple(replace(drift, weights_db=weights.get(drift.node)) for drift in worst),
        outputs={task.name: by_tensor[task.name] for task in bundle.spec.tasks},
    )


def _check(
    bundle: Bundle, against: Exportable, images: NDArray[np.uint8] | None, nodes: int
) -> None:
    for field in ("name", "tasks", "preprocess"):
        ours, theirs = getattr(bundle.spec, field), getattr(against.spec, field)
        if ours != theirs:
            raise _stranger(
                bundle, f"its {field} is {_short(ours)}, the student's {_short(theirs)}"
            )
    size = bundle.spec.preprocess.size
    if images is not None and (
        images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or not len(images)
    ):
        raise UsageError(
            f"images are {images.dtype} {list(images.shape)}, not uint8 [N, {size}, {size}, 3]: preprocess them first."
        )
    if nodes < 1:
        raise UsageError(f"nodes is {nodes}: ask for 1 or more.")


def _short(value: Any) -> str:
    """A field of a spec in few words."""
    if isinstance(value, tuple):
        return ", ".join(f"{task.name} ({task.kind}, {len(task.labels)} labels)" for task in value)
    return repr(value)


def _stranger(bundle: Bundle, why: str) -> UsageError:
    return UsageError(
        f"{bundle.path} was not made from this student ({why}): give the student named in its lineage, or export again."
    )


def _graph(bundle: Bundle, against: Exportable) -> bytes:
    """The student's fp32 graph, as the bundle's exporter began with it."""
    details = bundle.artifact.details
    opset = details.get("opset") or find_target(bundle.artifact.target).opset
    return ExportContext(against, dynamic_batch=details.get("batch") == "dynamic").graph(opset)


def _images(bundle: Bundle) -> NDArray[np.uint8]:
    drawn = [
        preprocess(draw_lesion(seed).image, bundle.spec.preprocess, exact=True)
        for seed in seeds.DEBUG[:LESIONS]
    ]
    return np.stack([*(case.tensor for case in bundle.golden()), *drawn])


def _matching(
    bundle: Bundle, student: InspectableGraph, candidate: InspectableGraph, image: NDArray[np.uint8]
) -> list[_Pair]:
    """The floating-point tensors that both graphs have, in the student's order of computation.

    Raises:
        UsageError: the graphs are of different architectures.
    """
    makers = {name: node for node in candidate.nodes for name in node.outputs}
    own = {name: node for node in student.nodes if node.inputs for name in node.outputs}
    known = {node.name for node in student.nodes}
    common = [name for name in own if name in makers]
    pairs = [
        _Pair(name, candidate.rounded.get(name, name), _maker(name, makers, own[name], known))
        for name in common
    ]
    values = (
        student.probe_tensors(common)(image),
        candidate.probe_tensors([pair.seen for pair in pairs])(image),
    )
    floats = [
        (pair, first.shape == second.shape)
        for pair, first, second in zip(pairs, *values, strict=True)
        if np.issubdtype(first.dtype, np.floating)
    ]
    alike = [pair for pair, same in floats if same]
    missing = {task.name for task in bundle.spec.tasks} - {pair.tensor for pair in alike}
    layers = {node.name for node in student.nodes if node.op in WEIGHTED}
    shared = layers & {node.name for node in candidate.nodes}
    if missing or 2 * len(alike) < len(floats) or 2 * len(shared) < len(layers):
        found = (
            f"{len(shared)} of the {len(layers)} layers and {len(alike)} of the {len(own)} tensors"
        )
        raise _stranger(bundle, f"it has {found} in the student's graph")
    return alike


def _maker(name: str, makers: Mapping[str, Node], own: Node, known: Collection[str]) -> Node:
    """The node of the artifact that makes a tensor, under the name that the student's graph has for it.

    Rounding steps hand on what another node made; an activation may have been merged into the node before it, and a
    node with a bias may have been taken apart.
    """
    node = makers[name]
    while node.op in HANDING_ON and node.name not in known and node.inputs[0] in makers:
        node = makers[node.inputs[0]]
    return node if node.name in known else replace(node, name=own.name, op=own.op)


def _compare(
    student: ProbeTensors, candidate: ProbeTensors, images: NDArray[np.uint8]
) -> tuple[list[float], list[float | None]]:
    """Signal-to-noise ratio in dB and largest difference of every pair of tensors; one image is held at a time."""
    sums: list[Any] = []
    for image in images:
        rows = [
            _powers(*values)
            for values in zip(student(image[None]), candidate(image[None]), strict=True)
        ]
        sums.append(rows)
    table = np.array(sums)
    ratios = [_decibels(signal, noise) for signal, noise in table[:, :, :2].sum(axis=0)]
    peaks = table[:, :, 2].max(axis=0)
    return ratios, [float(peak) if np.isfinite(peak) else None for peak in peaks]


def _powers(reference: NDArray[Any], found: NDArray[Any]) -> tuple[float, float, float]:
    """Power of the signal, power of the noise, and the largest difference."""
    signal = reference.astype(np.float64).ravel()
    with np.errstate(invalid="ignore"):
        noise = found.astype(np.float64).ravel() - signal
    return float(signal @ signal), float(noise @ noise), float(np.abs(noise).max(initial=0.0))


def _decibels(signal: float, noise: float) -> float:
    """A ratio of powers in dB, within -150..150; noise that is not finite is the worst."""
    if not np.isfinite(noise):
        return -CEILING
    tiny = np.finfo(np.float64).tiny
    ratio = 10 * (np.log10(max(signal, tiny)) - np.log10(max(noise, tiny)))
    return float(np.clip(ratio, -CEILING, CEILING))


def _drifts(
    pairs: Sequence[_Pair],
    candidate: InspectableGraph,
    ratios: Sequence[float],
    peaks: Sequence[float | None],
) -> list[NodeDrift]:
    by_seen = {pair.seen: ratio for pair, ratio in zip(pairs, ratios, strict=True)}
    makers = {name: node for node in candidate.nodes for name in node.outputs}
    eight_bit = set(candidate.rounded.values())
    found = []
    for pair, ratio, peak in zip(pairs, ratios, peaks, strict=True):
        inherited = min(
            (by_seen[name] for name in _sources(pair.maker, makers, by_seen)), default=CEILING
        )
        added = 10 ** (-ratio / 10) - 10 ** (-inherited / 10)
        found.append(
            NodeDrift(
                node=pair.maker.name,
                op=pair.maker.op,
                tensor=pair.tensor,
                snr_db=ratio,
                inherited_db=inherited,
                own_db=_decibels(1.0, max(added, 0.0)),
                weights_db=None,
                max_abs=peak,
                quantized=bool(eight_bit & set(pair.maker.inputs)),
            )
        )
    return found


def _sources(node: Node, makers: Mapping[str, Node], compared: Collection[str]) -> set[str]:
    """The nearest compared tensors that a node computes from."""
    found: set[str] = set()
    ahead, passed = list(node.inputs), set()
    while ahead:
        name = ahead.pop()
        if name in compared:
            found.add(name)
        elif name in makers and name not in passed:
            passed.add(name)
            ahead += makers[name].inputs
    return found


def _weights(
    student: InspectableGraph,
    candidate: InspectableGraph,
    nodes: Sequence[str],
    image: NDArray[np.uint8],
) -> dict[str, float]:
    """Signal-to-noise ratio in dB of the weights of those of the named nodes that have some in both graphs."""
    ours = {node.name: node for node in student.nodes}
    theirs = {node.name: node for node in candidate.nodes if candidate.constants}
    stored = {}
    for name in dict.fromkeys(nodes):
        ranks = [len(student.constants.get(of, ())) for of in ours[name].inputs]
        place = next(
            (i for i, rank in enumerate(ranks) if rank > 1 and ours[name].op in WEIGHTED), None
        )
        if place is not None and name in theirs:
            stored[name] = ours[name].inputs[place], theirs[name].inputs[place]
    if not stored:
        return {}
    first, second = zip(*stored.values(), strict=True)
    values = zip(
        stored,
        student.probe_tensors(first)(image),
        candidate.probe_tensors(second)(image),
        strict=True,
    )
    return {name: _decibels(*_powers(a, b)[:2]) for name, a, b in values if a.shape == b.shape}
