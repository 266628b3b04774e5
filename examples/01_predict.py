"""Run a bundle on images, one by one and as a stream.

python examples/01_predict.py runs/demo/demo-cpu.dermedge IMAGE...

It needs only `pip install 'dermedge[onnxruntime]'`.
"""

import sys

import dermedge


def main(path: str, images: list[str]) -> None:
    report = dermedge.verify(path)
    print(f"verify on {report.engine}: {report.status}")

    with dermedge.load(path) as model:
        first = model.predict(images[0])
        label = first.labels[0]
        print(f"{images[0]}: {label.name} with probability {label.probability:.3f}")
        if first.decision is not None:
            score, threshold = first.malignancy, first.threshold
            print(f"malignancy {score:.3f}, threshold {threshold:.3f}: {first.decision}")

        # A stream keeps the order of the images, and decodes the next ones while the
        # engine computes. With `on_error="return"`, it continues after a damaged image.
        predictions = model.stream(images, on_error="return")
        for image, prediction in zip(images, predictions, strict=True):
            if isinstance(prediction, dermedge.ImageError):
                print(f"{image}: {prediction}")
            else:
                milliseconds = prediction.timing.engine_ms
                print(f"{image}: {prediction.labels[0].id}, {milliseconds:.1f} ms in the engine")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
