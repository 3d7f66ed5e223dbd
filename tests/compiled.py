"""What a Triton kernel compiles to for an H100 (sm_90), on any machine: registers, spills, shared memory, instructions.

In processes of their own, as the tests' may be interpreting its kernels.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple


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


def compiled(jobs: Sequence[Job]) -> list[Compiled]:
    """All jobs in one process: importing Triton costs more than most kernels."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.compiled"]
    done = subprocess.run(command, input=json.dumps(jobs), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [Compiled(*one) for one in json.loads(done.stdout.splitlines()[-1])]


def compile_one(job: Job) -> Compiled:
    import importlib
    import tempfile

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
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[0]) for name in ("REG", "STACK"))
    return Compiled(registers, stack, kernel.metadata.shared, kernel.asm["ptx"])


if __name__ == "__main__":
    print(json.dumps([compile_one(Job(*job)) for job in json.load(sys.stdin)]))
