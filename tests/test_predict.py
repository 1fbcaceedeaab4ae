"""The model of time reacts to what it counts. What it says of a GPU nobody can test here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import sass

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
    return only


def test_a_turn_is_counted_without_its_rare_part() -> None:
    assert sass.count(turn()) == sass.Count(8, 2 * 64 * 128 * 16 / 4, 64, 512, 512)


def test_half_the_exps_are_half_the_time_of_special_functions() -> None:
    assert 2 * sass.count(turn(second="FADD")).exps == sass.count(turn()).exps


def test_copies_that_the_next_turn_waits_for_are_exposed() -> None:
    assert sass.exposed(turn(left="0x0"))
    assert not sass.exposed(turn(left="0x1"))


PROGRAM = """
import json
from benchmarks import predict
print(json.dumps([sum(x.overlapped for x in predict.info_nce(n, 64, 2, False) if x.name == "logsumexp")
                  for n in (1 << 14, 1 << 15)]))
"""


def test_twice_the_samples_are_four_times_all_pairs() -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", PROGRAM]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    one, two = json.loads(run.stdout)
    assert two / one == pytest.approx(4, rel=0.15)
