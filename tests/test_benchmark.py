"""tools/benchmark.py: its interval, its bars, its check that variants do the same work, and one
short run of all rows.
"""

import json
import random
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import curves, distillation, incremental, measure, table

# Ranks of the two ends, from the tables of the sign test (critical values of Bin(n, 1/2), two-sided
# 5 %).
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
    assert measure.median_interval(values) == (RANKS[n], n + 1 - RANKS[n])


def test_median_interval_of_many_values_is_the_normal_one():
    low, high = measure.median_interval(list(range(1, 2001)))
    # n/2 - 1.96 · sqrt(n)/2
    assert abs(low - (1000 - 0.98 * 2000**0.5)) < 2 and high == 2001 - low


def test_median_interval_covers_the_median_of_skewed_noise():
    draw = random.Random(0)
    intervals = [
        measure.median_interval([draw.expovariate(1.0) for _ in range(30)]) for _ in range(2000)
    ]
    covered = sum(low <= 0.6931 <= high for low, high in intervals) / 2000
    # exactly 0.957 for ranks 10 and 21
    assert 0.945 < covered < 0.97


@pytest.mark.parametrize(
    "samples, bar, ok",
    [
        ([1.03] * 10, 1.02, False),
        ([1.01] + [1.05] * 9, 1.02, False),
        ([1.01, 1.01] + [1.05] * 8, 1.02, True),
        ([1.0] * 10, 1.02, True),
        ([2.0] * 10, None, None),
        ([], 1.02, None),
    ],
)
def test_a_bar_fails_only_if_the_whole_interval_lies_above_it(samples, bar, ok):
    assert measure.Line("x", samples, bar).ok is ok


def test_ratios_are_paired_within_a_round():
    times = {"a": [1.0, 20.0, 300.0], "b": [1.0, 10.0, 100.0]}
    line = measure.ratio("", times, "a", "b")
    assert line.samples == [1.0, 2.0, 3.0] and line.value == 2.0
    assert "not installed" in measure.ratio("", times, "torchdistill", "b", bar=1.0).note


def test_a_mean_of_seeds_has_students_interval():
    line = measure.Mean("x", [5.0, 1.0, 4.0, 2.0, 3.0])
    # t(4) = 2.7764, sd = 1.5811
    assert (line.value, *line.interval) == pytest.approx((3.0, 3 - 1.9632, 3 + 1.9632), abs=1e-4)
    assert line.ok is None


def test_memory_of_sampling_is_found_where_scores_are_kept():
    kept = incremental.sampling(
        100_000, code=incremental.SAMPLING.replace("(chunks(), 23)", "([*chunks()], 23)")
    )
    # 100 000 · 90 · 4 bytes are 34.3 MiB
    assert 34 < kept["MiB"] < 100


def test_accuracies_are_those_of_a_loop():
    pytest.importorskip("avalanche", reason="avalanche-lib is not installed")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    pairs = [
        {int(sample[1]) for sample in experience.dataset}
        for experience in incremental.digit_stream(1).test_stream
    ]
    found = {what: [] for what in ("class", "task")}
    for pair in pairs:
        rows = [(x, int(y)) for x, y in incremental.digit_images(False) if int(y) in pair]
        scores = [(model(x[None])[0].tolist(), y) for x, y in rows]
        found["class"].append(
            sum(max(range(10), key=z.__getitem__) == y for z, y in scores) / len(rows)
        )
        found["task"].append(sum(max(pair, key=z.__getitem__) == y for z, y in scores) / len(rows))
    expected = [100 * sum(values) / 5 for values in found.values()]
    assert [len(pair) for pair in pairs] == [2] * 5 and len({*expected, 10, 50}) == 4
    assert incremental.accuracies(SimpleNamespace(device="cpu"), model, 1) == pytest.approx(
        expected
    )


def step(scale: float, shift: float):
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([weight], 0.1)
    return lambda: measure.update((scale * weight).sum() + shift, optimizer)


