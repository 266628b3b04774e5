"""Look up the extra that a verb needs and the packages that an extra installs.

The packages come from the metadata of the installed distribution, so pyproject.toml is
their only list. The extra of each verb is listed here only.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, requires

from dermedge_runtime.errors import MissingExtraError

# `predict`, `verify` and `bench` need the engine of the bundle, which is an extra too.
VERBS: Mapping[str, str] = {
    "demo": "train",
    "run": "train",
    "data": "data",
    "pretrain": "pretrain",
    "teacher": "export",
    "probe": "train",
    "caption": "captions",
    "finetune": "train",
    "distill": "train",
    "federated": "federated",
    "export": "export",
    "build": "evaluate",
    "evaluate": "evaluate",
    "readers": "readers",
    "parity": "export",
}
# Extras that complete a verb or serve an engine.
PURPOSES: Mapping[str, str] = {
    "onnxruntime": "predict, verify, bench of ONNX bundles",
    "openvino": "predict, verify, bench of OpenVINO bundles",
    "litert": "predict, verify, bench of LiteRT bundles",
    "litert-export": "export for android, and for LiteRT",
    "tensorrt": "build, predict, verify, bench on an NVIDIA GPU",
    "coreml": "export for ios; predict, verify, bench on a Mac",
    "heif": "HEIC and HEIF photographs",
    "dicom": "DICOM images",
    "report": "inspect --html",
    "quantize": "export with NNCF, and for OpenVINO",
    "pretrain": "run with pretraining",
    "text": "pretrain with prototypes of a text encoder",
    "ray": "scoring on many machines",
}
# Extras for the tests, which users do not need.
INTERNAL = ("test",)
# Distributions by import name, where the names differ or where another distribution
# requires the module.
DISTRIBUTIONS: Mapping[str, str] = {
    "cv2": "albumentations",
    "markupsafe": "jinja2",
    "sklearn": "scikit-learn",
    "torchvision": "timm",
}


@cache
def extras() -> dict[str, frozenset[str]]:
    """Return the distributions that each extra installs.

    Returns:
        Normalised distribution names by extra, in the order of pyproject.toml, with the
        names of the extras that it includes. Empty if dermedge is not installed as a
        distribution.

    Example:
        >>> sorted(extras()["evaluate"])
        ['pandas', 'scikit-learn', 'scipy']
    """
    # `Provides-Extra` lists only names; the requirements carry their extra as a marker.
    named: dict[str, list[str]] = {}
    for requirement in _requirements():
        if extra := re.search(r"extra == ['\"]([\w-]+)['\"]", requirement):
            named.setdefault(extra[1], []).append(requirement.partition(";")[0].strip())
    resolved: dict[str, frozenset[str]] = {}

    def resolve(extra: str) -> frozenset[str]:
        if extra not in resolved:
            names: set[str] = set()
            for requirement in named.get(extra, ()):
                name = distribution_of(re.split(r"[\[<>=!~ ]", requirement)[0])
                if name == "dermedge":
                    included = requirement.partition("[")[2].partition("]")[0].split(",")
                    names.update(*(resolve(part.strip()) for part in included))
                else:
                    names.add(name)
            resolved[extra] = frozenset(names)
        return resolved[extra]

    return {extra: resolve(extra) for extra in named if extra not in INTERNAL}


def distribution_of(module: str) -> str:
    """Return the distribution that installs a top-level module.

    Example:
        >>> distribution_of("sklearn"), distribution_of("lightning_fabric")
        ('scikit-learn', 'lightning-fabric')
    """
    return DISTRIBUTIONS.get(module, re.sub(r"[-_.]+", "-", module).lower())


def extra_of(module: str, verb: str = "") -> str | None:
    """Return the extra to install if a module is missing.

    Args:
        module: Top-level module that could not be imported.
        verb: Verb that needs it. Its own extra is preferred if it installs the module.

    Returns:
        The verb's extra, else the smallest extra that installs the module, else None.

    Example:
        >>> extra_of("torch"), extra_of("torch", "finetune"), extra_of("no_such_module")
        ('export', 'train', None)
    """
    name = distribution_of(module)
    sizes = {extra: len(names) for extra, names in extras().items() if name in names}
    if VERBS.get(verb) in sizes:
        return VERBS[verb]
    return min(sizes, key=lambda extra: sizes[extra], default=None)


def missing_extra(error: ModuleNotFoundError, name: str, verb: str) -> MissingExtraError | None:
    """Return the error to show if a package of an extra is missing, else None.

    Args:
        error: The failed import.
        name: Name of the command or function, such as `dermedge export`.
        verb: Verb whose extra is preferred; see `extra_of`.
    """
    package = (error.name or "").partition(".")[0]
    extra = extra_of(package, verb)
    return None if extra is None else MissingExtraError(package, extra, f"`{name}`")


def purpose(extra: str) -> str:
    """Return the verbs that an extra enables, as text.

    Example:
        >>> purpose("evaluate")
        'evaluate, build'
    """
    verbs = [verb for verb, needed in VERBS.items() if needed == extra]
    # The verb of the same name comes first; the sort is stable.
    verbs.sort(key=lambda verb: verb != extra)
    return ", ".join([*verbs, *([PURPOSES[extra]] if extra in PURPOSES else [])])


def _requirements() -> list[str]:
    try:
        return requires("dermedge") or []
    except PackageNotFoundError:
        return []
