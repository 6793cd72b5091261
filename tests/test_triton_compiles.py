"""The Triton kernels through the real compiler, which needs no GPU: the very variants that run, and no others."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

OLDEST = "3.6.0"  # of torch 2.11, the oldest that the package supports

PROGRAM = """
import itertools, json, sys
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lightning_znorm.backends import _triton_kernels as kernels
from lightning_znorm.backends.triton import DTYPES, JOIN, TILE, WARPS

POINTERS = {"table": "*i64", **dict.fromkeys(["partials", "grad_scale", "moments", "edit", "stats"], "*fp64")}
VALUES = {"n_segments": "i32", "n_tiles": "i32", "largest": "fp32"}


def compile_(kernel, capability, **constants):
    names = kernel.arg_names
    signature = {name: (POINTERS | VALUES).get(name, "constexpr") for name in names}
    free = set(kernel.kwargs["do_not_specialize"]) if hasattr(kernel, "kwargs") else {"grad_scale"}
    # memory of its own for each pointer, which the launcher sees to be aligned
    attributes = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(names)
        if name in POINTERS and name not in free
    }
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=attributes,
    )
    options = {"num_warps": WARPS}
    assembly = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]
    lines = assembly.splitlines()
    return {
        "wide": sum("ld.global" in line and (".v4.b32" in line or ".v8.b32" in line) for line in lines),
        "spills": sum(".local" in line for line in lines),
        "atomics": sum(line.strip().startswith(("atom.", "red.")) for line in lines),
    }


found = {}
for capability in map(int, sys.argv[1:]):
    found[f"conclude {capability}"] = compile_(kernels.conclude_kernel, capability, join_size=JOIN)
    for name, dtype in itertools.product(("measure", "apply"), DTYPES.values()):
        kernel = getattr(kernels, f"{name}_kernel")
        found[f"{name} {capability} {dtype}"] = compile_(kernel, capability, dtype=dtype, tile_size=TILE)
print(json.dumps({"version": triton.__version__, "found": found}))
"""


@pytest.fixture(params=["installed", OLDEST], name="triton_path")
def triton_of_a_version(request, tmp_path):
    """Where Triton is to be found, before what is installed."""
    if request.param == "installed":
        return ""
    target = tmp_path / "packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, f"triton=={OLDEST}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot install Triton {OLDEST} here: {done.stderr.strip().splitlines()[-1]}")
    return str(target)


@pytest.mark.long
def test_kernels_compile(tmp_path, triton_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [triton_path, os.environ.get("PYTHONPATH")]))
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.strip(), "75", "80", "90", "100", "120"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["version"] == (OLDEST if triton_path else version("triton"))
    found = report["found"]
    assert len(found) == 5 * 7
    for name, figures in found.items():
        assert not figures["spills"], name
        assert not figures["atomics"], name
        assert figures["wide"] or name.startswith("conclude"), name
