import numpy as np
import onnx
import pytest
import toy_onnx

from dermedge_runtime.errors import BundleError, EngineError
from dermedge_runtime.ort import OrtRuntime

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)


@pytest.fixture
def bundle_of(tmp_path):
    return lambda model: toy_onnx.write(tmp_path / "toy.dermedge", model)


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("threads", [None, 1, 2])
def test_outputs_are_those_of_the_network_for_any_number_of_images(bundle_of, batch, threads):
    runtime = OrtRuntime.open(bundle_of(toy_onnx.graph(batch=batch)), threads=threads)
    for count in (1, 5):
        outputs = runtime.run(PIXELS[:count])
        for name, expected in toy_onnx.forward(PIXELS[:count]).items():
            assert outputs[name].dtype == np.float32
            np.testing.assert_allclose(outputs[name], expected, atol=1e-4)
    runtime.close()


def test_outputs_of_one_call_survive_the_next(bundle_of):
    runtime = OrtRuntime.open(bundle_of(toy_onnx.graph()))
    first = runtime.run(PIXELS[:1])
    kept = {name: values.copy() for name, values in first.items()}
    runtime.run(PIXELS[1:2])
    for name, values in kept.items():
        np.testing.assert_array_equal(first[name], values)


def test_the_engine_names_itself_and_prints_nothing(bundle_of, capfd):
    import onnxruntime

    runtime = OrtRuntime.open(bundle_of(toy_onnx.graph()))
    runtime.run(PIXELS)
    assert (runtime.name, runtime.version) == ("onnxruntime", onnxruntime.__version__)
    assert capfd.readouterr() == ("", "")


MISFITS = {
    "input name": ({"input_name": "pixels"}, r"inputs are .*pixels.*not one 'image'"),
    "input type": ({"input_type": onnx.TensorProto.FLOAT}, r"tensor\(float\).*not one 'image', tensor\(uint8\)"),
    "size": ({"size": 64}, r"64, 64, 3.*\[N, 48, 48, 3\]"),
    "batch": ({"batch": 4}, "batches of 4"),
    "labels": ({"labels": 2}, r"'diagnosis' is tensor\(float\) \[1, 2\], not tensor\(float\) \['N', 3\]"),
    "task": ({"names": ("diagnosis", "severity")}, r"\['diagnosis', 'severity'\].*\['diagnosis', 'malignancy'\]"),
}


@pytest.mark.parametrize(("options", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_a_graph_that_does_not_fit_its_spec_is_refused(bundle_of, options, message):
    with pytest.raises(EngineError, match=message):
        OrtRuntime.open(bundle_of(toy_onnx.graph(**options)))


def test_what_onnxruntime_refuses_is_one_error(bundle_of, capfd):
    with pytest.raises(EngineError, match=r"refuses model\.onnx .*onnxruntime>=1\.17") as caught:
        OrtRuntime.open(bundle_of(b"no graph at all"))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_what_onnxruntime_fails_on_is_one_error(bundle_of, capfd):
    runtime = OrtRuntime.open(bundle_of(toy_onnx.graph()))
    with pytest.raises(EngineError, match=r"failed on uint8 \[1, 40, 48, 3\]"):
        runtime.run(PIXELS[:1, :40])
    assert capfd.readouterr() == ("", "")


def test_an_unknown_provider_is_refused_and_not_silently_replaced(bundle_of):
    with pytest.raises(EngineError, match=r"no NpuProvider, only .*CPUExecutionProvider"):
        OrtRuntime.open(bundle_of(toy_onnx.graph()), providers=("NpuProvider", "CPUExecutionProvider"))


def test_a_closed_session_says_so(bundle_of):
    runtime = OrtRuntime.open(bundle_of(toy_onnx.graph()))
    runtime.close()
    runtime.close()
    with pytest.raises(EngineError, match="closed"):
        runtime.run(PIXELS)


def test_a_file_that_changed_after_opening_is_refused(bundle_of):
    bundle = bundle_of(toy_onnx.graph())
    (bundle.path / "model.onnx").write_bytes(toy_onnx.graph(labels=2))
    with pytest.raises(BundleError):
        OrtRuntime.open(bundle)
