"""tools/benchmark.py: its interval, its bars, its check that variants do the same work, and one short run of all rows."""

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

spec = importlib.util.spec_from_file_location("benchmark", Path(__file__).parents[1] / "tools" / "benchmark.py")
benchmark = sys.modules["benchmark"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)

# Ranks of the two ends, from the tables of the sign test (critical values of Bin(n, 1/2), two-sided 5 %).
RANKS = {1: 1, 5: 1, 6: 1, 8: 1, 9: 2, 12: 3, 15: 4, 20: 6, 25: 8, 30: 10, 40: 14, 50: 18, 100: 40}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("n", RANKS)
def test_median_interval_has_the_ranks_of_the_sign_test(n):
    values = list(range(1, n + 1))
    random.Random(0).shuffle(values)
    assert benchmark.median_interval(values) == (RANKS[n], n + 1 - RANKS[n])


def test_median_interval_of_many_values_is_the_normal_one():
    low, high = benchmark.median_interval(list(range(1, 2001)))
    assert abs(low - (1000 - 0.98 * 2000**0.5)) < 2 and high == 2001 - low       # n/2 - 1.96 · sqrt(n)/2


def test_median_interval_covers_the_median_of_skewed_noise():
    draw = random.Random(0)
    intervals = [benchmark.median_interval([draw.expovariate(1.0) for _ in range(30)]) for _ in range(2000)]
    covered = sum(low <= 0.6931 <= high for low, high in intervals) / 2000
    assert 0.945 < covered < 0.97                                                # exactly 0.957 for ranks 10 and 21


@pytest.mark.parametrize("samples, bar, ok", [
    ([1.03] * 10, 1.02, False), ([1.01] + [1.05] * 9, 1.02, False), ([1.01, 1.01] + [1.05] * 8, 1.02, True),
    ([1.0] * 10, 1.02, True), ([2.0] * 10, None, None), ([], 1.02, None)])
def test_a_bar_fails_only_if_the_whole_interval_lies_above_it(samples, bar, ok):
    assert benchmark.Line("x", samples, bar).ok is ok


def test_ratios_are_paired_within_a_round():
    times = {"a": [1.0, 20.0, 300.0], "b": [1.0, 10.0, 100.0]}
    line = benchmark.ratio("", times, "a", "b")
    assert line.samples == [1.0, 2.0, 3.0] and line.value == 2.0
    assert "not installed" in benchmark.ratio("", times, "torchdistill", "b", bar=1.0).note


def step(scale: float, shift: float):
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([weight], 0.1)
    return lambda: benchmark.update((scale * weight).sum() + shift, optimizer)


def test_variants_that_do_other_work_are_found():
    benchmark.same_work({"a": step(1.0, 0.0), "b": step(1.0, 1e-6)})
    with pytest.raises(RuntimeError, match=r"a and c do different work: losses 3 and 3\.0000\d+, gradients 0"):
        benchmark.same_work({"a": step(1.0, 0.0), "b": step(1.0, 0.0), "c": step(1.0, 3e-5)})
    with pytest.raises(RuntimeError, match=r"gradients 1\.0e-02 of their norm apart"):
        benchmark.same_work({"a": step(1.0, 0.0), "b": step(1.01, -0.03)})


@pytest.mark.parametrize("features", [(), benchmark.FEATURES])
def test_the_library_and_torchdistill_go_the_way_of_the_step_by_hand(features):
    """Not the first step only: the optimizer, its momentum and the batch norm statistics are the same too."""
    o = SimpleNamespace(models=("resnet14", "resnet8"), batch=4, device="cpu")
    variants = [benchmark.by_hand(o, features), benchmark.library(o, features), *benchmark.torchdistill(o, features).values()]
    first, *others = [[float(step()) for _ in range(4)] for step in variants]
    assert len(set(first)) == 4
    for losses in others:
        assert losses == pytest.approx(first, rel=1e-4)


def test_one_round_of_every_row(tmp_path, capsys):
    file = tmp_path / "figures.json"
    status = benchmark.main(["--rounds", "1", "--models", "resnet8", "resnet8", "--batch", "2", "--json", str(file)])
    figures = json.loads(file.read_text())
    lines, table = figures["lines"], capsys.readouterr().out
    assert figures["torch"] == torch.__version__.split("+")[0] and figures["machine"] in " ".join(table.split())
    assert status == int(any(line["ok"] is False for line in lines))
    for part in ("KD step: library / by hand", "KD step: torchdistill / by hand", "KD step: library / torchdistill",
                 "with 4 features: library / by hand", "with 4 features: torchdistill / by hand",
                 "cached KD step / student alone", "mmengine Runner beyond the plain loop", "256 rows: RKD angle / torchdistill",
                 "256 rows: DarkRank hard / by suffix", "import kdtasks.general"):
        assert part in table
    for line in lines:
        low, high = line["interval"] if line["samples"] else (0, 0)
        assert line["what"] in table and (low <= line["value"] <= high if line["samples"] else "not installed" in line["note"])
