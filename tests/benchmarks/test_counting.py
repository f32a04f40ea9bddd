# SPDX-License-Identifier: Apache-2.0
"""How machine code is counted, on code written by hand, and how tables are kept small."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from benchmarks.tools import sass, tune_count, tuning
from benchmarks.tools.estimate import CHIPS, Count, LoopsError
from benchmarks.tools.sass import macs_of, natural_loops, parse
from ditn_kernels._op import Sample
from ditn_kernels.backends.triton._config import Config, Row, nearest
from ditn_kernels.backends.triton._loops import Loops

# A loop over tiles from 0010 to 00c0; in it one from 0030 to 0050, and one from 0070 to 00a0 whose rare path stands
# behind the end of the code, at 00f0, and jumps back to 0090, which makes no loop. 00b0 and 00b8 wait.
CODE = """
    /*0000*/                   S2R R1, SR_TID.X ;                        /* 0x1 */
    /*0010*/                   IADD3 R1, R1, 0x1, RZ ;
    /*0020*/                   NOP;
    /*0030*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
    /*0040*/                   ISETP.NE.AND P0, PT, R1, RZ, PT ;
    /*0050*/               @P0 BRA 0x30 ;
    /*0060*/                   FADD R1, R1, R2                            &req={1} ?trans5;
    /*0070*/                   LDG.E R2, [R4] ;
    /*0080*/              @!P1 BRA 0xf0 ;
    /*0090*/                   FMUL R1, R1, R2 ;
    /*00a0*/                   BRA.U !UP1, 0x70 ;
    /*00b0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P4, [UR6], RZ ;
    /*00b8*/              @!P4 BRA 0xb0 ;
    /*00c0*/               @P3 BRA 0x10 ;
    /*00d0*/                   EXIT ;
    /*00e0*/                   BRA 0xe0;
    /*00f0*/                   FADD R1, R1, R1 ;
    /*0100*/                   BRA 0x90 ;
