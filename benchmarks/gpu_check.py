"""Is all of it right, fast and learning on this machine's GPU? One command, under 8 minutes, one archive.

    make gpu-check OUT=folder        or        python -m benchmarks.gpu_check --out folder

First what the operators need is compiled; then what must be right (their tests, on the GPU), what has targets (the
operators, whole models), the tests marked gpu, training and the bench; the longest last, with the time that is left.
A part is a process with a time limit of its own, and one that fails or is cut off stops no other.
`folder/gpu-check.tar.gz` (summary.md, a log a part, records and tables) is renewed after every part. Nothing is
installed or downloaded: it runs in the Python that it is called with, or in the environment that `make` has built, if
only that one has what the suite needs and this one sees no GPU.

Without a GPU the same parts run small, kernels in Triton's interpreter, which shows that they run and nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 460.0  # seconds for everything
GRACE = 10.0  # seconds in which a part that is cut off may keep what it has: tests their summary, bench its records
SHORTEST = 5.0  # a part that has less left is not begun
SHOWN = 60  # lines of a log in the summary
NEEDED = ("torch", "triton", "numpy", "pandas", "fvcore", "iopath", "yacs", "termcolor", "typer", "pytest")
LEFT_OUT = (".pt", "lock")  # of the archive: weights, and what only a running run needs
NO_GPU = (
    "No GPU was found: the kernels are tested in Triton's interpreter, bench and training are small, and nothing of "
    "this was measured on a GPU."
)


@dataclass(frozen=True)
class Part:
    name: str
    command: Sequence[str]  # what follows the interpreter
    seconds: float


@dataclass(frozen=True)
class Outcome:
    part: Part
    ended: str  # "passed", "failed (exit code 1)", "cut off after 60 s", "left out: no time was left"
    seconds: float
    log: list[str]


def parts(facts: dict[str, Any], quick: bool, folder: Path) -> list[Part]:
    """What is run, in order. `quick` is small enough for a test of the check itself."""
    test = ["-m", "pytest", "-v", "--tb=short", "-rfE", "--durations=5", "-p", "no:cacheprovider"]
    side_by_side = ["-n", str(min(12, len(os.sched_getaffinity(0))))] if facts["gpu"] and facts.get("xdist") else []
    test += ["--continue-on-collection-errors", *side_by_side]
    no_gpu_needed = ["-k", "not compiled_for"] if facts["gpu"] else []  # done wherever Triton is
    own, kernels = ["tests/test_step.py", "tests/test_gpu.py"], sorted((ROOT / "tests").glob("test_kernel_*.py"))
    operators = [*(f"tests/{path.name}" for path in kernels), "tests/test_operators.py", "tests/test_diffuse.py"]
    kept = ["--runs", str(folder / "runs"), "--out", str(folder / "reports")]
    bench = ["-m", "studies", "bench", "--no-compile", *kept]
    train = ["-m", "benchmarks.training", "--runs", str(folder / "training")]
    if quick:
        return [Part("tests", [*test, own[0]], 60), Part("training", [*train, "--short", "--steps", "12"], 60)]
    if not facts["gpu"]:
        tiny = ["--lengths", "64", "--batch", "1", "--seconds", "0.02"]
        return [
            Part("tests", [*test, *own], 40),
            Part("tests of kernels", [*test, *operators], 340),
            Part("compiling", ["-m", "benchmarks.gpu_check", "--compile"], 20),
            Part("bench of operators", [*bench, "operators", *tiny], 40),
            Part("bench at 64", [*bench, *tiny], 40),
            Part("models", ["-m", "benchmarks.models", "--short"], 30),
            Part("training", [*train, "--steps", "60"], 40),
        ]
    timed = ["--seconds", "0.25", "--lengths"]
    return [
        Part("compiling", ["-m", "benchmarks.gpu_check", "--compile"], 80),
        Part("tests of kernels", [*test, *no_gpu_needed, *operators], 110),
        Part("bench of operators", [*bench, "operators", *timed, "4096"], 90),
        Part("models", ["-m", "benchmarks.models"], 120),
        Part("tests", [*test, *own], 60),
        Part("training", train, 120),
        Part("bench at 1K", [*bench, *timed, "1024"], 40),
        Part("one layer", ["-m", "benchmarks.layer"], 240),
    ]


def missing() -> list[str]:
    """What the suite needs and this Python lacks."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def interpreter() -> str:
    """This Python if it has what the suite needs or sees a GPU, or if no other is at hand."""
    built = ROOT / ".venv/bin/python"
    return str(built) if missing() and built.exists() and not sees_gpu() else sys.executable


