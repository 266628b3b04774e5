"""Snippets of code that open an embedded bundle, one template per platform.

A template is a file of this folder in the language of the platform. It holds `{{key}}`
where a value of the bundle belongs.
"""

import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.printable import printable
from dermedge_runtime.spec import Spec

FOLDER = Path(__file__).parent
KEY = re.compile(r"\{\{(\w+)\}\}")


def render(template: str, bundle: Bundle, literals: Callable[[Spec], Mapping[str, str]]) -> str:
    """Return the text of a template, filled with the values of a bundle.

    Args:
        template: Name of a file in this folder.
        bundle: The bundle.
        literals: Function that returns the spec's values as literals of the template's
            language: `labels` and `use`.

    Example:
        >>> text = render("web.ts", Bundle.open("toy.dermedge"), typescript)
        >>> "export async function loadToy(" in text
        True
    """
    spec, artifact = bundle.spec, bundle.artifact
    values = {
        "name": spec.name,
        "version": printable(spec.version),
        "symbol": symbol(spec.name),
        "id": bundle.id,
        "size": str(spec.preprocess.size),
        "fit": spec.preprocess.fit,
        "format": printable(artifact.format),
        "artifact": artifact.path.rstrip("/"),
        "described": printable(f"{artifact.format} {artifact.precision}, target {artifact.target}"),
        "requires": printable(", ".join(artifact.requires)) or "nothing further",
        **literals(spec),
    }
    text = (FOLDER / template).read_text(encoding="utf-8")
    return KEY.sub(lambda match: values[match[1]], text)


def symbol(name: str) -> str:
    """Return a model's name as the name of a type: letters and digits, words capitalised.

    Example:
        >>> symbol("mobilenet-v4_small.2"), symbol("3d")
        ('MobilenetV4Small2', 'Model3d')
    """
    words = re.split(r"[^A-Za-z0-9]+", name)
    joined = "".join(word[:1].upper() + word[1:] for word in words)
    return joined if joined[:1].isalpha() else f"Model{joined}"


def kotlin(spec: Spec) -> dict[str, str]:
    """Return the spec's values as literals of Kotlin."""

    def text(value: str) -> str:
        return _quote(value, special='"\\$', escape=_utf16)

    tasks = [
        f"{text(task.name)} to listOf("
        + "".join(f"\n    {text(label.id)} to {text(label.name)}," for label in task.labels)
        + "\n),"
        for task in spec.tasks
        if task.labels
    ]
    return {"labels": _indent(tasks, 8), "use": text(spec.intended_use)}


def swift(spec: Spec) -> dict[str, str]:
    """Return the spec's values as literals of Swift."""

    def text(value: str) -> str:
        return _quote(value, special='"\\', escape=lambda letter: f"\\u{{{ord(letter):x}}}")

    tasks = [
        f"(name: {text(task.name)}, labels: ["
        + "".join(
            f"\n    (id: {text(label.id)}, name: {text(label.name)})," for label in task.labels
        )
        + ("\n])," if task.labels else "]),")
        for task in spec.tasks
    ]
    return {"tasks": _indent(tasks, 8), "use": text(spec.intended_use)}


def typescript(spec: Spec) -> dict[str, str]:
    """Return the spec's values as literals of TypeScript."""

    def text(value: str) -> str:
        return _quote(value, special='"\\', escape=_utf16)

    tasks = [
        f"{text(task.name)}: ["
        + "".join(
            f"\n  {{ id: {text(label.id)}, name: {text(label.name)} }}," for label in task.labels
        )
        + "\n],"
        for task in spec.tasks
        if task.labels
    ]
    return {"labels": _indent(tasks, 2), "use": text(spec.intended_use)}


def _quote(text: str, special: str, escape: Callable[[str], str]) -> str:
    """Return a string literal in ASCII, so that no letter can reorder the code.

    Args:
        text: The text.
        special: Letters that need a backslash.
        escape: Function that writes a letter outside printable ASCII.
    """
    letters = (
        f"\\{letter}" if letter in special else letter if " " <= letter <= "~" else escape(letter)
        for letter in text
    )
    return f'"{"".join(letters)}"'


def _utf16(letter: str) -> str:
    r"""Return a letter as one or two escapes `\uXXXX`."""
    digits = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{digits[i : i + 4]}" for i in range(0, len(digits), 4))


def _indent(blocks: list[str], columns: int) -> str:
    return textwrap.indent("\n".join(blocks), " " * columns).lstrip()
