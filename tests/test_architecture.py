"""The import rules of the house, and its budgets. A change that breaks one is a change of
architecture: change the rule here and say why, or mend the import."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSES = ("vltrain", "stages", "launch", "data_recipes")
FILES = sorted(p for house in HOUSES for p in (ROOT / house).rglob("*.py"))

# Layers from the bottom up. A module may import from its own package and from lower layers only;
# two packages of one layer never import each other.
LAYERS: list[set[str]] = [
    {"vltrain.errors", "vltrain.redact"},
    {"vltrain.batch", "vltrain.distributed", "vltrain.logs", "vltrain.step_lines"},
    {"vltrain.processing"},
    {"vltrain.data", "vltrain.models", "vltrain.optim", "vltrain.metrics"},
    {"vltrain.engine"},
    {"vltrain.checkpoint"},
    {"vltrain.train", "vltrain.evaluate"},
    {"vltrain.inspection"},
    {"vltrain.runconfig"},
    {"vltrain.assemble"},
    {"stages"},
    {"launch"},
]
# Who may import a library at all: module prefixes (a trailing name allows just that module).
LIBRARIES = {
    "hydra": ("vltrain.runconfig", "launch"),
    "omegaconf": ("vltrain.runconfig", "launch"),
    "deepspeed": ("vltrain.engine",),
    "wandb": ("vltrain.metrics",),
    "webdataset": ("vltrain.data",),
    "fsspec": ("vltrain.data",),
    "aiohttp": ("vltrain.data",),
    "transformers": ("vltrain.models", "vltrain.processing", "vltrain.checkpoint"),
    "datasets": ("data_recipes",),
}
RECIPES_MAY_IMPORT = (
    "vltrain.data.writer",
    "vltrain.data.layout",
    "vltrain.batch",
    "vltrain.errors",
    "data_recipes",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of every import, in functions too; ``from a import b`` gives ``a.b``."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def layer_of(name: str) -> tuple[int, str] | None:
    """(height, package) of a dotted name; None for what is not ours."""
    for height, packages in enumerate(LAYERS):
        for package in packages:
            if name == package or name.startswith(package + "."):
                return height, package
    return None


def inside(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in prefixes)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down_only(path: Path) -> None:
    module = module_name(path)
    if module.startswith("data_recipes"):
        return
    own = layer_of(module)
    if module in ("vltrain", "vltrain.plan"):
        return
    assert own is not None, f"{module} has no layer: add its package to LAYERS"
    for line, name in imports(path):
        target = layer_of(name)
        if target is None or target[1] == own[1]:
            continue
        assert target[0] < own[0], f"{path}:{line}: {module} must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_libraries_stay_where_they_belong(path: Path) -> None:
    module = module_name(path)
    for line, name in imports(path):
        library = name.split(".")[0]
        if library not in LIBRARIES or inside(module, LIBRARIES[library]):
            continue
        if name == "omegaconf.MISSING" and path.name == "config.py":
            continue
        if library == "transformers" and name.startswith("transformers.integrations"):
            assert inside(module, ("vltrain.engine",)), f"{path}:{line}: {module} imports {name}"
            continue
        pytest.fail(f"{path}:{line}: {module} imports {name}; only {LIBRARIES[library]} may")


@pytest.mark.parametrize("path", sorted((ROOT / "data_recipes").glob("*.py")), ids=module_name)
def test_recipes_see_only_writer_layout_and_batch(path: Path) -> None:
    for line, name in imports(path):
        if layer_of(name) is not None:
            assert inside(name, RECIPES_MAY_IMPORT), f"{path}:{line}: a recipe imports {name}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_budgets(path: Path) -> None:
    """A file has at most 400 lines, a function at most 80."""
    text = path.read_text(encoding="utf8")
    assert text.count("\n") <= 400, f"{path} is too long: does it hold two things?"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 80, f"{path}:{node.lineno}: {node.name} has {length} lines"


def test_no_script_shadows_a_module() -> None:
    """A script's folder is first on the import path, so launch/inspect.py would shadow the standard
    library's inspect."""
    import importlib.machinery
    import sys

    for script in (ROOT / "launch").glob("*.py"):
        assert script.stem not in sys.stdlib_module_names, script
        others = [p for p in sys.path if Path(p).resolve() != ROOT / "launch"]
        spec = importlib.machinery.PathFinder.find_spec(script.stem, others)
        # A folder without code (a namespace) is no module: tests/train, say.
        assert spec is None or spec.loader is None, f"{script} shadows {spec}"


def test_no_stage_is_tested_by_name() -> None:
    """Stages are values: nothing branches on which one it is."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.Compare):
                left = ast.unparse(node.left)
                assert left.split(".")[-2:] not in (["stage", "number"], ["stage", "name"]), (
                    f"{path}:{node.lineno}: {ast.unparse(node)}"
                )


CAN_EXECUTE = {
    *("torch.load", "pickle.load", "pickle.loads", "marshal.load", "marshal.loads", "eval", "exec"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "joblib.load", "shelve.open"),
}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nothing_that_is_read_can_execute_code(path: Path) -> None:
    """Weights come from safetensors, or pickles of which only tensors are taken; configs, manifests
    and records from YAML's safe loader and JSON."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            safe = name == "torch.load" and "weights_only=True" in map(ast.unparse, node.keywords)
            assert safe or name not in CAN_EXECUTE, f"{path}:{node.lineno}: {name}"
            allows = [k for k in node.keywords if k.arg == "allow_pickle"]
            assert not allows, f"{path}:{node.lineno}: {name}(allow_pickle=...)"


def test_test_modules_have_names_of_their_own() -> None:
    """pytest imports them by name alone: two of one name cannot both be collected."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(n for n, times in Counter(names).items() if times > 1) == []
