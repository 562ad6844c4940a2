"""The packages are a reading order: a file imports only from its own package and those above it in this list."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [
    *["errors", "names", "config_files", "rates", "machines", "hashing", "console", "storage", "buckets", "files"],
    *["tables", "line_files", "processes", "huge_pages", "compression"],
    *["models", "engines", "checks", "data", "metrics", "runtime", "checkpoints", "decoding", "training", "evaluation"],
    *["transcription", "export", "study", "benchmarks", "demo", "jobs", "api", "serving", "main"],
]
FILES = sorted((ROOT / "sew_jax").rglob("*.py"))


def package_of(path: Path) -> str:
    """The first name below `sew_jax`: `models` of sew_jax/models/ctc.py, `errors` of sew_jax/errors.py."""
    return path.relative_to(ROOT / "sew_jax").parts[0].removesuffix(".py")


def imported_packages(source: str) -> set[str]:
    """The packages of sew_jax that a source imports from, at any depth, with those named for type checkers alone."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("sew_jax.")} & set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_up_the_list(path):
    package = package_of(path)
    if package == "__init__":
        return
    assert package in ORDER, f"{package} has no place in the list"
    below = {name for name in imported_packages(path.read_text()) if ORDER.index(name) > ORDER.index(package)}
    assert not below, f"{path.relative_to(ROOT)} imports {below}, which come after {package}"


def test_an_import_against_the_order_is_seen():
    for source in (
        "from sew_jax.training.task import Task",
        "def f():\n    import sew_jax.training.task",
        "from sew_jax import training",
    ):
        assert imported_packages(source) == {"training"}


def test_files_are_small():
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 350}
    assert not long


def test_functions_are_short():
    long = {}
    for path in [*FILES, *(ROOT / "configs").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 80:
                long[f"{path.relative_to(ROOT)}:{node.name}"] = node.end_lineno - node.lineno + 1
    assert not long