"""


LAUNCH = SimpleNamespace(name="kernel", programs=4)


def test_instructions_are_read() -> None:
    found = parse(CODE)
    assert found[0x50] == ("BRA", "@P0 0x30")
    assert found[0x60] == ("FADD", "R1, R1, R2")
    assert found[0x20][0] == "NOP"
    assert len(found) == 18


def test_loops_are_found() -> None:
    loops = natural_loops(parse(CODE))
    assert [sorted(map(hex, loop)) for loop in loops[1:]] == [
        ["0x30", "0x40", "0x50"],
        ["0x100", "0x70", "0x80", "0x90", "0xa0", "0xf0"],
        ["0xb0", "0xb8"],
    ]
    assert loops[0] == set(range(0x10, 0xD0, 0x10)) | {0xB8, 0xF0, 0x100}


def test_an_instruction_counts_as_often_as_its_loops_go_round() -> None:
    weights = sass._weights(LAUNCH, Loops(40, (3, 5)), parse(CODE))
    # Four programs of ten tiles each.
    assert (weights[0x0], weights[0x10], weights[0x30], weights[0x70], weights[0xD0]) == (4, 40, 120, 200, 4)


@pytest.mark.parametrize("named", [Loops(40), Loops(40, (3,)), Loops(40, (3, 5, 7)), Loops(None, (3, 5))])
def test_other_loops_than_those_named_are_an_error(named) -> None:
    with pytest.raises(ValueError, match=r"kernel: loops of \[.*\] instructions, but the trip counts \(.*\) are named"):
        sass._weights(LAUNCH, named, parse(CODE))


def test_no_loop_over_the_tiles_is_an_error() -> None:
    with pytest.raises(LoopsError, match="kernel: no loop over the tiles"):
        sass._weights(LAUNCH, Loops(40), {0x0: ("BPT.TRAP", "0x1"), 0x10: ("EXIT", "")})


def test_multiply_adds_of_an_instruction() -> None:
    assert macs_of("HMMA.16816.F32.BF16") == 16 * 8 * 16
    assert macs_of("HMMA.1688.F32.TF32") == 16 * 8 * 8
    assert 4 * macs_of("HGMMA.64x128x16.F32") == 64 * 128 * 16
    with pytest.raises(ValueError, match="IMMA"):
        macs_of("IMMA.16832.S8.S8")


def test_work_of_a_block() -> None:
    """By hand: 4 warps, of which each executes the code once but the instruction at 0x60 three times."""
    code = """
    /*0000*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
    /*0010*/                   LDSM.16.MT88.4 R8, [R1] ;
    /*0020*/                   LDGSTS.E.64 [R1], desc[UR4][R2.64] ;
    /*0030*/                   MUFU.TANH.F16 R4, R4 ;
    /*0040*/                   NOP ;
    /*0050*/                   LDC.64 R2, c[0x0][0x10] ;
    /*0060*/                   STS.U16 [R1], R4 ;
    /*0070*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
    """
    instructions = parse(code)
    found = sass.work(instructions, dict.fromkeys(instructions, 1.0) | {0x60: 3.0}, 4)
    assert found == {
        "instructions": 4 * 9,
        "macs": 4 * 16 * 8 * 16,
        "wavefronts": 4 * (4 + 4 + 2 + 3),
        "loads": 4 * 4,  # a copy into shared memory makes nothing wait
        "special": 4,
        "bytes": 4 * (4 + 2) * 128,
    }
    assert sass.tensor_instructions(instructions) == ("HMMA.16816.F32",)


def test_a_table_keeps_only_the_lines_that_it_needs() -> None:
    def row(capability: int, channels: int, warps: int) -> Row:
        return Row(capability, "float16", {"channels": channels}, Config(warps), "counted")

    rows = [row(80, 64, 4), row(86, 64, 4), row(90, 64, 8), row(100, 64, 8), row(80, 128, 4), row(90, 128, 8)]
    rows += [row(80, 16, 2)]
    kept = tuning.without_redundant(rows, CHIPS)
    assert len(kept) == 3
    for chip, channels in itertools.product(CHIPS, (16, 64, 128)):
        shape = {"channels": channels}
        full, small = (nearest(some, capability=chip, dtype="float16", shape=shape).config for some in (rows, kept))
        assert small == full


def test_a_new_shapes_lines_are_for_its_dtype_only() -> None:
    known = [Row(80, "float16", {"channels": 64}, Config(4)), Row(90, "float32", {"channels": 64}, Config(8))]
    rows = tuning.merged(known, [Row(90, "float32", {"channels": 16}, Config(1))])

    def warps(table: list[Row], capability: int, dtype: str) -> int:
        return nearest(table, capability=capability, dtype=dtype, shape={"channels": 16}).config.num_warps

    for chip, dtype in itertools.product(tuning.CHIPS, ("float16", "bfloat16", "float32")):
        expected = 1 if (chip, dtype) == (90, "float32") else warps(known, chip, dtype)
        assert warps(rows, chip, dtype) == expected
    assert tuning.merged((), rows) == rows


def test_what_was_measured_is_not_replaced_by_what_was_counted() -> None:
    (measured, counted), shape = (Config(4), Config(8)), {"channels": 64}
    known = [Row(90, "float16", shape, measured, "measured on NVIDIA H100")]
    assert tuning.merged(known, [Row(90, "float16", shape, counted, "counted")]) == known
    again = Row(90, "float16", shape, counted, "measured on NVIDIA H100")
    assert tuning.merged(known, [again]) == [again]


def test_a_candidate_that_cannot_be_counted_is_not_chosen(monkeypatch, capsys) -> None:
    uncounted = Count("kernel", 90, 4, 32, 0, 0, None, None, True, (), uncounted="no loop over the tiles")
    monkeypatch.setattr(tune_count, "counts", lambda *_: [uncounted])
    sample = Sample("map", {"B": 1, "C": 60, "H": 8, "W": 8})
    task = tuning.Task("dilated_gate", "kernel", False, sample, "float16")
    assert tune_count.judge(task, 90, Config(4)) is None
    assert "not judged on sm_90, no blocks, 4 warps, 2 stages: no loop over the tiles" in capsys.readouterr().out
