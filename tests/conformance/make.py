"""Write the conformance folder: run `PYTHONPATH=tests python -m conformance.make`.

Each runtime, in any language, must give the results that this folder lists. README.md
says how to use it and how to add a case.
"""

from conformance.bundle_cases import bundle_files
from conformance.decode_cases import decode_files
from conformance.image_cases import image_files
from conformance.json_cases import json_files
from conformance.prediction_cases import prediction_files
from conformance.quality_cases import quality_files
from conformance.resize_cases import resize_files
from conformance.verify_cases import verify_files
from conformance.writing import FOLDER, Files

SOURCES = (".py", ".md", ".pyc")


def make() -> Files:
    """Return every generated file by its path in this folder."""
    images = image_files()
    return {
        **images,
        **resize_files(),
        **quality_files(images),
        **json_files(),
        **decode_files(),
        **bundle_files(),
        **verify_files(),
        **prediction_files(images),
    }


def existing() -> Files:
    """Return every committed file that is not source."""
    return {
        path.relative_to(FOLDER).as_posix(): path.read_bytes()
        for path in FOLDER.rglob("*")
        if path.is_file() and path.suffix not in SOURCES
    }


def main() -> None:
    """Write what changed, and delete what is no longer listed."""
    files, old = make(), existing()
    for path in old.keys() - files.keys():
        (FOLDER / path).unlink()
    for path, data in files.items():
        if old.get(path) != data:
            target = FOLDER / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            print(f"wrote {path}, {len(data)} bytes")
    print(f"{len(files)} files, {sum(map(len, files.values()))} bytes")


if __name__ == "__main__":
    main()
