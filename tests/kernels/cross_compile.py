"""Compiles every kernel as its launcher would launch it, for GPUs that are not there, and prints what each one takes.

Run without Triton's interpreter: `python tests/kernels/cross_compile.py`, with src and kernels on the path. The
launchers are called with CPU tensors; instead of launching, each kernel is compiled with the very arguments, tile sizes
and warps. One JSON line per kernel, configuration and target: registers per thread, bytes of stack and of spilled
registers per thread, bytes of shared memory per program.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from protoad_kernels import apply, newton, similarity, sinkhorn, sinkhorn_adjoint
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TARGETS = (80, 90, 100)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
}


def products(n: int, k: int, d: int, dtype: torch.dtype, *, shared: bool) -> None:
    """Launches every kernel with a feature axis."""
    b = 2
    tokens, plan = torch.zeros(b, n, d, dtype=dtype), torch.zeros(b, k, n)
    prototypes = torch.zeros(1 if shared else b, k, d)
    similarities, inverse = similarity.similarity_forward(tokens, prototypes)
    similarity.similarity_backward(similarities, tokens, prototypes, similarities, inverse)
    apply.reconstruct_backward(apply.reconstruct_forward(plan, prototypes.to(dtype)), plan, prototypes.to(dtype))
    context, mass = apply.context_forward(plan, tokens)
    apply.context_backward(context, plan, tokens, context, mass)


def transport(n: int, k: int, *, extras: bool, b: int = 2, n_iters: int = 2) -> None:
    """Launches Sinkhorn's iteration and its gradient, with all optional arguments or none of them."""
    cost, cols = torch.zeros(b, k, n), torch.zeros(b, k)
    rows, init = (torch.zeros(b, n), torch.zeros(b, k)) if extras else (None, None)
    problem = cost, rows, cols, init
    for tol in (None, 0.1) if extras else (None,):
        sinkhorn.sinkhorn_forward(*problem, 0.05, n_iters, tol, extras)
    history, iterations = torch.zeros(b, n_iters, k), torch.zeros(b, dtype=torch.int32)
    grads = cost, rows, cols if extras else None
    sinkhorn_adjoint.sinkhorn_backward(*grads, *problem, 0.05, history, iterations, extras)


def converged(n: int, k: int, *, extras: bool) -> None:
    """Launches Newton's method and the implicit gradient where they hold so much, with all arguments or the fewest."""
    cost, cols = torch.zeros(2, k, n), torch.zeros(2, k)
    rows, init = (torch.zeros(2, n), cols) if extras else (None, None)
    if newton.newton_fits(n, k):
        newton.newton_forward(cost, rows, cols, init, 0.05, 20, 1e-5)
    if newton.implicit_fits(n, k):
        newton.implicit_backward(cost if extras else None, rows, cols, cost, cols, rows, 0.05, extras)


# Calls that between them choose every tile and every branch of the launchers.
LAUNCHES: list[Callable[[], object]] = [
    partial(products, n, k, d, dtype, shared=shared)
    for k in (10, 30, 50, 100)
    for n, d, dtype, shared in (
        (256, 768, torch.float32, True),
        (197, 768, torch.float32, False),  # no multiple of 16: other loads, other registers
        (256, 768, torch.bfloat16, False),
        (197, 30, torch.float32, True),
        (197, 5, torch.bfloat16, False),
    )
]
LAUNCHES += [partial(products, 1, 1, 1, torch.float32, shared=True)]
LAUNCHES += [partial(transport, n, k, extras=True) for n, k in ((60, 10), (500, 30), (100, 50), (9000, 10))]
LAUNCHES += [
    partial(transport, n, k, extras=extras)
    for n, k in ((900, 1), (250, 10), (784, 10), (250, 50), (250, 100), (4096, 100))
    for extras in (False, True)
]

LAUNCHES += [
    partial(converged, n, k, extras=extras)
    for n, k in ((60, 3), (250, 10), (500, 10), (250, 30), (60, 50), (120, 50))
    for extras in (False, True)
]


def record(launch: Callable[[], object]) -> list[dict[str, Any]]:
    """What a launcher would have launched: kernel, signature, constants, attributes and options of each."""
    found: list[dict[str, Any]] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in kwargs}
        bound = dict(zip(self.arg_names, args, strict=False)) | kwargs
        found.append({"kernel": self, "options": options} | _specialised(self, bound))

    original, JITFunction.run = JITFunction.run, run
    try:
        launch()
    finally:
        JITFunction.run = original
    return found


def _specialised(kernel: JITFunction, bound: dict[str, Any]) -> dict[str, Any]:
    """As Triton specialises at a launch: None, True and 1 are constants, and divisibility by 16 is known."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        name, value = parameter.name, bound[parameter.name]
        fixed = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (fixed and isinstance(value, int) and value in (True, 1)):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + NAMES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i1" if isinstance(value, bool) else "i32" if abs(value) < 1 << 31 else "i64"
            if fixed and value % 16 == 0 and not isinstance(value, bool):
                attributes[(index,)] = [["tt.divisibility", 16]]
    return {"signature": signature, "constants": constants, "attributes": attributes}


def compiled(launch: dict[str, Any], target: int) -> dict[str, Any]:
    """Compiles one kernel and reads its resources."""
    kernel = launch["kernel"]
    source = ASTSource(kernel, launch["signature"], launch["constants"], launch["attributes"])
    binary = triton.compile(source, target=GPUTarget("cuda", target, 32), options=launch["options"])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {
        "kernel": kernel.__name__,
        "target": target,
        "registers": usage["REG"],
        "stack": usage["STACK"],
        "local": usage["LOCAL"],
        "shared": binary.metadata.shared,
        "blocks": {name: value for name, value in launch["constants"].items() if name.startswith("BLOCK")},
        "options": launch["options"],
    }


def main() -> None:
    unique = {}
    for launch in LAUNCHES:
        for one in record(launch):
            unique[repr(one)] = one
    jobs = [(one, target) for one in unique.values() for target in TARGETS]
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(lambda job: compiled(*job), jobs):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