def compile_operators() -> None:
    """Compile what `bench operators` runs, all cases at once, each in a process: what is compiled is kept on disk."""
    import torch

    from studies.operators import CASES
    from studies.provenance import cores

    if not torch.cuda.is_available():
        print("nothing is compiled without a GPU")
        return
    with ProcessPoolExecutor(min(len(CASES), cores()), mp_context=get_context("spawn")) as pool:
        for case, seconds in zip(CASES, pool.map(_compiled, CASES), strict=True):
            print(f"{case}: {seconds:.0f} s", flush=True)


def _compiled(case: str) -> float:
    from studies.operators import OperatorSubject, size

    began, shape = time.perf_counter(), size("cuda")
    workload = OperatorSubject(case, shape.width, shape.tokens // 4096, 4096, fused=True).build(
        "cuda", "bfloat16", False
    )
    for work in workload.works.values():
        work()
    return time.perf_counter() - began


def sees_gpu() -> bool:
    with suppress(ImportError):
        import torch

        return torch.cuda.is_available()
    return False


def machine() -> dict[str, Any]:
    """Where this runs, and with what; asked in the interpreter that runs the parts."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from studies.provenance import commit, device_name

    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    gpu = torch.cuda.is_available()
    return {
        "gpu": gpu,
        "xdist": importlib.util.find_spec("xdist") is not None,
        "device": device_name(torch.device("cuda" if gpu else "cpu")),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "triton": triton,
        "Python": platform.python_version(),
        "node": platform.node(),
        **commit(),
    }


def asked_machine(python: str) -> dict[str, Any]:
    """What `machine` says there; or why it says nothing, and that no GPU is to be had."""
    question = "import json; from benchmarks.gpu_check import machine; print(json.dumps(machine()))"
    try:
        told = subprocess.run([python, "-c", question], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=90)
        return {"interpreter": python, **json.loads(told.stdout.splitlines()[-1])}
    except subprocess.TimeoutExpired:
        fault = "it had not answered after 90 s"
    except (IndexError, ValueError):
        fault = (told.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return {"interpreter": python, "gpu": False, "fault": fault}


def run(part: Part, python: str, log: Path, gpu: bool, seconds: float) -> Outcome:
    """Run a part for so many seconds at most, and end whatever it has started."""
    if seconds < SHORTEST:
        return Outcome(part, "left out: no time was left", 0.0, [])
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
    env["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking whether there is a GPU does not touch it: bench forks
    env.pop("TRITON_INTERPRET", None)
    if not gpu:
        env["TRITON_INTERPRET"] = "1"
    began = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [python, *part.command], cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            ended = "passed" if code == 0 else f"failed (exit code {code})"
        except subprocess.TimeoutExpired:
            ended = f"cut off after {seconds:.0f} s"
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        except KeyboardInterrupt:
            ended = "interrupted"
        finally:
            end(process)
    lines = [line.rstrip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return Outcome(part, ended, time.perf_counter() - began, [line for line in lines if line])


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a part's whole group: its own children too, should it have left any."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def summary(facts: dict[str, Any], outcomes: Sequence[Outcome], to_come: int, took: float) -> str:
    """The whole check as Markdown: how each part ended, then what each said at its end."""
    known = [f"{name} {facts[name]}" for name in ("torch", "CUDA", "triton", "Python") if name in facts]
    place = f"{facts.get('device', 'unknown device')}, {', '.join(known)}, node {facts.get('node', 'unknown')}"
    lines = ["# GPU check", "", place]
    state = f"commit {facts.get('commit', 'unknown')}{' and changes' if facts.get('dirty') else ''}"
    lines += [f"{state}, run by `{facts['interpreter']}`, {took:.0f} s of at most {LIMIT:.0f}", ""]
    if "fault" in facts:
        lines += [f"What this machine is could not be found out: {facts['fault']}", ""]
    if not facts["gpu"]:
        lines += [f"**{NO_GPU}**", ""]
    lines += ["| part | ended | s | limit | its last line |", "|---|---|--:|--:|---|"]
    for one in outcomes:
        last = one.log[-1].strip("= ").replace("|", "\\|") if one.log else ""
        lines.append(f"| {one.part.name} | {one.ended} | {one.seconds:.0f} | {one.part.seconds:.0f} | {last[:200]} |")
    if to_come:
        lines.append(f"\n{to_come} parts are still to come.")
    lines += ["", "Targets stand beside the ratios that they are of, below, where a part knows one."]
    for one in outcomes:
        fence = ["```", *one.log[-SHOWN:], "```"]
        lines += ["", f"## {one.part.name}", "", f"`python {' '.join(one.part.command)}`", "", *fence]
    return "\n".join(lines) + "\n"


def pack(folder: Path, archive: Path) -> None:
    """All of `folder` but weights, as an archive that is there whole or not at all."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.name.endswith(LEFT_OUT):
                tar.add(path, Path("gpu-check") / path.relative_to(folder))
    beside = archive.with_name(f".{archive.name}.{os.getpid()}")
    beside.write_bytes(held.getvalue())
    beside.replace(archive)


