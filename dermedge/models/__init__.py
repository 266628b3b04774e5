"""Teachers and students: a timm backbone, task heads, and their folder on disk.

The names below are imported on first use, so that the torch-free modules of this
package stay usable without torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dermedge.models.model_folder import TrainedModel, load_model_folder, save_model_folder
    from dermedge.models.network import Network
else:
    _HOMES = {
        "Network": "network",
        "TrainedModel": "model_folder",
        "load_model_folder": "model_folder",
        "save_model_folder": "model_folder",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'dermedge.models' has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"dermedge.models.{_HOMES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = ["Network", "TrainedModel", "load_model_folder", "save_model_folder"]
