"""What one turn of a kernel's loop costs, counted from its machine code. Nothing runs."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_LINE = re.compile(r"/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.a-z]*)(.*?);")
_WIDTH = {"128": 16, "64": 8, "U8": 1, "S8": 1, "U16": 2, "S16": 2}  # bytes of a lane; 4 where nothing is said


class Instruction(NamedTuple):
    guarded: bool
    name: str
    rest: str


@dataclass
class Count:
    """Of one program, in one turn or outside all loops: a warp's instructions, and bytes of 32 lanes."""

    issued: float = 0
    flops: float = 0  # of one warp's share of matrix instructions, in units of the half-precision rate
    exps: float = 0  # and other special functions
    shared: float = 0
    copied: float = 0


def disassemble(cubin: bytes) -> str:
    return _tool("nvdisasm", "-c", cubin)


def registers(cubin: bytes) -> int:
    found = re.search(r"REG:(\d+)", _tool("cuobjdump", "-res-usage", cubin))
    assert found is not None, "cuobjdump says nothing of registers"
    return int(found[1])


def _tool(name: str, option: str, cubin: bytes) -> str:
    """One of those that come with Triton."""
    import triton

    path = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([path, option, file.name], capture_output=True, text=True, check=True).stdout


class Loop(NamedTuple):
    """``turn``: its usual turn, without the loops inside it. ``depth``: how many loops it stands in."""

    turn: list[Instruction]
    depth: int
    innermost: bool


def loops(text: str) -> tuple[list[Loop], list[Instruction]]:
    """Every loop, and all that stands outside loops.

    A turn takes the shortest way through the loop and the loops inside it: most tiles hold neither an edge nor a
    positive.
    """
    code, labels = _read(text)
    ends = {labels[x]: i for i, one in enumerate(code) if (x := _target(one)) in labels and labels[x] < i}
    backward = sorted(ends.items())
    found = []
    for a, b in backward:
        inside = [(c, d) for c, d in backward if a <= c and d <= b and (c, d) != (a, b)]
        outside = [(c, d) for c, d in backward if c <= a and b <= d and (c, d) != (a, b)]
        direct = [one for one in inside if not any(_holds(other, one) for other in inside)]
        turn, start = [], a
        for c, d in direct:
            turn += _shortest(code, labels, start, c)[:-1] if c > start else []
            start = d + 1
        found.append(Loop(turn + _shortest(code, labels, start, b), len(outside), not inside))
    covered = {i for a, b in backward for i in range(a, b + 1)}
    return found, [x for i, x in enumerate(code) if i not in covered]


def _holds(other: tuple[int, int], one: tuple[int, int]) -> bool:
    return other != one and other[0] <= one[0] and one[1] <= other[1]


def count(instructions: list[Instruction]) -> Count:
    total = Count(issued=len(instructions))
    for _, name, _ in instructions:
        kind, *parts = name.split(".")
        width = 32 * next((_WIDTH[part] for part in parts if part in _WIDTH), 4)
        if kind in ("HGMMA", "HMMA"):
            total.flops += _flops(kind, parts)
        elif kind == "MUFU":
            total.exps += 32
        elif kind in ("LDSM", "STSM"):
            total.shared += 128 * int(parts[-1]) if parts[-1].isdigit() else 128
        elif kind in ("LDS", "STS"):
            total.shared += width
        elif kind == "SHFL":
            total.shared += 128
        elif kind in ("LDG", "STG", "LDGSTS"):
            total.copied += width
            total.shared += width if kind == "LDGSTS" else 0
    return total


def exposed(turn: list[Instruction]) -> bool:
    """Whether a turn waits for copies that it began after its last matrix product: nothing hides them."""
    names = [x.name.split(".")[0] for x in turn]
    if "LDGDEPBAR" not in names:
        return False
    groups = [i for i, name in enumerate(names) if name == "LDGDEPBAR"]
    waits = [(i, int(x.rest.split("0x")[-1], 16)) for i, x in enumerate(turn) if x.name.startswith("DEPBAR")]
    pending = min((left for _, left in waits), default=0)
    products = [i for i, name in enumerate(names) if name in ("HGMMA", "HMMA")]
    return bool(products) and pending < len(groups) and groups[0] > products[-1] and waits[0][0] < products[0]


def any_exposed(text: str) -> bool:
    return any(exposed(x.turn) for x in loops(text)[0] if x.innermost)


def any_spilled(text: str) -> bool:
    """Whether the usual turn of an innermost loop keeps registers in memory."""
    return any(x.name.startswith(("LDL", "STL")) for loop in loops(text)[0] if loop.innermost for x in loop.turn)


def _flops(kind: str, parts: list[str]) -> float:
    if kind == "HGMMA":  # 64 x N x K by four warps
        m, n, k = map(int, parts[0].split("x"))
        flops = 2 * m * n * k / 4
    else:  # 16 x 8 x K by one
        flops = 2 * 16 * 8 * int(parts[0].removeprefix("168"))
    return flops * (2 if "TF32" in parts else 1)


def _read(text: str) -> tuple[list[Instruction], dict[str, int]]:
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if line.startswith(".L_"):
            labels[line.split(":")[0]] = len(code)
        elif found := _LINE.search(line):
            code.append(Instruction(found[1] is not None, found[2], found[3]))
    end = next((i for i, x in enumerate(code) if _target(x) in labels and labels[_target(x)] == i), len(code))
    return code[:end], {name: i for name, i in labels.items() if i < end}  # padding jumps to itself


def _target(one: Instruction) -> str:
    found = re.search(r"\((\.L_\w+)\)", one.rest) if one.name.startswith("BRA") else None
    return found[1] if found else ""


def _shortest(code: list[Instruction], labels: dict[str, int], first: int, last: int) -> list[Instruction]:
    length, following = {last: 1}, {last: last}
    for i in range(last - 1, first - 1, -1):
        target = labels.get(_target(code[i]), -1)
        ways = [target] if i < target <= last else []
        if not ways or code[i].guarded:
            ways.append(i + 1)
        following[i] = min(ways, key=lambda way: length[way])
        length[i] = 1 + length[following[i]]
    turn, at = [code[first]], first
    while at != last:
        at = following[at]
        turn.append(code[at])
    return turn
