"""Functions, classes and parameter lists stay small, and names are unique; a comment explains exceptions."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import poller

ROOT = Path(poller.__file__).parent
FILES = [file for file in sorted(ROOT.rglob("*.py")) if "migrations" not in file.parts]
LINES, METHODS, PARAMETERS = 40, 20, 6
Function = ast.FunctionDef | ast.AsyncFunctionDef


def nodes(file: Path) -> Iterator[Function | ast.ClassDef]:
    """Yield the functions and classes without an excusing comment on their first line."""
    text = file.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function | ast.ClassDef):
            _, _, why = lines[node.lineno - 1].partition("  # ")
            if not why or why.startswith("noqa"):
                yield node


def size(node: Function | ast.ClassDef) -> str | None:
    """Say what is too large about it."""
    if isinstance(node, ast.ClassDef):
        methods = sum(isinstance(one, Function) for one in node.body)
        return f"{methods} methods" if methods > METHODS else None
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    parameters = sum(one.arg not in ("self", "cls") for one in given)
    lines = (node.end_lineno or 0) - node.lineno + 1
    if lines > LINES:
        return f"{lines} lines"
    return f"{parameters} parameters" if parameters > PARAMETERS else None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_code_larger_than_the_rules_allow_says_why(file: Path) -> None:
    assert [(node.name, large) for node in nodes(file) if (large := size(node))] == []


def test_no_class_and_no_module_name_is_used_twice() -> None:
    places = defaultdict(list)
    for file in FILES:
        if not file.name.startswith("__"):
            places[file.stem].append(file)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(file)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_the_rules_find_what_breaks_them(tmp_path: Path) -> None:
    long = "def long():\n" + "    pass\n" * LINES
    wide = f"def wide({', '.join(f'a{n}' for n in range(PARAMETERS + 1))}): ...\n"
    many = "class Many:\n" + "".join(f"    def m{n}(self): ...\n" for n in range(METHODS + 1))
    excused = "def excused(  # a table of seven columns\n    a, b, c, d, e, f, g): ...\n"
    file = tmp_path / "large.py"
    silenced = "def silenced(a, b, c, d, e, f, g): ...  # noqa: ANN001\n"
    file.write_text(long + wide + many + excused + silenced)
    found = [node.name for node in nodes(file) if size(node)]
    assert found == ["long", "wide", "Many", "silenced"]
