"""The model card names the device, and where the artifact was measured."""

from dataclasses import replace

from conftest import TOY_POSTPROCESSING, TOY_SPEC
from dermedge_export.model_card import model_card
from dermedge_runtime.report import Interval, Limit, ParityReport
from dermedge_runtime.spec import Artifact, Conformal, Postprocessing, Task

ARTIFACT = Artifact(
    "jetson-thor", "tensorrt", "model.onnx", "int8+fp16", requires=("tensorrt>=10.13,<12",)
)
REPORT = ParityReport(
    status="passed",
    basis="test split of clinic",
    cases=1253,
    engine="onnxruntime 1.32.0",
    hardware="Some CPU (avx2 avx512_vnni)",
    precision="int8+fp16",
    limits=(Limit("top1_agreement", "passed", 1.0, 0.9912, Interval(0.0088), 0.02, 1253),),
)


def card(artifact=ARTIFACT, device=None):
    return model_card(TOY_SPEC, artifact, TOY_POSTPROCESSING, REPORT, device)


def test_it_names_the_device_and_where_it_was_measured():
    text = card(
        device={
            "status": "not_run",
            "todo": "on the Jetson: dermedge build toy.dermedge --data DIR",
        }
    )
    assert "For `jetson-thor`: tensorrt, int8+fp16. Needs tensorrt>=10.13,<12." in text
    measured = "(1253 images, onnxruntime 1.32.0, Some CPU (avx2 avx512_vnni))"
    assert (
        f"- on the exporting machine: **passed**, measured on test split of clinic {measured}"
        in (text)
    )
    assert (
        "- on the device: **not_run**; to do on the Jetson: "
        "dermedge build toy.dermedge --data DIR\n" in text
    )
    assert "| top1_agreement | 1 | 0.9912 | 0.0088 | 0.02 | passed |" in text


def test_a_device_is_not_run_or_listed_with_its_engine_and_hardware():
    assert "- on the device: **not_run**\n" in card()
    text = card(
        device={"status": "passed", "engine": "onnxruntime 1.32.0", "hardware": "Some CPU (avx2)"}
    )
    assert "- on the device: **passed** (onnxruntime 1.32.0, Some CPU (avx2))\n" in text


def test_it_lists_the_calibration_images_and_the_layers_kept_in_fp32():
    seen = {"digest": "ab12" * 16, "split": "train", "count": 300}
    text = card(
        replace(ARTIFACT, details={"kept_fp32": ["/stem/Conv", "/head/Gemm"]}, calibration=seen)
    )
    assert "- calibration: 300 images of split train, digest ab12ab12ab12\n" in text
    assert "- layers kept in fp32: `/stem/Conv`, `/head/Gemm`\n" in text
    plain = card(replace(ARTIFACT, precision="fp16"))
    assert "- calibration: none; this precision needs none\n" in plain
    assert "- layers kept in fp32: none\n" in plain


def test_only_8_bit_results_depend_on_the_instruction_set():
    assert "differ between instruction sets" in card()
    assert "differ between instruction sets" in card(replace(ARTIFACT, precision="w8a8"))
    assert "differ between instruction sets" not in card(replace(ARTIFACT, precision="palettized"))


def test_it_states_how_the_model_abstains_and_which_labels_have_no_quantile():
    plain = card()
    assert "Conformal sets are not fitted." in plain
    assert "Out-of-distribution detection is not fitted." in plain
    labels = TOY_SPEC.task("diagnosis").labels
    quantiles = (*(0.8 for _ in labels[1:]), None)
    fitted = {
        **TOY_POSTPROCESSING,
        "diagnosis": Postprocessing(1.2, conformal=Conformal("aps", 0.95, quantiles)),
        "malignancy": Postprocessing(0.8, 0.25, rule_in=0.75),
    }
    text = model_card(TOY_SPEC, ARTIFACT, fitted, REPORT)
    assert "aps sets of 95 % coverage" in text
    assert "malignant from 0.7500" in text
    assert "Scores from 0.2500 to 0.7500 get the decision `refer`" in text
    assert f"19 validation images of each label; {labels[-1].id} has fewer" in text
    assert "Conformal sets are not fitted." not in text


def test_it_names_the_foreign_images_that_the_flag_was_fitted_on():
    ood = Task("ood", "ood")
    fitted = {**TOY_POSTPROCESSING, "ood": Postprocessing(ood_threshold=1.5)}

    def written(lineage: dict[str, object]) -> str:
        spec = replace(TOY_SPEC, tasks=(*TOY_SPEC.tasks, ood), lineage=lineage)
        return model_card(spec, ARTIFACT, fitted, REPORT)

    table = {"name": "clinic", "images": 300, "modalities": {"clinical": 290, "": 10}}
    text = written({"ood": {"drawn": 0, "tables": [table]}})
    assert "foreign images: 300 images of clinic (clinical and unknown).\n" in text
    assert "350 drawn images without skin, no photographs." in written(
        {"ood": {"drawn": 350, "tables": []}}
    )
    assert "The flag was fitted on" not in written({})
