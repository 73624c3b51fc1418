"""Rules of the whole project."""

import ast
import importlib
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from pyflannel import VERSION, errors
from testlab.console import command_blocks
from testlab.fault_table import fault_rows

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
GENERATED = ("_pb2.py", "_grpc.py")

NAMELESS = {"base", "common", "helper", "helpers", "manager", "misc", "tools", "util", "utils"}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if not path.name.endswith(GENERATED))


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def prose(document: Path) -> str:
    """Return the document without its code blocks."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_every_module_can_be_imported_and_has_a_docstring(path: Path) -> None:
    if path.stem == "top_screen":
        pytest.importorskip("textual", reason="the extra top is not installed")

    module = importlib.import_module(module_name(path))

    assert module.__doc__


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("__init__.py")), ids=module_name)
def test_a_package_holds_a_docstring_and_no_code(path: Path) -> None:
    """The only exception is the version of the project, in its root package."""
    body = ast.parse(path.read_text()).body
    version = [ast.Assign, ast.Expr] if path.parent.name == "pyflannel" else []

    assert [type(statement) for statement in body] == [ast.Expr, *version]


def test_no_module_has_a_name_without_a_subject() -> None:
    """A module such as `utils` does not show the subject of the module."""
    assert [path for path in sources() if path.stem in NAMELESS] == []


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                yield from (name.name.partition(".")[0] for name in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module.partition(".")[0]
            case ast.ImportFrom(level=level) if level:
                yield "(a relative import)"


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}


def test_the_package_imports_exactly_its_declared_dependencies() -> None:
    """The declared dependencies include the dependencies of the extra `top`."""
    pytest.importorskip("textual", reason="the extra top is not installed")
    run = names(project()["project"]["dependencies"] + project()["project"]["optional-dependencies"]["top"])
    distributions = packages_distributions()

    foreign, used = set(), set()
    for path in SOURCE.rglob("*.py"):
        for name in set(imported(path)) - sys.stdlib_module_names - {"pyflannel"}:
            providers = run & {one.replace("_", "-") for one in distributions.get(name, [])}
            used |= providers
            if not providers:
                foreign.add(f"{name} in {path.relative_to(ROOT)}")

    assert foreign == set()
    assert run - used == set()


def test_every_dependency_has_a_reason() -> None:
    requirements = [
        *project()["project"]["dependencies"],
        *project()["project"]["optional-dependencies"]["top"],
        *project()["project"]["optional-dependencies"]["dev"],
    ]
    text = (ROOT / "pyproject.toml").read_text()

    assert [item for item in requirements if not re.search(rf'"{re.escape(item)}", +# \w', text)] == []


def test_every_command_that_is_installed_exists() -> None:
    for target in project()["project"]["scripts"].values():
        module, function = target.split(":")

        assert callable(getattr(importlib.import_module(module), function)), target


def test_the_drawing_of_the_errors_shows_each_of_them() -> None:
    raised = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)
    }
    drawn = set(re.findall(r"\b(\w+Error)\b", errors.__doc__ or ""))

    assert drawn == raised


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").iterdir()), ids=lambda path: path.name)
def test_a_script_is_executable_and_begins_with_its_purpose(script: Path) -> None:
    first, second = script.read_text().splitlines()[:2]

    assert script.stat().st_mode & 0o111
    assert first.startswith("#!/usr/bin/env ")
    assert re.match(r"# [A-Z]|\"\"\"[A-Z]", second)


def test_every_golden_file_is_used() -> None:
    """Golden data that no test reads has no effect."""
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))

    unused = [path.name for path in (ROOT / "tests/golden").glob("*.json") if path.stem not in tests]

    assert unused == []


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_links_of_a_document_exist(document: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", prose(document)) if "://" not in link]

    assert [link for link in links if not (document.parent / link).exists()] == []


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document: its headings, as GitHub spells them, and its `<a id="…">`."""
    text = prose(document)
    headings = (
        re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    )
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)"', text))


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_anchor_that_a_document_links_to_exists(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", prose(document))

    assert [
        f"{path}#{anchor}"
        for path, anchor in links
        if anchor not in anchors(document.parent / path if path else document)
    ] == []


def test_every_module_that_the_source_names_exists() -> None:
    """The names are in backticks, in a docstring or a comment, such as `plan.lease.answers`."""
    rooms = "|".join(path.name for path in (SOURCE / "pyflannel").iterdir() if path.is_dir())
    named = re.compile(rf"`((?:{rooms})(?:\.\w+)+)`")
    names = {name for path in sources() for name in named.findall(path.read_text())}

    assert names
    assert [name for name in sorted(names) if not is_importable(f"pyflannel.{name}")] == []


def is_importable(name: str) -> bool:
    """Return whether a dotted name names a module, or an object in a module."""
    room, _, last = name.rpartition(".")
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return hasattr(importlib.import_module(room), last)


@pytest.mark.parametrize(
    "document",
    [path for path in documents() if path.parent.name != "decisions"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    """A decision is an exception, because it records the files of its time."""
    named = re.findall(r"`((?:src|tests|scripts|docs|deploy)/[\w./-]+)[`: ]", prose(document))

    assert [name for name in named if not (ROOT / name).exists()] == []


def definitions(path: Path) -> set[str]:
    """Return the names of the functions and classes of a file, methods as `Class.method`."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            functions = (one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{one.name}" for one in functions}
    return found


def test_every_function_that_the_architecture_names_exists() -> None:
    """The page follows events through the code, and would mislead with a name that no longer exists."""
    named = re.findall(r"`(src/[\w./-]+\.py):([\w.]+)`", prose(ROOT / "ARCHITECTURE.md"))

    assert len(named) > 20
    assert [f"{path}:{name}" for path, name in named if name not in definitions(ROOT / path)] == []


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/reliability.md"])
def test_every_test_that_proves_a_guarantee_exists(page: str) -> None:
    """A name may be cut at its start or its end by an ellipsis."""
    text = (ROOT / page).read_text()
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    tests = sorted({name for source in sources for name in re.findall(r"def (test_\w+)", source)})
    files = set(re.findall(r"`(tests/[\w./]+)(?:::[\w:…]+)?`", text))
    named = set(re.findall(r"[`:]((?:test_|…)[a-z0-9_…]+)`", text))

    assert len(files) > 20
    assert [name for name in sorted(files) if not (ROOT / name).exists()] == []
    assert [
        name
        for name in sorted(named)
        if not any(re.fullmatch(re.escape(name).replace("…", ".*"), test) for test in tests)
    ] == []


def test_the_readme_connects_container_engines_as_the_guides() -> None:
    """Each container engine needs at most three commands. tests/runtimes runs the commands of the guides."""
    section = (ROOT / "README.md").read_text().partition("## Connect a container engine\n")[2]
    blocks = re.findall(r"^```(yaml)?\n(.*?)^```", section.partition("\n## ")[0], re.DOTALL | re.MULTILINE)
    guides = "".join(
        (ROOT / f"docs/guides/{name}.md").read_text() for name in ("docker-plugin", "compose", "cni")
    )

    assert len(blocks) == 6
    assert [block for _, block in blocks if not all(line in guides for line in block.splitlines())] == []
    assert [block for kind, block in blocks if not kind and len(block.splitlines()) > 3] == []


def test_every_fault_of_the_table_has_its_test() -> None:
    """The tests read their limits from docs/reliability.md. A row without a test would be unproven."""
    tests = "".join(path.read_text() for path in sorted((ROOT / "tests/faults").glob("test_*.py")))

    assert set(re.findall(r'mark\.fault\("([^"]+)"\)', tests)) == set(fault_rows())


@pytest.mark.parametrize(
    "record", sorted((ROOT / "docs/decisions").glob("0*.md")), ids=lambda path: path.stem
)
def test_a_decision_lists_its_costs_and_the_signs_of_a_wrong_decision(record: Path) -> None:
    headings = re.findall(r"^## (.+)$", record.read_text(), flags=re.MULTILINE)

    assert headings == ["Context", "Decision", "Costs", "Signs of a wrong decision"]


def test_each_task_of_kubernetes_needs_at_most_three_commands() -> None:
    blocks = command_blocks("README.md", "Kubernetes")

    assert len(blocks) >= 10
    assert [block for block in blocks if len(block.splitlines()) > 3] == []
    named = re.findall(r"(?:deploy|scripts)/\S+", "".join(blocks))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)

    assert versions[0] == VERSION
