"""Teachers and students: a timm backbone, task heads, and their folder on disk.

The names below are imported on first use, so that the torch-free modules of this
package stay usable without torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dermedge.models.model_folder import TrainedModel, load_model_folder, save_model_folder
    from dermedge.models.network import Network
else:
    from dermedge_runtime.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "dermedge.models.model_folder": (
                "TrainedModel",
                "load_model_folder",
                "save_model_folder",
            ),
            "dermedge.models.network": ("Network",),
        },
    )


__all__ = ["Network", "TrainedModel", "load_model_folder", "save_model_folder"]