def check(out: Path, quick: bool) -> bool:
    """Run all parts, renewing the archive after each; whether all of them passed."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background: parts would not hear it either
        signal.signal(signal.SIGINT, signal.default_int_handler)
    began, python, archive = time.perf_counter(), interpreter(), out / "gpu-check.tar.gz"
    out.mkdir(parents=True, exist_ok=True)
    if sees_gpu() and (lacking := missing()):
        print(f"{python} sees a GPU but lacks {', '.join(lacking)}: install them first, time on a GPU is short")
        return False
    facts = asked_machine(python)
    print(facts["device"] if facts["gpu"] else NO_GPU, flush=True)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
        folder = Path(name)
        (folder / "logs").mkdir()
        planned = parts(facts, quick, folder)
        for i, part in enumerate(planned):
            log = folder / "logs" / f"{i + 1}-{part.name.replace(' ', '-')}.txt"
            left = min(part.seconds, LIMIT - (time.perf_counter() - began))
            one = run(part, python, log, facts["gpu"], left)
            outcomes.append(one)
            print(f"{part.name}: {one.ended}, {one.seconds:.0f} s; {one.log[-1] if one.log else ''}", flush=True)
            text = summary(facts, outcomes, len(planned) - i - 1, time.perf_counter() - began)
            (folder / "summary.md").write_text(text, encoding="utf-8")
            pack(folder, archive)
            if one.ended == "interrupted":
                break
    print(f"{archive} holds the summary, the logs and the records")
    return all(one.ended == "passed" for one in outcomes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("reports"), help="the folder that gpu-check.tar.gz is written to"
    )
    parser.add_argument("--quick", action="store_true", help="only whether the check itself works")
    parser.add_argument("--compile", action="store_true", help="only compile what the bench of operators runs")
    asked = parser.parse_args()
    if asked.compile:
        return compile_operators()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the part that runs is ended and told of
    sys.exit(0 if check(asked.out.resolve(), asked.quick) else 1)


if __name__ == "__main__":
    main()
