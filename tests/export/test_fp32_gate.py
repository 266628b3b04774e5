"""The fp32 gate passes good exports of any logit scale, and fails faulty ones.

`tests/benchmarks/gate_false_alarms.py` measures it on five backbones and many seeds.
"""

import numpy as np
import pytest
import torch

from dermedge.models import TrainedModel
from dermedge_export.context import inference_copy, module_runner
from dermedge_export.graph.trace import trace
from dermedge_export.parity.compare import parity
from dermedge_export.parity.evaluator import predict_synthetic
from dermedge_export.target import CPU
from dermedge_runtime.report import Limit
from support import varied_graphs
from support.varied_graphs import FAULTS, SPEC, Fault, GraphOutputs, GraphTemplate, varied_model

torch.set_num_threads(1)
IMAGES = varied_graphs.lesions(16)
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", params=["test_resnet", "test_convnext"])
def backbone(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def template(backbone: str) -> GraphTemplate:
    return GraphTemplate(varied_model(backbone, 0, IMAGES))


def compare(model: TrainedModel, graph: bytes) -> Limit:
    """Return the gate's `max_abs` limit of a graph."""
    sides = [
        predict_synthetic(run, list(IMAGES))
        for run in (module_runner(model.module), GraphOutputs(graph))
    ]
    report = parity(
        *sides, SPEC, {}, {}, precision="fp32", basis="b", engine="e", hardware="h", replicates=10
    )
    return next(limit for limit in report.limits if limit.metric == "max_abs")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_good_export_passes_with_logits_of_any_scale(
    template: GraphTemplate, backbone: str, seed: int
) -> None:
    model = varied_model(backbone, seed, IMAGES)
    with torch.no_grad():
        model.module.heads["diagnosis"].weight.mul_(100)
    limit = compare(model, template.graph(model))
    assert limit.status == "passed"
    assert limit.loss.value is not None
    assert limit.loss.value < 0.5e-4


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_caught(template: GraphTemplate, backbone: str, fault: Fault) -> None:
    model = varied_model(backbone, 0, IMAGES)
    # Seed 1 draws weights that matter; one weight's effect may also be below the limit.
    graph = template.graph(model, fault, np.random.default_rng(1))
    limit = compare(model, graph)
    assert limit.status == "failed"
    assert limit.loss.value is not None
    assert limit.loss.value > 2e-4


def test_the_template_gives_the_exporters_graph(template: GraphTemplate, backbone: str) -> None:
    if backbone != "test_resnet":
        return  # one trace is enough: the template does not look at the backbone
    model = varied_model(backbone, 1, IMAGES)
    exported = GraphOutputs(trace(inference_copy(model.module), SPEC, CPU.opset))(IMAGES)
    filled = GraphOutputs(template.graph(model))(IMAGES)
    for name, output in exported.items():
        np.testing.assert_array_equal(filled[name], output)
