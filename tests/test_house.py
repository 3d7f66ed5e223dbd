"""Is the house in order? Who imports whom, read from the source of every module with `ast`.

ldn <- baselines <- studies -> the leaves of results, no cycle; heavy dependencies have one owner each.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("ldn", "baselines", "studies", "results")
MODULES = sorted(path.relative_to(ROOT) for room in (*ROOMS, "benchmarks") for path in (ROOT / room).rglob("*.py"))
TESTS = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))

# modules of results that all packages may import
LEAVES = (
    "cli", "declarations", "entries", "environment", "files", "identity", "locks", "record", "signals", "sources",
    "stale", "text", "validation",
)  # fmt: skip
# what of ours each room may import; a name also stands for what lies below it
MAY_IMPORT = {
    "ldn": ("ldn",),
    "baselines": ("baselines", "ldn"),
    "studies": ("studies", "baselines", "ldn", *(f"results.{name}" for name in LEAVES)),
    "results": ("results",),
    "benchmarks": ("benchmarks", *ROOMS, "tests.slurm.machine"),  # no room: it times all of them, one on a real SLURM
}  # fmt: skip
# a room that may be used without the others brings nothing but these from outside the standard library
OUTSIDE = {"ldn": ("torch", "triton"), "baselines": ("torch",)}
# dependencies with one owner: only these modules, or those below these folders, import them
OWNERS = {
    "triton": ("ldn/kernels", "benchmarks/instructions.py"),
    "fvcore": ("studies/meter.py",),
    "optuna": ("studies/journal.py", "studies/queue.py", "studies/search.py", "results/importance.py"),
    "submitit": ("studies/slurm.py", "studies/sbatch.py"),
    "seaborn": ("results/figures",),
    "matplotlib": ("results/figures", "results/section.py", "results/page.py"),
}
# the command line hands over to what reads the files, and imports it only then
LAZY = {
    ("studies/__main__.py", f"results.{name}")
    for name in ("report", "cost_frame", "costs", "evals", "operators", "diffusion")
}


class Import(NamedTuple):
    name: str  # "results.record", "torch"
    lazy: bool  # inside a function
    line: int


def imports(module: Path, source: str) -> Iterator[Import]:
    """Every import of the module by its absolute name; `from a import b` as a.b, for b may be a module."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, lazy, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            package = list(module.parent.parts)[: len(module.parent.parts) - node.level + 1] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", lazy, node.lineno)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from visit(ast.parse(source), False)


def within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def misplaced(module: Path, source: str) -> list[str]:
    """The imports of a module that its room does not allow, one sentence each."""
    room, wrong = module.parts[0], []
    for name, lazy, line in imports(module, source):
        top = name.partition(".")[0]
        where = f"{module}:{line} imports {name}"
        if top in (*ROOMS, "benchmarks", "tests"):
            handed_over = lazy and any(str(module) == owner and within(name, (target,)) for owner, target in LAZY)
            if not within(name, MAY_IMPORT[room]) and not handed_over:
                wrong.append(f"{where}; {room} may import {', '.join(MAY_IMPORT[room])}")
        elif room in OUTSIDE and top not in OUTSIDE[room] and top not in sys.stdlib_module_names:
            wrong.append(f"{where}; {room} needs no more than {', '.join(OUTSIDE[room])}")
        if room == "results" and top == "torch":
            wrong.append(f"{where}; results are read without torch")
        if top in OWNERS and not any(module.is_relative_to(owner) for owner in OWNERS[top]):
            wrong.append(f"{where}; only {', '.join(OWNERS[top])} may")
    return wrong


def reads_argv(source: str) -> bool:
    """Whether the source mentions sys.argv, or imports argv from sys."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr == "argv":
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "sys" and any(a.name == "argv" for a in node.names):
            return True
    return False


def without_encoding(source: str) -> list[int]:
    """Lines with a call that reads or writes text in the encoding of the locale."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        constants = [
            value.value for value in [*node.args, *(k.value for k in node.keywords)] if type(value) is ast.Constant
        ]
        binary = any(
            isinstance(value, str) and ("b" in value or ":" in value) and set(value) <= set("rwxab+:gz")
            for value in constants
        )
        text = any(k.arg == "text" and getattr(k.value, "value", None) is True for k in node.keywords)
        if called in ("read_text", "write_text") or (called in ("open", "fdopen") and not binary) or text:
            lines.append(node.lineno)
    return lines


