"""Tasks of the cases whose outputs are decoded."""

from dermedge_runtime.spec import Label, Task

DIAGNOSIS = Task(
    "diagnosis",
    "classify",
    (
        Label("nv", "Melanocytic naevus", malignant=False),
        Label("mel", "Melanoma", malignant=True),
        Label("akiec", "Actinic keratosis or Bowen's disease"),
        Label("bcc", "Basal cell carcinoma", malignant=True),
    ),
)
BENIGN = Task("type", "classify", tuple(Label(name, name.title()) for name in ("a", "b", "c")))
MALIGNANCY = Task("malignancy", "binary")
LEVELS = tuple(Label(str(level), f"Level {level}") for level in range(5))
SEVERITY = Task("severity", "ordinal", LEVELS)
LESION = Task("lesion", "segment")
CAM = Task("diagnosis_cam", "cam", DIAGNOSIS.labels)
EMBEDDING = Task("embedding", "embed")
