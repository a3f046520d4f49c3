"""The picture of imports: no circle, few floors, no room that reaches above itself. Read from the source alone."""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vision_reference", "fairseq_plugins", "scripts")
FLOORS = 6
AT_THE_TOP = 18
NO_FAIRSEQ = ("losses/*.py", "errors.py", "files.py", "teachers/store.py")
ROOMS = sorted(
    str(path.parent.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).glob("*/**/__init__.py")
)


@cache
def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name; a folder's is that of its ``__init__``."""
    paths = sorted((ROOT / package).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


MODULES = {name: path for package in PACKAGES for name, path in modules(package).items()}


def import_statements(statements: Iterable[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Those that run when the module is imported: not the ones in functions, nor those for type checkers."""
    for statement in statements:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield statement
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" not in ast.unparse(statement.test):
            yield from import_statements(statement.body + statement.orelse)
        elif isinstance(statement, ast.Try | ast.With):
            yield from import_statements(statement.body)


@cache
def imported(name: str, *, deferred: bool) -> set[str]:
    """Dotted names of what a module imports: modules of the project as such, others as they are written."""
    path = MODULES[name]
    tree = ast.parse(path.read_text())
    found = ast.walk(tree) if deferred else import_statements(tree.body)
    folder = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    names = set()
    for statement in found:
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            above = folder[: len(folder) - statement.level + 1] if statement.level else []
            base = ".".join([*above, *filter(None, [statement.module])])
            full = {alias.name: f"{base}.{alias.name}" for alias in statement.names}
            names |= {whole if whole in MODULES else base for whole in full.values()}
    return names - {name}


def longest_chains(graph: dict[str, set[str]]) -> dict[str, list[str]]:
    """The longest chain of imports that begins with each module. Raises AssertionError for a circle."""
    chains: dict[str, list[str]] = {}

    def chain(name: str, above: tuple[str, ...] = ()) -> list[str]:
        assert name not in above, f"a circle of imports: {' > '.join((*above, name))}"
        if name not in chains:
            below = [chain(other, (*above, name)) for other in sorted(graph[name])]
            chains[name] = [name, *max(below, key=len, default=[])]
        return chains[name]

    for name in graph:
        chain(name)
    return chains


def graph_of(package: str, *, deferred: bool) -> dict[str, set[str]]:
    own = modules(package)
    return {name: imported(name, deferred=deferred) & own.keys() for name in own}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_stand_on_few_floors(package):
    """Of each package's own modules; what a command imports after its arguments are parsed is no floor."""
    highest = max(longest_chains(graph_of(package, deferred=False)).values(), key=len)
    assert len(highest) <= FLOORS, " > ".join(highest)


def test_imports_form_no_circle_even_with_those_in_functions():
    longest_chains({name: imported(name, deferred=True) & MODULES.keys() for name in MODULES})


def test_a_circle_and_a_seventh_floor_would_be_seen():
    with pytest.raises(AssertionError, match="a > b > a"):
        longest_chains({"a": {"b"}, "b": {"a"}})
    tower = {str(floor): {str(floor - 1)} if floor else set() for floor in range(7)}
    assert longest_chains(tower)["6"] == list("6543210")
    assert imported("vision_reference.train", deferred=False) >= {"vision_reference.data", "torch", "numpy"}
    assert "fairseq_plugins.errors" in imported("fairseq_plugins.teachers.stored", deferred=False)


def test_the_top_of_the_image_half_can_be_taken_in_at_a_glance():
    assert len(list((ROOT / "vision_reference").glob("*.py"))) <= AT_THE_TOP


def may_import(room: str) -> list[str]:
    """What the docstring of a room's ``__init__`` allows besides the room itself: names in backticks."""
    text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())) or ""
    sentences = re.findall(r"\b[Ii]mports (.+?)(?:\.\s|\.$)", text, re.DOTALL)
    assert sentences, f"the docstring of {room} does not say what it may import"
    return re.findall(r"`([\w.]+)`", sentences[-1])


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_its_docstring_allows(room):
    package, _, own = room.replace("/", ".").partition(".")
    allowed = [own, *may_import(room)]
    for name, path in MODULES.items():
        if str(path.parent.relative_to(ROOT)) != room:
            continue
        for other in imported(name, deferred=True) & modules(package).keys() - {package}:
            inside = other.removeprefix(f"{package}.")
            assert any(f"{inside}.".startswith(f"{prefix}.") for prefix in allowed), f"{name} imports {other}"


@pytest.mark.parametrize("half", ["vision_reference", "fairseq_plugins"])
def test_neither_half_imports_the_other_or_the_scripts(half):
    for name in modules(half):
        outside = {other for other in imported(name, deferred=True) if other.split(".")[0] in PACKAGES}
        assert {other.split(".")[0] for other in outside} <= {half}, name


def test_losses_and_the_format_of_stores_need_no_fairseq():
    without = {path for pattern in NO_FAIRSEQ for path in (ROOT / "fairseq_plugins").glob(pattern)}
    names = [name for name, path in MODULES.items() if path in without]
    assert len(names) > 6
    for name in names:
        assert "fairseq" not in {other.split(".")[0] for other in imported(name, deferred=True)}, name
