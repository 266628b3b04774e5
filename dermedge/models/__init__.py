"""Teachers and students: a timm backbone, task heads, and their folder on disk."""

from dermedge.models.model_folder import TrainedModel, load_model_folder, save_model_folder
from dermedge.models.network import Network

__all__ = ["Network", "TrainedModel", "load_model_folder", "save_model_folder"]
