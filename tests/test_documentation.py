"""The documentation names commands, options, functions and files that exist."""

import ast
import re
import shlex
from dataclasses import fields
from pathlib import Path

import click
import pytest

import dermedge
from dermedge.cli import cli
from dermedge.evaluation.report import CorruptionScores, EvaluationReport, Robustness

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
    if path.name != "CHANGELOG.md"
)
PACKAGES = {
    "dermedge_export": "export/dermedge_export",
    "dermedge_runtime": "runtimes/python/dermedge_runtime",
}


def blocks(text: str, language: str = "") -> list[str]:
    """Return the fenced code blocks of a language, and for none also the indented ones."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found = [code for name, code in fenced if name == language]
    if not language:
        outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        found += re.findall(r"(?:^ {4,}\S.*\n)+", outside, re.MULTILINE)
    return found


def command_lines(page: Path) -> list[str]:
    """Return every `dermedge ...` of a page: in code blocks, and in the text between backticks."""
    text = page.read_text(encoding="utf-8")
    code = "\n".join(blocks(text)).replace("\\\n", " ")
    lines = [line.split("#")[0].strip() for line in code.splitlines()]
    inline = re.findall(r"`(dermedge [^`]+)`", text)
    lines = [re.sub(r"^\S*bin/(?=dermedge )", "", line) for line in lines]
    return [line for line in [*lines, *inline] if re.match(r"dermedge [a-z]", line)]


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that some words name, and the words after it."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"no command {words[0]!r}"
        command, words = found, words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_and_their_options_exist(page: Path) -> None:
    for line in command_lines(page):
        words = shlex.split(line)[1:]
        if "|" in words[0]:
            continue
        command, rest = resolve(words)
        known = {opt for parameter in command.params for opt in parameter.opts}
        known |= {opt for parameter in command.params for opt in parameter.secondary_opts}
        used = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert used <= known | {"--help", "--version"}, f"{line}: {used - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not re.match(r"\w+:", target):
            assert (page.parent / target).exists(), target


def test_the_python_of_the_readme_uses_names_that_exist() -> None:
    (code,) = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    names = set(re.findall(r"\bdermedge\.(\w+)", code))
    assert {"run", "load", "verify"} <= names
    assert all(hasattr(dermedge, name) for name in names)
    ast.parse(code)


def test_the_commands_of_the_readme_are_found() -> None:
    found = {line.split()[1] for line in command_lines(ROOT / "README.md")}
    assert {"demo", "predict", "data", "run", "export", "doctor", "targets"} <= found


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_modules_of_the_glossary_exist() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    modules = re.findall(r"\| `(dermedge\w*/[\w./]+)`", text)
    assert len(modules) > 40
    for module in modules:
        package, _, rest = module.partition("/")
        assert (ROOT / PACKAGES.get(package, package) / rest).exists(), module


def test_every_term_of_the_glossary_is_defined_once() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^\| \*\*([\w -]+)\*\*", text, re.MULTILINE)
    assert len(terms) == len(set(terms)) > 40


def test_the_keys_of_an_evaluation_are_documented() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?`) \|", text, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    types = (EvaluationReport, Robustness, CorruptionScores)
    assert documented == {field.name for each in types for field in fields(each)}
