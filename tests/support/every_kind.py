"""One task of each kind that a table or a teacher can train."""

from dermedge_runtime.spec import Label, Task

LABELS = tuple(Label(str(i), str(i)) for i in range(3))
TASKS = (
    Task("diagnosis", "classify", LABELS),
    Task("malignancy", "binary"),
    Task("severity", "ordinal", LABELS),
    Task("lesion", "segment"),
    Task("embedding", "embed"),
)
UNKNOWN = float("nan")
