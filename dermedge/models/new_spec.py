"""Create the spec of a new model, and check that its network accepts the input size."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dermedge_runtime.errors import BundleError, UsageError
from dermedge_runtime.spec import IDENTIFIER, Preprocess, Spec, Task

if TYPE_CHECKING:
    from dermedge.models.network import Network

INTENDED_USE = (
    "Decision support for trained users who look at images of single skin lesions like those "
    "that the model was trained on. Not a diagnosis, and not a replacement for one."
)


def make_spec(
    name: str, tasks: tuple[Task, ...], preprocess: Preprocess, lineage: Mapping[str, Any]
) -> Spec:
    """Return the spec of a new model, version "1", with the default intended use.

    Args:
        name: Becomes part of file names.
        tasks: The model's outputs.
        preprocess: Input size, fit and resizing kernel.
        lineage: Entries for the model, its teacher and its data. The intended use names
            the modalities of the data.

    Raises:
        UsageError: The name contains a character that file names cannot have.

    Example:
        >>> tasks = (Task("malignancy", "binary"),)
        >>> make_spec("mole-check", tasks, make_preprocess(160, "crop"), {}).version
        '1'
    """
    if not IDENTIFIER.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a model. Pass --name with letters, digits, '.', '_' and '-' "
            "only."
        )
    modalities = lineage.get("data", {}).get("modalities", {})
    return Spec(name, "1", tasks, preprocess, _intended_use(modalities), lineage)


def _intended_use(modalities: Mapping[str, int]) -> str:
    """Return the default intended use, with the modalities of the train images if known."""
    known = [name for name in modalities if name]
    if not known:
        return INTENDED_USE
    rest = " Some have no known modality." if "" in modalities else ""
    return f"{INTENDED_USE} It was trained on {' and '.join(known)} images.{rest}"


def make_preprocess(size: int, fit: str) -> Preprocess:
    """Return the preprocessing of a new model: triangle kernel, white background.

    Args:
        size: Side of the square input in pixels.
        fit: `crop`, `pad` or `stretch`.

    Raises:
        UsageError: The size is outside 16 to 4096, or the fit is unknown.

    Example:
        >>> make_preprocess(224, "pad").kernel
        'triangle'
    """
    try:
        return Preprocess.from_json(
            {"size": size, "fit": fit, "kernel": "triangle", "background": [255, 255, 255]}
        )
    except BundleError as error:
        raise UsageError(
            f"Size {size!r} with fit {fit!r} is not a valid preprocessing. Give a side of 16 to "
            "4096 pixels, and crop, pad or stretch."
        ) from error


def check_input(network: "Network", name: str, size: int) -> None:
    """Run the network on one black image of the input size.

    Args:
        network: Put into eval mode.
        name: timm name, for the message.
        size: Side of the square input in pixels.

    Raises:
        UsageError: The network refuses the size, for example a transformer that was
            created for another one.
    """
    import torch

    from dermedge.models.network import REFUSALS

    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    except REFUSALS as error:
        raise UsageError(
            f"{name!r} does not take images of {size} x {size} pixels ({error}). Choose another "
            f"--size or --backbone, or create it for them with --backbone-arg img_size={size}."
        ) from error
