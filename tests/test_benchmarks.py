# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, on tiny sizes, and refuse to time what is wrong."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import model as benchmark


def test_model_benchmark_writes_what_it_measured(tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["model", "--sizes", "17x9", "--rounds", "2", "--json", str(path)])
    assert benchmark.main() == 0
    content = json.loads(path.read_text())
    assert [row["contestant"] for row in content["rows"]] == ["published", "folded", "fused"]
    assert all(row["median_s"] > 0 for row in content["rows"])
    assert content["machine"]["torch"] == torch.__version__
    assert "x published" in capsys.readouterr().out


def test_a_wrong_contestant_is_not_timed(monkeypatch) -> None:
    honest = benchmark.contestants

    def with_a_liar(model, *, compiled: bool):
        return honest(model, compiled=compiled) | {"liar": lambda x: 1.01 * model(x)}

    monkeypatch.setattr(benchmark, "contestants", with_a_liar)
    monkeypatch.setattr(sys, "argv", ["model", "--sizes", "8x8", "--rounds", "1"])
    with pytest.raises(SystemExit, match="liar is wrong"):
        benchmark.main()
