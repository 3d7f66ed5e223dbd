"""What do the diffusion kernels compile to for an H100? On any machine: registers, spills, instructions an element.

    python -m benchmarks.instructions

Where a kernel takes more instructions for an element than a GPU can issue while it copies one, it is bound by them, not
by memory. An H200 issues 33.5e12 a second (its datasheet's 67 TFLOP/s of float32 are as many multiply-adds) and copies
4.3e12 bytes: 31 instructions for the 4 bytes that a forward pass reads and writes for an element of 16 bits, 47 for the
6 of a backward pass. "At most" is the share of the copy's speed which that leaves; how much of it is reached only a GPU
can say. Counted are those of a turn within the sequence (`ldn.kernels.steps`); those at its ends, and where a program
starts, take about twice as many.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import cycle
from typing import Any, NamedTuple
from unittest.mock import patch

import pandas as pd
import torch
from torch import Tensor

from ldn.kernels.march import Pass
from ldn.kernels.steps import SIZES
from ldn.reference import Offset
from studies.operators import CASES, OFFSETS, DiffusionCase

ISSUED = 67e12 / 2  # instructions a second, one for each of a warp's 32 lanes
COPIED = 4.3e12  # bytes a second
WIDTH, TOKENS = 512, 4096
JUMP = r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\d+ )?BRA(?:\.\w+)* (?:!?U?P\d+, )?0x([0-9a-f]+)"


class Job(NamedTuple):
    kernel: str  # "ldn.kernels.attention:sum_kernel"
    signature: dict[str, str]  # of every argument in order: "*bf16", "i32", "fp32", "constexpr"; "i32:16" divides by 16
    constants: dict[str, object]  # of those that are "constexpr"
    num_warps: int = 4
    num_stages: int = 3


class Compiled(NamedTuple):
    registers: int  # a thread
    spills: int  # bytes of stack a thread: none of these kernels has other use for it
    shared: int  # bytes a program
    ptx: str
    turn: int  # instructions of one turn of its loop, the cheaper way where that is cut in two; 0 without a loop
    seconds: float  # that compiling took, 0 if Triton had it from before


def compiled(jobs: Sequence[Job]) -> list[Compiled]:
    """All jobs, in a process of their own: this one's Triton may be interpreting its kernels."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.instructions", "--compile"]
    done = subprocess.run(command, input=json.dumps(jobs), env=environment, capture_output=True, encoding="utf-8")
    if done.returncode != 0:
        raise RuntimeError(f"a kernel does not compile for sm_90:\n{done.stderr[-4000:]}")
    return [Compiled(*one) for one in json.loads(done.stdout.splitlines()[-1])]


def compile_one(job: Job) -> Compiled:
    """Raises what Triton raises for a kernel that does not compile."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, name = job.kernel.partition(":")
    types = {argument: given.partition(":") for argument, given in job.signature.items()}
    source = ASTSource(
        fn=getattr(importlib.import_module(module), name),
        signature={argument: kind for argument, (kind, _, _) in types.items()},
        constexprs=job.constants,
        attrs={(i,): [["tt.divisibility", 16]] for i, (_, _, by) in enumerate(types.values()) if by},
    )
    options = {"num_warps": job.num_warps, "num_stages": job.num_stages}
    start = time.perf_counter()
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    seconds = time.perf_counter() - start
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run(
                [triton.knobs.nvidia.cuobjdump.path, asked, file.name],
                capture_output=True,
                encoding="utf-8",
                check=True,
            ).stdout
            for asked in ("--dump-resource-usage", "--dump-sass")
        )
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[0]) for name in ("REG", "STACK"))
    return Compiled(registers, stack, kernel.metadata.shared, kernel.asm["ptx"], turn(code), seconds)


def turn(code: str) -> int:
    """Instructions of one turn of the longest loop in this disassembly; of an if-else within, the shorter branch."""
    jumps = [(int(at, 16), "@" in condition, int(to, 16)) for at, condition, to in re.findall(JUMP, code)]
    loops = [(to, at) for at, _, to in jumps if to < at]
    if not loops:
        return 0
    first, last = max(loops, key=lambda loop: loop[1] - loop[0])
    forward = [jump for jump in jumps if first <= jump[0] < jump[2] <= last]
    length = (last - first) // 16 + 1
    for at, conditional, other in sorted(forward, key=lambda jump: jump[0] - jump[2]):
        joins = [to for before, _, to in forward if before == other - 16]
        if conditional and joins:  # at: one branch, up to a jump over the other one
            return length - max(other - at, joins[0] - other) // 16
    return length


class Launches:
    """Takes the place of `wrap_triton` to write down what would be launched."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def __call__(self, kernel: Any) -> Launches:
        self.kernel = kernel
        return self

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return self.launch

    def launch(self, num_warps: int, **given: Any) -> None:
        """Types and constants as Triton finds them: 1 is a constant, multiples of 16 are marked, but not of SIZES."""
        constant = {name for name, kind in self.kernel.fn.__annotations__.items() if "constexpr" in str(kind)}
        signature: dict[str, str] = {}
        constants: dict[str, object] = {}
        for name in self.kernel.arg_names:
            value = given[name]
            if isinstance(value, Tensor):
                signature[name] = {torch.bfloat16: "*bf16:16", torch.float32: "*fp32:16"}[value.dtype]
            elif name in constant or (value == 1 and name not in SIZES):
                signature[name], constants[name] = "constexpr", value
            else:
                signature[name] = "i32:16" if value % 16 == 0 and name not in SIZES else "i32"
        self.jobs.append(Job(f"ldn.kernels.steps:{self.kernel.__name__}", signature, constants, num_warps))


