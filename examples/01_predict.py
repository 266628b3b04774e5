"""Ask a bundle about images, one by one and as a stream. Needs only `pip install 'dermedge[onnxruntime]'`.

python examples/01_predict.py runs/demo/demo-cpu.dermedge IMAGE...
"""

import sys

import dermedge


def main(path: str, images: list[str]) -> None:
    report = dermedge.verify(path)
    print(f"verify on {report.engine}: {report.status}")

    with dermedge.load(path) as model:
        first = model.predict(images[0])
        print(
            f"{images[0]}: {first.labels[0].name} with probability {first.labels[0].probability:.3f}"
        )
        if first.decision is not None:
            print(
                f"malignancy {first.malignancy:.3f}, threshold {first.threshold:.3f}: {first.decision}"
            )

        # A stream keeps the order and decodes the next images while the engine works; a bad one does not end it.
        for image, answer in zip(images, model.stream(images, on_error="return"), strict=True):
            if isinstance(answer, dermedge.ImageError):
                print(f"{image}: {answer}")
            else:
                print(
                    f"{image}: {answer.labels[0].id}, {answer.timing.engine_ms:.1f} ms in the engine"
                )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
