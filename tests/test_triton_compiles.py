"""The Triton kernel through the real compiler, which needs no GPU to make code for one."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import itertools, json, sys
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lightning_znorm.backends._triton_kernel import znorm_kernel
from lightning_znorm.backends.triton import _DTYPES, _JOIN, _TILE, _WARPS

signature = {
    **dict.fromkeys(["gradients", "sizes"], "*i64"),
    **dict.fromkeys(["first_tiles", "owners", "items", "state"], "*i32"),
    **dict.fromkeys(["partials", "stats"], "*fp64"),
    **dict.fromkeys(["factors", "grad_scale"], "*fp32"),
    **dict.fromkeys(["n_items", "n_tiles", "n_gradients"], "i32"),
}
names = znorm_kernel.arg_names
found = {}
for capability, dtype in itertools.product(map(int, sys.argv[1:]), _DTYPES.values()):
    for is_scaled, is_aligned in [(False, True), (True, False)]:
        chosen = {"dtype": dtype, "tile_size": _TILE, "join_size": _JOIN, "is_scaled": is_scaled}
        chosen["is_aligned"] = is_aligned
        source = ASTSource(
            fn=znorm_kernel,
            signature={**signature, **dict.fromkeys(chosen, "constexpr")},
            constexprs={(names.index(name),): value for name, value in chosen.items()},
        )
        target = GPUTarget("cuda", capability, 32)
        assembly = triton.compile(source, target=target, options={"num_warps": _WARPS}).asm["ptx"]
        found[f"{capability} {dtype} {is_scaled} {is_aligned}"] = {
            "wide loads": sum("ld.global" in line and ".v4.b32" in line for line in assembly.splitlines()),
            "spills": sum(".local" in line for line in assembly.splitlines()),
        }
print(json.dumps(found))
"""


@pytest.mark.long
def test_kernel_compiles(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.strip(), "80", "90", "100"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 3 * 6
    assert not any(figures["spills"] for figures in found.values())
    assert all(figures["wide loads"] for name, figures in found.items() if name.endswith("False True"))
