"""Teachers and students: a timm backbone, task heads, and their folder on disk; teachers made of published weights."""

from dermedge.models.importing import import_teacher
from dermedge.models.network import Network
from dermedge.models.student import Student, load_student, save_student

__all__ = ["Network", "Student", "import_teacher", "load_student", "save_student"]
