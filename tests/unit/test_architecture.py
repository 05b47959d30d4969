"""The shape of the package, held by tests: which part may import which, what stays light, and how large things get."""

import ast
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import tunesmith

ROOT = Path(__file__).parents[2]
PACKAGE = Path(tunesmith.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text("utf-8")) for file in FILES}
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
HEAVY = [*SETTINGS["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"], "tokenizers"]
TORCH_PACKAGES = ("tunesmith.engine", "tunesmith.generation")

# layer -> its height; siblings (written with |) are as high as one another
LAYERS = {
    part.strip(): height
    for height, layer in enumerate(reversed(SETTINGS["importlinter"]["contracts"][0]["layers"]))
    for part in layer.split("|")
}

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> str:
    return ".".join(module.split(".")[:2])


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Yield every module that *nodes* import; of ``from a import b`` both ``a`` and ``a.b``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when a module is imported: no function bodies, nothing for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from at_import(child)


# --- which part may import which


@each_file
def test_imports_point_one_way(file):
    """Imports inside functions and for type checkers count too."""
    here = layer(module_name(file))
    if here not in LAYERS:
        pytest.skip("the package itself")
    others = {layer(name) for name in imports(ast.walk(TREES[file])) if name.startswith("tunesmith.")} & set(LAYERS)
    upwards = {other for other in others if other != here and LAYERS[other] >= LAYERS[here]}

    assert upwards == set()


def test_every_package_has_its_layer():
    packages = {layer(module_name(file)) for file in FILES if file.parent != PACKAGE}

    assert packages == set(LAYERS)


def test_modules_do_not_import_one_another_in_circles():
    names = {module_name(file) for file in FILES}
    graph = {module_name(file): {name for name in imports(at_import(TREES[file])) if name in names} for file in FILES}
    for name, needed in graph.items():
        needed.discard(name)
        # a module of a package that re-exports it does not wait for the package
        needed -= {parent for parent in needed if name.startswith(f"{parent}.")}

    assert len(list(TopologicalSorter(graph).static_order())) >= len(names)


def test_the_import_linter_agrees():
    done = subprocess.run(
        [shutil.which("lint-imports", path=Path(sys.executable).parent), "--no-cache", "--no-logo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


# --- what stays light


def test_all_but_the_engine_is_imported_without_heavy_libraries():
    """Reading a recipe, help and plan work on a machine that has none of them."""
    modules = [module_name(file) for file in FILES if file.name != "__main__.py"]
    code = f"""
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
for name in {modules}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(name, error.name)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    needs_torch = {line.partition(" ")[0] for line in out.splitlines()}

    assert {name for name in needs_torch if not name.startswith(TORCH_PACKAGES)} == set()
    assert "tunesmith.engine.loop" in needs_torch  # or nothing was blocked


@each_file
def test_the_environment_is_read_in_one_place(file):
    if file == PACKAGE / "core" / "settings.py":
        pytest.skip("the place")
    readers = [
        ast.unparse(node)
        for node in ast.walk(TREES[file])
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv")
    ]

    assert readers == []


# --- how large things get, and how they are written


@each_file
def test_files_and_functions_stay_small(file):
    """Budget: 400 lines a file, 60 lines a function; the usual one is far below."""
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(TREES[file])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60
    ]

    assert len(file.read_text("utf-8").splitlines()) <= 400
    assert long == []


@each_file
def test_everything_public_says_what_it_is(file):
    """Methods are exempt: a plug-in's are described in its contract."""
    public = [node for node in ast.walk(TREES[file]) if isinstance(node, ast.ClassDef)]
    public += [node for node in TREES[file].body if isinstance(node, ast.FunctionDef)]
    silent = [node.name for node in public if not node.name.startswith("_") and not ast.get_docstring(node)]

    assert ast.get_docstring(TREES[file])
    assert silent == []


@each_file
def test_an_error_nobody_thought_of_is_not_swallowed(file):
    """``except Exception`` only to clean up and raise again."""
    swallowing = [
        f"line {node.lineno}"
        for node in ast.walk(TREES[file])
        if isinstance(node, ast.ExceptHandler) and is_broad(node) and ast.unparse(node.body[-1]) != "raise"
    ]

    assert swallowing == []


def is_broad(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds)


@each_file
def test_no_module_is_a_drawer_for_everything(file):
    assert not {"utils", "util", "helpers", "common", "misc", "extras"} & {
        part.strip("_") for part in (*file.parts, file.stem)
    }
