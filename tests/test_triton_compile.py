"""Every Triton kernel as it would be launched, compiled for real GPUs without one.

The functions run on CPU tensors with the launch itself replaced: each kernel is compiled for the arguments and the
launch parameters that it was given, and the bundled assembler says what it needs. This happens in a process of its
own, since triton decides for the interpreter or the compiler when it is imported. ``pytest -s`` prints the table.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

SHARED = {90: 227 * 1024, 80: 163 * 1024}  # bytes a program can have
# Bytes by sm_90: gradient both ways at D=256 by Triton 3.6, logsumexp both ways at D=1024 by 3.8; none by another.
SPILLS = {90: {"3.6": 48, "3.8": 16}.get(version("triton")[:3], 0), 80: 48}
# Of a thread; 255 is all there are.
REGISTERS = {
    "pack": 64,
    "align": 128,
    "unpack": 168,
    "_distance": 192,
    "_distance_backward": 240,
    "_gap_sums": 128,
    "logsumexp of products": 128,
    "gradient of products": 128,
    "_sums of products": 128,
}
ALL_PAIRS = ("logsumexp", "gradient")
PAIRS = ("_distance", "_products", "_distance_backward", "_products_backward", "_gap_sums")


def of_halves(kernel: str, label: str) -> bool:
    """Whether it reads pairs in half precision, every sample against every row of masks."""
    return kernel in PAIRS and "float16" in label and "own" not in label


def measured() -> list[dict]:
    """Runs in the other process."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.compiler import ASTSource

    from benchmarks import sass
    from mast_ops.kernels.contract import Contrast, Gap, Table
    from mast_ops.kernels.triton import contrast, pairs, sigmoid

    types = {
        torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
        torch.int64: "*i64", torch.int32: "*i32",
    }  # fmt: skip
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    CUDABackend.make_cubin = lambda *_: b""  # assembled below, once, where ptxas tells what is asked
    launches: list = []
    triton.JITFunction.run = lambda self, *args, grid, warmup, **named: launches.append((self, args, named))

    def source(kernel, args: tuple, named: dict) -> tuple:
        """As triton itself would specialise the kernel on these arguments."""
        options = {name: named.pop(name) for name in ("num_warps", "num_stages")}
        values = dict(zip(kernel.arg_names, args, strict=False)) | named
        signature, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(kernel.params):
            name, value = parameter.name, values[parameter.name]
            plain = parameter.do_not_specialize
            if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and not plain):
                signature[name], constants[name] = "constexpr", value
            elif isinstance(value, int):
                signature[name] = "i32"
                if value % 16 == 0 and not plain:
                    attributes[(i,)] = [["tt.divisibility", 16]]
            else:
                signature[name] = types[value.dtype]
                if value.data_ptr() % 16 == 0 and not parameter.do_not_specialize_on_alignment:
                    attributes[(i,)] = [["tt.divisibility", 16]]
        return ASTSource(kernel, signature, constants, attributes), options

    def called(kernel, args: tuple) -> str:
        """Kernels of all pairs that go through products of torch's are others."""
        arguments = dict(zip(kernel.arg_names, args, strict=False))
        return kernel.__name__ + (" of products" if arguments.get("b", ...) is None else "")

    def compiled(label: str, kernel, args: tuple, named: dict, arch: int) -> dict:
        what, options = source(kernel, args, dict(named))
        ptx = triton.compile(what, target=GPUTarget("cuda", arch, 32), options=options)
        text, target = ptx.asm["ptx"], re.search(r"\.target (\w+)", ptx.asm["ptx"])[1]
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "k.ptx").write_text(text)
            command = [ptxas, "-v", f"-arch={target}", f"{folder}/k.ptx", "-o", f"{folder}/k.cubin"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            name = called(kernel, args)
            stack = int(re.search(r"(\d+) bytes stack frame", said)[1])  # registers in memory
            hides = arch == 90 and name in ALL_PAIRS
            # Most of a small kernel's time goes to the disassembler: of the others a test that asks finds no answer.
            looked = hides or of_halves(name, label) or (arch == 90 and stack > 0)
            code = sass.disassemble(Path(folder, "k.cubin").read_bytes()) if looked else ""
        return {
            "label": label,
            "kernel": name,
            "arch": arch,
            "registers": int(re.search(r"Used (\d+) registers", said)[1]),
            "spills": sum(map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said).groups())),
            "shared": ptx.metadata.shared,
            "wgmma": text.count("wgmma.mma_async"),
            "mma": text.count("mma.sync"),
            "counts": len(re.findall(r"atom\.global\.gpu\.acq_rel", text)),
            "spilled": arch == 90 and stack > 0 and sass.any_spilled(code),
            **({"exposed": sass.any_exposed(code)} if hides else {}),
            **({"narrow": len(re.findall(r"LDGSTS\.E\.64|LDS\.U16", code))} if of_halves(name, label) else {}),
        }

    work, seen = [], set()
    # For sm_80 too, where a kernel takes as long as for sm_90.
    older = ("bfloat16 R=15", "bfloat16 D=256", "bfloat16 D=512 cross both ways")

    def record(label: str, function: Callable[..., object], *arguments: object) -> None:
        launches.clear()
        function(*arguments)
        for kernel, args, named in launches:
            for arch in SHARED if label.startswith(older) and "own" not in label else (90,):
                what, options = source(kernel, args, dict(named))
                key = (what.hash(), str(options), arch)
                if key not in seen:
                    seen.add(key)
                    work.append((label, kernel, args, named, arch))

    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        short = str(dtype).removeprefix("torch.")
        n, d = 256, 512
        # Sums in several parts, or for float16 in one, forward and backward: kernels of their own.
        sizes = (1 << 15, 16) if dtype == torch.float16 else (n, n)
        for r in (15, 64) if dtype == torch.bfloat16 else (15,):
            for is_own in (False, True) if dtype != torch.float16 else (False,):
                for m, backward in zip(sizes, (False, True), strict=True):
                    z, v, scale = torch.ones(m, d, dtype=dtype), torch.ones(m, d), torch.ones(1, d)
                    own = torch.zeros(m, dtype=torch.long) if is_own else None
                    table, g = Table(torch.ones(r, d), own), torch.ones(m) if is_own else torch.ones(m, r)
                    label = f"{short} R={r}{' own' if is_own else ''}"
                    for gap, of in ((Gap(z, z), ""), (Gap(z, z, v, scale), " log-variance")):
                        if not backward:
                            record(label + of, pairs.distance, gap, table)
                            continue
                        record(label + of, pairs.distance_backward, g, gap, table)
                        record(label + of, pairs.gap_sums, gap, r, own)
                        record(label + of, pairs.gap_sums_backward, torch.ones(r if is_own else 1, d), gap, own)
                    if backward:
                        record(label, pairs.products_backward, (g, g, g), z, z, table)
                    else:
                        record(label, pairs.products, z, z, table)
        ids, one = torch.arange(n), torch.tensor(1.0)
        for d in {torch.bfloat16: (128, 256, 512), torch.float16: (256,), torch.float32: (256, 512)}[dtype]:
            z, masks = torch.ones(n, d, dtype=dtype), torch.ones(1, d)
            for form, z1, own, both_ways in (
                ("cross", z, False, False),
                ("cross both ways", z, False, True),
                ("cross own", z, True, False),
                ("self", None, False, False),
                ("self own", None, True, False),
            ):
                if (dtype == torch.float16 or (dtype == torch.float32 and d == 512)) and not both_ways:
                    continue  # the same code but for the type of its products
                tail = (ids, None if z1 is None else ids, ids * 0 if own else None, both_ways)
                problem, g = Contrast(z, z1, masks, one, *tail), torch.ones(n) if own else torch.ones(n, 1)
                label = f"{short} D={d} {form}"
                record(label, contrast.forward, problem)
                record(label, contrast.backward, problem, (g, g), (g, g))
                if d == 512 and form == "cross":
                    record(label, sigmoid.forward, problem, one)
                    record(label, sigmoid.backward, problem, one, g)

    def row(i: int) -> None:
        Path(folder, f"{i}.json").write_text(json.dumps(compiled(*work[i])))

    # Forked, since kernels do not go through a pipe: every core compiles.
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for core in range(cores):
            children.append(os.fork())
            if not children[-1]:
                status = 1
                try:
                    for i in range(core, len(work), cores):
                        row(i)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(status)
        failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)  # waits for all
        if failed:
            sys.exit("a kernel did not compile")
        return [json.loads(Path(folder, f"{i}.json").read_text()) for i in range(len(work))]