def test_every_room_has_modules() -> None:
    assert {module.parts[0] for module in MODULES} >= set(ROOMS)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_what_its_room_allows(module: Path) -> None:
    wrong = misplaced(module, (ROOT / module).read_text())
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("module", [m for m in MODULES if m.name != "__main__.py"], ids=str)
def test_sys_argv_is_read_in_main_alone(module: Path) -> None:
    assert not reads_argv((ROOT / module).read_text())


@pytest.mark.parametrize("module", MODULES + TESTS, ids=str)
def test_a_module_says_in_its_first_line_what_it_is_for(module: Path) -> None:
    source = (ROOT / module).read_text()
    if source.strip():  # an __init__.py may be empty
        assert (ast.get_docstring(ast.parse(source)) or "").strip()


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_text_files_are_read_and_written_in_utf_8_whatever_the_locale(module: Path) -> None:
    assert not without_encoding((ROOT / module).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    ["path.read_text()", "path.write_text('x')", "open(path)", "path.open('a')", "subprocess.run(command, text=True)"],
)
def test_a_call_without_an_encoding_is_found(source: str) -> None:
    assert without_encoding(source) == [1]


@pytest.mark.parametrize("source", ["path.open('rb')", "open(path, encoding='utf-8')", "os.fdopen(handle, 'wb')"])
def test_binary_files_and_given_encodings_are_let_pass(source: str) -> None:
    assert not without_encoding(source)


@pytest.mark.parametrize("name", ["utils.py", "helpers.py", "common.py"])
def test_no_module_has_a_name_that_says_nothing(name: str) -> None:
    assert not [str(module) for module in MODULES + TESTS if module.name == name]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ldn/model.py", "import baselines"),
        ("ldn/model.py", "from studies.tasks.digits import Digits"),
        ("ldn/model.py", "import numpy as np"),
        ("ldn/ops.py", "import triton"),
        ("ldn/ops.py", "def f():\n    import triton.language as tl"),
        ("baselines/vit.py", "from studies import zoo"),
        ("baselines/vit.py", "import results.record"),
        ("studies/train.py", "from results import gather"),
        ("studies/train.py", "from results.report import report"),
        ("studies/train.py", "import optuna"),
        ("studies/train.py", "from fvcore.nn import FlopCountAnalysis"),
        ("studies/train.py", "def f():\n    from submitit import AutoExecutor"),
        ("studies/train.py", "def f():\n    from results.report import report"),
        ("studies/__main__.py", "from results.report import report"),
        ("results/tables.py", "import torch"),
        ("results/tables.py", "from ldn import LDNConfig"),
        ("results/tables.py", "from ..studies import spec"),
        ("results/tables.py", "import matplotlib.pyplot as plt"),
        ("benchmarks/ops.py", "import triton"),
        ("ldn/model.py", "import tests.test_models"),
    ],
)
def test_an_import_across_the_rooms_is_found(module: str, source: str) -> None:
    assert len(misplaced(Path(module), source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ldn/kernels/diffuse.py", "import triton\nimport torch\nfrom ldn.reference import Offset"),
        ("baselines/vit.py", "from ldn.classifier import Stem\nfrom baselines.transformer import Transformer"),
        ("baselines/vit.py", "from .transformer import Transformer"),
        ("studies/meter.py", "import fvcore.nn\nfrom results import record\nfrom results.record import RunRecord"),
        ("studies/__main__.py", "def f():\n    from results.report import report"),
        ("studies/__main__.py", "def f():\n    from results import report"),
        (
            "results/figures/comparison.py",
            "import seaborn as sns\nfrom matplotlib.figure import Figure\nfrom . import tables",
        ),
    ],
)
def test_an_import_within_the_rules_is_let_pass(module: str, source: str) -> None:
    assert not misplaced(Path(module), source)


@pytest.mark.parametrize("source", ["import sys\nprint(sys.argv)", "from sys import argv", "import sys as s\ns.argv"])
def test_a_reader_of_sys_argv_is_found(source: str) -> None:
    assert reads_argv(source)
