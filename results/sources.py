"""Hashes of the source that a run is trained with: of its model, its task and the training loop.

Each part has an entry module. Its hash covers the modules of this project that the entry imports, directly or not.
Comments, docstrings and formatting make no difference. Files are parsed, never imported.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAINING = "studies.train"  # the entry of the training loop
# the packages whose modules count for each part
COVERED = {"model": ("ldn", "baselines"), "task": ("studies.tasks",), "training": ("studies",)}
# not part of the training loop: tasks, tables that name every model, and what only describes a run
EXCLUDED = {"training": ("studies.tasks", "studies.zoo", "studies.spec", "studies.provenance")}


@cache  # a process hashes the source that it has loaded, not what is edited later
def source_hash(part: str, entry: str, root: Path = ROOT) -> str:
    """Sixteen hex digits for the source of `part`, whose entry is a module name or the path of a file.

    Empty if there is no such module.
    """
    if not (path := _path(entry, root)):
        return ""
    found: dict[str, Path] = {}
    todo = [(Path(entry).stem if entry.endswith(".py") else entry, path)]
    while todo:
        name, path = todo.pop()
        if name not in found:
            found[name] = path
            todo += _imported(path, name, part, root)
    digest = hashlib.sha256()
    for name, path in sorted(found.items()):
        digest.update(f"{name}\n{_parsed(path)[1]}\n".encode())
    return digest.hexdigest()[:16]


def _imported(path: Path, module: str, part: str, root: Path) -> Iterator[tuple[str, Path]]:
    """The modules that count for `part` among those that a file imports, and the files beside a user's file."""
    own = not path.is_relative_to(root)
    for name in _names(path, module):
        resolved = _resolved(name, root)
        if resolved and _within(resolved, COVERED[part]) and not _within(resolved, EXCLUDED.get(part, ())):
            yield resolved, _path(resolved, root) or path
        elif own and (beside := path.parent / f"{name.partition('.')[0]}.py").is_file():
            yield beside.stem, beside


def _names(path: Path, module: str) -> Iterator[str]:
    """Every import by its absolute name; `from a import b` as a.b, because b may be a module."""
    for node in _parsed(path)[0]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _resolved(name: str, root: Path) -> str:
    """The module of this project that an imported name comes from; empty if it is none."""
    while name and not (path := _path(name, root)):
        name, _, attribute = name.rpartition(".")
        if (path := _path(name, root)) and path.name == "__init__.py":
            offered = (other for other in _names(path, f"{name}.__init__") if other.endswith(f".{attribute}"))
            return next((_resolved(other, root) for other in offered), name)
    return name


def _path(module: str, root: Path) -> Path | None:
    if module.endswith(".py"):
        return Path(module) if Path(module).is_file() else None
    base = root.joinpath(*module.split("."))
    files = (base.with_name(f"{base.name}.py"), base / "__init__.py")
    return next((path for path in files if path.is_file()), None) if module else None


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@cache
def _parsed(path: Path) -> tuple[list[ast.Import | ast.ImportFrom], str]:
    """The imports of a file, and its code without comments and docstrings."""
    tree = ast.parse(path.read_bytes())
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
    return imports, ast.unparse(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
