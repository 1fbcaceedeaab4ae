"""The model of time reacts to what it counts. What it says of a GPU nobody can test here."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import predict, sass

# A loop that skips a rare part, and waits at its head for copies.
LOOP = """
.L_x_0:
        /*0000*/                   DEPBAR.LE SB0, {left} ;
        /*0010*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
        /*0020*/              @!P1 BRA `(.L_x_1) ;
        /*0030*/                   MUFU.EX2 R1, R2 ;
        /*0040*/                   MUFU.EX2 R1, R2 ;
.L_x_1:
        /*0050*/                   MUFU.EX2 R1, R2 ;
        /*0060*/                   {second} R3, R4 ;
        /*0070*/                   LDGSTS.E.BYPASS.128 [R13], desc[UR14][R32.64] ;
        /*0080*/                   LDGDEPBAR ;
        /*0090*/              @!P0 BRA `(.L_x_0) ;
        /*00a0*/                   EXIT ;
.L_x_2:
        /*00b0*/                   BRA `(.L_x_2) ;
"""


def turn(left: str = "0x1", second: str = "MUFU.EX2") -> list[sass.Instruction]:
    (only,), outside = sass.loops(LOOP.format(left=left, second=second))
    assert [x.name for x in outside] == ["EXIT"]
    assert (only.depth, only.innermost) == (0, True)
    return only.turn


def test_a_turn_is_counted_without_its_rare_part() -> None:
    assert sass.count(turn()) == sass.Count(8, 2 * 64 * 128 * 16 / 4, 64, 512, 512)


def test_half_the_exps_are_half_the_time_of_special_functions() -> None:
    assert 2 * sass.count(turn(second="FADD")).exps == sass.count(turn()).exps


def test_copies_that_the_next_turn_waits_for_are_exposed() -> None:
    assert sass.exposed(turn(left="0x0"))
    assert not sass.exposed(turn(left="0x1"))


def test_registers_in_memory_are_seen_in_the_usual_turn_alone() -> None:
    code = LOOP.format(left="0x1", second="STL")
    assert sass.any_spilled(code)
    rare = LOOP.replace("MUFU.EX2 R1, R2", "LDL R1, [R2]", 1).format(left="0x1", second="MUFU.EX2")
    assert "LDL" in rare
    assert not sass.any_spilled(rare)


# Products in a loop over dimensions, exponentials in the loop over tiles around it.
NESTED = """
.L_x_0:
        /*0000*/                   IADD R1, R2 ;
        /*0010*/              @!P2 BRA `(.L_x_3) ;
.L_x_1:
        /*0020*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
        /*0030*/              @!P1 BRA `(.L_x_1) ;
.L_x_3:
        /*0040*/                   MUFU.EX2 R1, R2 ;
        /*0050*/              @!P0 BRA `(.L_x_0) ;
        /*0060*/                   EXIT ;
"""


FLAT = "\n".join(line for line in NESTED.splitlines() if "P1" not in line and "P2" not in line)


def test_what_stands_around_an_inner_loop_is_counted_apart() -> None:
    outer, inner = sass.loops(NESTED)[0]
    assert [x.name for x in inner.turn] == ["HGMMA.64x128x16.F32.BF16", "BRA"]
    assert [x.name for x in outer.turn] == ["IADD", "BRA", "MUFU.EX2", "BRA"]
    assert [(x.depth, x.innermost) for x in (outer, inner)] == [(0, False), (1, True)]


def predicted(monkeypatch: pytest.MonkeyPatch, n: int, d: int, code: str) -> dict[str, float]:
    """Seconds of the first kernel of all pairs, by limit, as if this were its machine code."""
    monkeypatch.setattr(sass, "registers", lambda cubin: 128)
    turns, outside = sass.loops(code)
    counts = [(x.depth, sass.count(x.turn)) for x in turns], sass.count(outside)
    kernel = SimpleNamespace(asm={"cubin": b"", "ttir": ""}, metadata=SimpleNamespace(num_warps=8, shared=100_000))
    arguments = {"span": n, "width": d, "BLOCK_N": 128, "BLOCK_D": 64, "tiles": 1}
    piece = predict._kernel("logsumexp", kernel, counts, (n // 128, 1), arguments)
    return {"overlapped": piece.overlapped, "others": piece.in_turn - piece.overlapped}


def test_twice_the_samples_are_four_times_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (predicted(monkeypatch, n, 64, FLAT)["overlapped"] for n in (1 << 15, 1 << 16))
    assert two / one == pytest.approx(4, rel=0.15)


def test_twice_the_dimensions_are_twice_the_products_and_no_more_exponentials(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (predicted(monkeypatch, 1 << 15, d, NESTED) for d in (512, 1024))
    assert two["overlapped"] / one["overlapped"] == pytest.approx(2, rel=0.01)
    assert two["others"] / one["others"] < 2


def test_loops_go_through_spans_and_dimensions() -> None:
    assert predict.trips("gradient", {"span": 640, "width": 256, "BLOCK_N": 64, "BLOCK_D": 64}) == [10, 4]
    assert predict.trips("pack", {"D": 130}, "scf.for %a = %b to %c step %c64_i32") == [3]


def test_products_that_are_given_have_no_loop_over_dimensions() -> None:
    assert predict.trips("gradient", {"span": 640, "width": 8192, "BLOCK_N": 64, "BLOCK_D": 64, "b": None}) == [10]


@pytest.mark.parametrize(("dtype", "rate"), [(torch.bfloat16, 1), (torch.float32, 2)])
def test_chunked_is_counted_without_data(dtype: torch.dtype, rate: int) -> None:
    """Few scores are kept: three products, each of 2 N^2 D operations, in TF32 at half the rate."""
    pytest.importorskip("triton")
    n, d = 2048, 512
    pieces = [x for x in predict.info_nce(n, d, 1, "chunked", dtype) if x.name == "product"]
    least = rate * 2 * n * n * d / (predict.FLOPS * predict.PROCESSORS * predict.CLOCK)
    assert [x.overlapped for x in pieces] == [pytest.approx(least)] * 3


def test_a_loop_of_one_turn_may_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is left goes through the samples."""
    one, two = (predicted(monkeypatch, 1 << 15, 64, code)["overlapped"] for code in (NESTED, FLAT))
    assert one == pytest.approx(two, rel=0.01)


def test_a_last_wave_is_spread_over_all_multiprocessors() -> None:
    """512 programs are four for the busiest of 132, however many it could hold."""
    assert [predict.busiest(512, resident) for resident in (1, 2, 3, 5)] == [4, 4, 4, 4]
    assert predict.busiest(3 * 132 + 1, 3) == 4