def launches(
    x: Tensor, offsets: Sequence[Offset], weights: Tensor, rate: Tensor, dilations: Sequence[int],
    conductance: Tensor | None = None,
) -> list[tuple[Pass, Job]]:  # fmt: skip
    """The passes of `ldn.kernels.diffuse` and of its gradients, and what each launches; tensors may be on "meta".

    Each as if it were the only one: what lies between two passes would be float32.
    """
    from ldn.kernels import diffusion

    rate = rate.view((1,) * (x.dim() - rate.dim()) + rate.shape)
    operands, tokens = diffusion.unpacked(x, [d for o in offsets for d in o], weights, rate, conductance)
    found = []
    with patch.object(diffusion, "wrap_triton", Launches()) as written:
        for of_gradients in (False, True):
            for part in diffusion.passes_of(operands, x, dilations, of_gradients) or ():
                if of_gradients:
                    diffusion.backward(operands, tokens, tokens, part, x.dtype, True, conductance is not None)
                else:
                    diffusion.forward(operands, tokens, [part], x.dtype)
                found.append((part, written.jobs[-1]))
    return found


def table() -> pd.DataFrame:
    """A row for each pass of the bench's cases of diffusion, in bfloat16."""
    rows: list[dict[str, Any]] = []
    jobs = []
    for name, case in CASES.items():
        if not isinstance(case, DiffusionCase):
            continue
        with torch.device("meta"):
            x, weights, rate, *rest = case.given(1, TOKENS, WIDTH, torch.bfloat16)
        dilations = [d for _, d in zip(range(case.steps), cycle(case.dilations), strict=False)]
        for part, job in launches(x, OFFSETS, weights, rate, dilations, *rest):
            of_gradients = bool(part.march.gradients)
            rows.append({"case": name, "pass": "backward" if of_gradients else "forward", "steps": len(part.dilations)})
            rows[-1] |= {"rows": part.rows, "channels": part.channels, "counted": part.registers, "cost": part.cost}
            jobs.append(job)
    for row, found in zip(rows, compiled(jobs), strict=True):
        elements = row["rows"] * row["channels"]
        size = 6 if row["pass"] == "backward" else 4
        row |= {"registers": found.registers, "spills": found.spills, "instructions": found.turn / elements}
        row |= {"at most": min(1.0, ISSUED / row["instructions"] * size / COPIED), "seconds": found.seconds}
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--compile", action="store_true", help="read jobs, write what they compile to")
    if parser.parse_args().compile:
        print(json.dumps([compile_one(Job(*job)) for job in json.load(sys.stdin)]))
        return
    shown = {"cost": "{:.1f}", "instructions": "{:.1f}", "at most": "{:.0%}", "seconds": "{:.1f}"}
    print(f"width {WIDTH}, bfloat16, compiled for sm_90 by Triton {version('triton')}; nothing here was timed on a GPU")
    print(table().to_string(index=False, formatters={name: text.format for name, text in shown.items()}))


if __name__ == "__main__":
    main()