@pytest.fixture(scope="module")
def table() -> list[dict]:
    pytest.importorskip("triton")
    root = Path(__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(root)
    with tempfile.TemporaryDirectory() as cache:
        environment["TRITON_CACHE_DIR"] = cache
        run = subprocess.run([sys.executable, __file__], env=environment, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    rows = json.loads(run.stdout)
    print(f"\n{'kernel':22}{'for':36}{'sm':>4}{'registers':>10}{'shared':>8}{'spills':>7}{'wgmma':>6}{'mma':>5}")
    for r in rows:
        print("{kernel:22}{label:36}{arch:4}{registers:10}{shared:8}{spills:7}{wgmma:6}{mma:5}".format(**r))
    return rows


def test_every_kernel_is_there(table: list[dict]) -> None:
    names = {
        "align",
        "_distance",
        "_distance_backward",
        "_gap_sums",
        "_gap_sums_backward",
        "_products",
        "_products_backward",
        "pack",
        "logsumexp",
        "gradient",
        "unpack",
        "logsumexp of products",
        "gradient of products",
        "_sums of products",
    }
    assert names <= {r["kernel"] for r in table}


def test_nothing_spills_beyond_what_is_known(table: list[dict]) -> None:
    def known(r: dict) -> int:
        # Of itself: in a part that is rare.
        return max(SPILLS[r["arch"]], 8 if r["kernel"] == "logsumexp of products" else 0)

    assert [r for r in table if r["spills"] > known(r) or r["spilled"]] == []


def test_shared_memory_fits(table: list[dict]) -> None:
    assert [r for r in table if r["shared"] > SHARED[r["arch"]]] == []


def test_registers_are_bounded(table: list[dict]) -> None:
    assert [r for r in table if r["registers"] > REGISTERS.get(r["kernel"], 255)] == []


def test_programs_that_share_a_sum_count_themselves_once(table: list[dict]) -> None:
    sums = [r for r in table if r["kernel"].strip("_").startswith(("distance", "products", "gap_sums"))]
    alone = [r for r in sums if r["label"].startswith("float16") or r["kernel"] == "_gap_sums_backward"]
    assert [r for r in sums if r["counts"] != (r not in alone)] == []


def test_pairs_are_fetched_16_bytes_at_a_time(table: list[dict]) -> None:
    """A thread copies as much to the chip, and no thread takes numbers of half precision from there one by one.

    Rows of masks by sample are numbers of eight bytes.
    """
    pairs = [r for r in table if of_halves(r["kernel"], r["label"])]
    assert pairs
    assert [r for r in pairs if r["narrow"]] == []


def test_products_hide_the_copies_of_all_pairs(table: list[dict]) -> None:
    """No loop waits for copies that it began after its last product. Two stages on the chip would do that."""
    heavy = [r for r in table if r["kernel"] in ALL_PAIRS and r["arch"] == 90]
    assert heavy
    assert [r for r in heavy if r["exposed"]] == []


def test_all_pairs_are_on_tensor_cores(table: list[dict]) -> None:
    """float32 too: three tf32 products."""
    heavy = [r for r in table if r["kernel"] in ALL_PAIRS]
    assert [r for r in heavy if not r["wgmma" if r["arch"] == 90 else "mma"]] == []


if __name__ == "__main__":
    print(json.dumps(measured()))
