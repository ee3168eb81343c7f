"""The house: few modules at the top, imports one way, facades that only re-export, random streams with a purpose."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "latent_mixup"
FLOORS = (  # each room may use its own floor and those below; a room that is not here only must not close a circle
    ("cli", "__main__"),
    ("fitting",),
    ("demo", "quality"),
    ("pool", "inversion", "training", "integrations"),
    ("augment", "losses", "encoders"),
    ("policies", "bank"),
    ("generators",),
    ("networks", "cards"),
    ("hub",),
    ("files", "runs"),
    ("images", "labels", "sampling", "interpolation", "functional"),
)
FLOOR = {room: len(FLOORS) - place for place, rooms in enumerate(FLOORS) for room in rooms}
STRANGERS = {("augment", "inversion"), ("inversion", "augment")}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def located(module: str) -> Path | None:
    """The file of a dotted module of the package; None: it is no such module."""
    path = ROOT / Path(*module.split("."))
    found = [each for each in (path / "__init__.py", path.with_suffix(".py")) if each.is_file()]
    return found[0] if found and module.split(".")[0] == "latent_mixup" else None


def exported(facade: Path) -> dict[str, Path]:
    """Name => file that defines it, of a package's ``__init__.py``."""
    return {
        alias.asname or alias.name: target
        for node in ast.walk(tree(facade))
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        for target in reached(node.module, alias.name)
    }


def reached(module: str, imported: str) -> Iterator[Path]:
    """The file that ``from module import imported`` reaches, through facades."""
    if path := located(f"{module}.{imported}"):
        yield path
    elif path := located(module):
        seen_through = exported(path).get(imported) if path.name == "__init__.py" else None
        yield seen_through or path


@cache
def imports(path: Path) -> frozenset[Path]:
    """Files of the package that a file imports: at its top, inside functions, or for types alone."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {target for alias in node.names for target in reached(node.module, alias.name)}
        elif isinstance(node, ast.Import):
            found |= {target for alias in node.names if (target := located(alias.name))}
    return frozenset(found - {path})


MODULES = [path for path in files(PACKAGE) if path.name != "__init__.py"]
FACADES = [path for path in files(PACKAGE) if path.name == "__init__.py"]


def test_at_most_14_modules_lie_at_the_top():
    loose = [path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]
    assert len(loose) <= 14, loose


def test_imports_point_one_way():
    wrong = [
        f"{name(path)} imports {name(target)}"
        for path in MODULES
        for target in sorted(imports(path))
        if FLOOR.get(room(path), 99) < FLOOR.get(room(target), 0) or (room(path), room(target)) in STRANGERS
    ]
    assert not wrong, "\n".join(wrong)


def test_there_is_no_circle_of_files():
    state: dict[Path, bool] = {}  # False: being looked at

    def look(path: Path, way: list[Path]) -> None:
        state[path] = False
        for target in sorted(imports(path)):
            if state.get(target) is False:
                circle = [*way[way.index(target) :], target]
                pytest.fail("a circle: " + " imports ".join(map(name, circle)))
            if target not in state:
                look(target, [*way, target])
        state[path] = True

    for path in MODULES:
        if path not in state:
            look(path, [path])


@pytest.mark.parametrize("facade", FACADES, ids=name)
def test_a_facade_only_re_exports(facade):
    lazily = {"__getattr__", "__dir__"}
    for node in tree(facade).body:
        documented = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assigned = isinstance(node, ast.Assign) and all(target.id.startswith("__") for target in node.targets)
        lazy = (isinstance(node, ast.FunctionDef) and node.name in lazily) or isinstance(node, ast.If)
        imported = isinstance(node, ast.Import | ast.ImportFrom)
        assert documented or assigned or lazy or imported, f"{name(facade)}, line {node.lineno}"


def test_no_two_purposes_share_a_random_stream():
    """Every key begins with a word that is written out, and one word stands in one place."""
    places, wrong = defaultdict(list), []
    for path in files(PACKAGE) + files(ROOT / "benchmarks"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "keyed_generator":
                word = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
                if isinstance(word, str):
                    places[word].append(f"{name(path)}, line {node.lineno}")
                else:
                    wrong.append(f"{name(path)}, line {node.lineno}: no word first")
    assert not wrong, "\n".join(wrong)
    shared = {word: found for word, found in places.items() if len(found) > 1}
    assert not shared, "\n".join(f"{word!r}: {'; '.join(found)}" for word, found in shared.items())


def test_nothing_is_unpickled():
    """``SECURITY.md`` says so: no unpickling, ``torch.load`` of weights alone, arrays of numbers alone."""
    wrong = []
    for path in files(PACKAGE):
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            said = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if (
                re.match(r"(pickle|marshal|shelve|joblib|dill)\.(load|loads|open|Unpickler)$", called)
                or (called == "torch.load" and said.get("weights_only") != "True")
                or (called == "np.load" and said.get("allow_pickle") != "False")
                or said.get("allow_pickle") == "True"
            ):
                wrong.append(f"{name(path)}, line {node.lineno}: {called}")
    assert not wrong, "\n".join(wrong)


def test_test_files_have_names_of_their_own():
    """Tests are imported by their file's name alone: two of one name in two folders cannot both be."""
    counts = Counter(path.name for path in files(ROOT / "tests") if path.name.startswith("test_"))
    assert max(counts.values()) == 1, counts.most_common(1)