def test_variants_that_do_other_work_are_found():
    measure.same_work({"a": step(1.0, 0.0), "b": step(1.0, 1e-6)})
    with pytest.raises(
        RuntimeError,
        match=r"a and c do different work: losses 3 and 3\.0000\d+, "
        r"gradients 0",
    ):
        measure.same_work({"a": step(1.0, 0.0), "b": step(1.0, 0.0), "c": step(1.0, 3e-5)})
    with pytest.raises(RuntimeError, match=r"gradients 1\.0e-02 of their norm apart"):
        measure.same_work({"a": step(1.0, 0.0), "b": step(1.01, -0.03)})


@pytest.mark.parametrize("features", [(), distillation.FEATURES])
def test_the_library_and_torchdistill_go_the_way_of_the_step_by_hand(features):
    """Not the first step only: the optimizer, its momentum and the batch norm statistics are the
    same too.
    """
    o = SimpleNamespace(models=("resnet14", "resnet8"), batch=4, device="cpu")
    variants = [
        distillation.by_hand(o, features),
        distillation.library(o, features),
        *distillation.torchdistill(o, features).values(),
    ]
    first, *others = [[float(step()) for _ in range(4)] for step in variants]
    assert len(set(first)) == 4
    for losses in others:
        assert losses == pytest.approx(first, rel=1e-4)


def test_one_round_of_every_row(tmp_path, capsys):
    file = tmp_path / "figures.json"
    status = table.main(
        ["--rounds", "1", "--models", "resnet8", "resnet8", "--batch", "2", "--json", str(file)]
    )
    figures = json.loads(file.read_text())
    lines, printed = figures["lines"], capsys.readouterr().out
    assert figures["torch"] == torch.__version__.split("+")[0] and figures["machine"] in " ".join(
        printed.split()
    )
    assert status == int(any(line["ok"] is False for line in lines))
    for part in (
        "KD step: library / by hand",
        "KD step: torchdistill / by hand",
        "KD step: library / torchdistill",
        "with 4 features: library / by hand",
        "with 4 features: torchdistill / by hand",
        "cached KD step / student alone",
        "mmengine Runner beyond the plain loop",
        "256 rows: RKD angle / torchdistill",
        "256 rows: DarkRank hard / by suffix",
        "embedder with RKD: library / PML's trainer",
        "LwM / LwF",
        "memory: 100000 rows beyond 10000",
        "crop and flip of 128 images of 32x32: kornia / by hand",
        "our LwF (seen) / avalanche's LwF"
        if find_spec("avalanche")
        else "LwF in avalanche: ours / its own",
        "import kdtasks.general",
    ):
        assert part in printed
    for line in lines:
        low, high = line["interval"] if line["samples"] else (0, 0)
        assert line["what"] in printed and (
            low <= line["value"] <= high if line["samples"] else "not installed" in line["note"]
        )


def test_the_page_of_costs_is_what_the_command_writes(tmp_path):
    docs = Path(__file__).parents[1] / "docs"
    found = json.loads((docs / "cost.json").read_text("utf-8"))
    assert (docs / "cost.md").read_text("utf-8") == curves.page(found)
    assert list(found["curves"]) == [curve.__name__ for curve in curves.CURVES]
    curves.draw(found, tmp_path / "cost.svg")
    drawn, kept = ((folder / "cost.svg").read_text("utf-8") for folder in (tmp_path, docs))
    # letters are drawn as paths, named in comments
    for curve in found["curves"].values():
        assert f"<!-- {curve['title']} -->" in drawn and f"<!-- {curve['title']} -->" in kept


def test_growth_is_that_of_the_two_largest_sizes():
    sizes, times = curves._points({"10": [1.0, 9.0, 2.0], "100": [3.0], "1000": [300.0]})
    assert (sizes, times) == ([10, 100, 1000], [2.0, 3.0, 300.0])
    assert curves._exponent(sizes, times) == "2.00" and curves._exponent([1], [1.0]) == ""


@pytest.mark.slow
def test_one_round_of_every_curve(tmp_path):
    assert table.main(["--curves", str(tmp_path / "cost.json"), "--rounds", "1"]) == 0
    found = json.loads((tmp_path / "cost.json").read_text("utf-8"))["curves"]
    assert all(len(seconds) == 2 for seconds in found["batch"]["seconds"].values())
    assert set(found["processes"]["seconds"]["library"]) == {"1", "2"}
    assert (tmp_path / "cost.md").exists() and (tmp_path / "cost.svg").exists()
