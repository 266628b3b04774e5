"""Teachers and students: a timm backbone, task heads, and their folder on disk."""

from dermedge.models.model_folder import Student, load_student, save_student
from dermedge.models.network import Network

__all__ = ["Network", "Student", "load_student", "save_student"]
