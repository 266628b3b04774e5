"""Teachers and students: a timm backbone, task heads, and their folder on disk."""

from dermedge.models.network import Network
from dermedge.models.student import Student, load_student, save_student

__all__ = ["Network", "Student", "load_student", "save_student"]
