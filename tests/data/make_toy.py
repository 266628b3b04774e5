"""Make `toy.dermedge`, the small bundle of the tests, with the real exporter.

Run `python tests/data/make_toy.py`. A network of 5,000 parameters learns procedural
lesions for 400 steps. The bundle is zipped, so that no version control changes its line
ends.
"""

import itertools
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from dermedge.data.draw import draw_data_set
from dermedge.data.split import split_data
from dermedge.data.table import digests, read_table
from dermedge.data.taxonomy import project
from dermedge.evaluation.export_data import TableEvaluationData
from dermedge_export import ExportSession
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Label, Preprocess, Spec, Task

OUT = Path(__file__).parent / "toy.dermedge"
SPEC = Spec(
    name="toy",
    version="1.0.0",
    tasks=(
        Task(
            "diagnosis",
            "classify",
            (
                Label("nv", "Melanocytic naevus", malignant=False, codes={"icd11": "2F20"}),
                Label("mel", "Melanoma", malignant=True, codes={"icd11": "2C30"}),
                Label("bcc", "Basal cell carcinoma", malignant=True, codes={"icd11": "2C32"}),
            ),
        ),
        Task("malignancy", "binary"),
    ),
    preprocess=Preprocess(size=48),
    intended_use="Tests only: it has seen nothing but drawings.",
    lineage={"data": {"name": "procedural lesions", "licence": "CC0-1.0"}},
)


class Network(nn.Module):
    """uint8 [N, S, S, 3] to logits by task; mean and standard deviation inside."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 16, 24)
        self.body = nn.Sequential(
            *(
                layer
                for narrow, wide in itertools.pairwise(widths)
                for layer in (nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.ReLU())
            ),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.heads = nn.ModuleDict({"diagnosis": nn.Linear(24, 3), "malignancy": nn.Linear(24, 1)})

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body((image.permute(0, 3, 1, 2).float() - 127.5) / 63.75)
        return {name: head(features) for name, head in self.heads.items()}


def learn(images: torch.Tensor, labels: torch.Tensor, malignant: torch.Tensor) -> Network:
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(400):
        outputs = network(images)
        loss = nn.functional.cross_entropy(outputs["diagnosis"], labels)
        loss = loss + nn.functional.binary_cross_entropy_with_logits(
            outputs["malignancy"][:, 0], malignant
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "procedural-lesions"
        draw_data_set(data, count=2000, size=(96, 72))
        split_data(data, fractions=(0.6, 0.15, 0.25), overwrite=True)
        table = read_table(data).select_split("train")
        ids = [label.id for label in SPEC.tasks[0].labels]
        labels = np.array([project(dx, ids) or "" for dx in table.frame["dx"]])
        known = np.isin(labels, ids)
        tensors = [
            preprocess(data / image, SPEC.preprocess) for image in table.frame["image"][known]
        ]
        index = torch.tensor([ids.index(label) for label in labels[known]])
        network = learn(torch.from_numpy(np.stack(tensors)), index, (index > 0).float())
        session = ExportSession.open(
            SimpleNamespace(module=network, spec=SPEC),
            data=TableEvaluationData(data, SPEC),
            training_images=list(digests(table)),
        )
        bundle = session.export("cpu", folder)
        bundle.save(OUT, zipped=True, overwrite=True)
    print(f"{OUT}: {OUT.stat().st_size} bytes, parity {bundle.parity['host']['status']}")


if __name__ == "__main__":
    main()
