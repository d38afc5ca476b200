"""Comparisons of different seeds are put together as if they had run as one, and shown as a page."""

import copy
import json
import statistics
from pathlib import Path

import pytest

from kdtasks.engine.cli import results as main
from kdtasks.engine.compare.files import read_comparisons
from kdtasks.engine.compare.merge import merge
from kdtasks.engine.compare.page import page
from kdtasks.engine.compare.reference import with_reference
from kdtasks.engine.compare.short_names import short_names, with_short_names
from kdtasks.engine.compare.statistics import interval, summary, verdict
from kdtasks.engine.errors import ConfigError

ROOT = Path(__file__).parents[2]
TASK = "kdtasks.classification.trainer"
ALONE = {0: 60.0, 1: 62.5, 2: 58.0, 3: 61.0}
KD = {0: 64.0, 1: 65.5, 2: 60.0, 3: 66.0}
RKD = {0: 63.0, 1: 66.5, 2: 61.0, 3: 66.5}


def row(seeds, taught, reference):
    alone, own = [ALONE[s] for s in seeds], [taught[s] for s in seeds]
    differences = [b - a for a, b in zip(alone, own)]
    word, why = verdict(differences, True)
    against = None
    if reference:
        beside = [taught[s] - reference[s] for s in seeds]
        mean, low, high = interval(beside)
        its, reason = verdict(beside, True)
        against = {"differences": beside, "mean": mean, "low": low, "high": high}
        against |= {"verdict": its, "why": reason}
    return {
        "stage": "distilled",
        "teachers": {"teacher": [70.0]},
        **summary(alone, own),
        "differences": differences,
        "verdict": word,
        "why": why,
        "metrics": {"accuracy": summary(alone, own)},
        "stages": {"assistant": [v - 1 for v in own]},
        "best": summary([a + 1 for a in alone], [b + 2 for b in own]) if reference else None,
        "seconds": [10.0 + s for s in seeds],
        "cost": cost([0.5 + s for s in seeds]),
        "folders": [f"{'rkd' if reference else 'kd'}_0123/seed{s}" for s in seeds],
        "controls": [f"shared/alone_4567/seed{s}" for s in seeds],
        "against_reference": against,
    }


def cost(step):
    return {"stages": ["distilled"], "seconds": {"step": step, "training": [9 * s for s in step]}}


def comparison(*seeds):
    """What compare.py writes of two configs, in the order of the seeds."""
    control = {"stage": "alone", "configs": ["kd", "rkd"], "values": [ALONE[s] for s in seeds]}
    return {
        "task": TASK,
        "primary": "accuracy",
        "higher_is_better": True,
        "confidence": 0.95,
        "seeds": list(seeds),
        "devices": ["cpu"],
        "reference": "kd",
        "seconds": {"side_by_side": 1},
        "controls": [control | {"cost": cost([0.1 + s for s in seeds])}],
        "configs": {"kd": row(seeds, KD, None), "rkd": row(seeds, RKD, KD)},
        "shared": [],
        "notes": ["one note"],
    }


def test_the_parts_are_the_whole():
    whole, merged = comparison(0, 1, 2, 3), merge(comparison(3, 1), comparison(0, 2))
    parts = merged.pop("parts")
    assert merged == whole
    assert [part["seeds"] for part in parts] == [[3, 1], [0, 2]]
    three = merge(merge(comparison(3), comparison(1)), comparison(2, 0))
    assert [part["seeds"] for part in three.pop("parts")] == [[3], [1], [2, 0]]
    assert three == whole


def test_each_parts_teacher_is_told():
    other = comparison(2)
    other["configs"]["kd"]["teachers"]["teacher"] = [71.5]
    merged = merge(comparison(0, 1), other)
    assert merged["configs"]["kd"]["teachers"] == {"teacher": [70.0, 71.5]}
    assert merged["configs"]["rkd"]["teachers"] == {"teacher": [70.0]}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r.update(seeds=[1, 3]), "both comparisons have seed 1"),
        (lambda r: r.update(primary="map"), "another primary: 'accuracy' and 'map'"),
        (lambda r: r.update(reference="rkd"), "another reference"),
        (lambda r: r["configs"].pop("rkd"), "other configs, or of one that has changed: rkd"),
        (lambda r: r["configs"]["kd"].update(folders=["kd_99/seed2"] * 2), "has changed: kd"),
        (lambda r: r["controls"][0].update(configs=["kd"]), "'alone' serves kd, rkd in one"),
    ],
)
def test_what_does_not_belong_together(change, message):
    other = comparison(2, 3)
    change(other)
    with pytest.raises(ConfigError, match=message):
        merge(comparison(0, 1), other)


def test_parts_of_other_weights_are_not_one():
    first, other = comparison(0, 1), comparison(2, 3)
    for part, weights, code in ((first, "aa", "1"), (other, "aa", "2")):
        part["configs"]["kd"]["sources"] = {"file t.pth": [weights], "code losses": [code]}
    merged = merge(first, other)
    assert merged["configs"]["kd"]["sources"] == {"code losses": ["1", "2"], "file t.pth": ["aa"]}
    assert merged["notes"][1:] == ["kd: the code of losses: not the same for all of its numbers"]
    other["configs"]["kd"]["sources"]["file t.pth"] = ["bb"]
    with pytest.raises(ConfigError, match="other weights or data: of kd, the file 't.pth'"):
        merge(first, other)


def test_page_says_every_number():
    text = page({"some images": comparison(0, 1, 2, 3), "others": comparison(0, 1)})
    lines = text.splitlines()
    assert lines[0] == "# Results" and "## some images" in lines and "## others" in lines
    mean, spread = statistics.fmean(RKD.values()), statistics.stdev(RKD.values())
    (first, *_) = [line for line in lines if line.startswith("| rkd ")]
    assert f"{mean:.2f} ± {spread:.2f}" in first and "against kd" in text
    assert "| rkd | 3 | 61.000 | 66.500 | +5.500 |" in lines
    assert "| kd | assistant | 62.88 ± 2.72 | 63.00  64.50  59.00  65.00 |" in lines
    assert any(line.startswith("| rkd | best accuracy of several ev") for line in lines)
    table = [line for line in lines if line.startswith("|")]
    assert all(line.count("|") == 9 for line in table[:4]) and "- one note" in lines


def test_another_reference():
    """The differences to it are those of the values, both ways, and so are their notes."""
    first = comparison(0, 1, 2, 3)
    seen = with_reference(first, "rkd")
    differences = [KD[seed] - RKD[seed] for seed in range(4)]
    against = seen["configs"]["kd"]["against_reference"]
    assert against["differences"] == differences
    assert (against["mean"], against["low"], against["high"]) == interval(differences)
    assert against["verdict"] == verdict(differences, True)[0]
    assert seen["configs"]["rkd"]["against_reference"] is None
    assert seen["notes"][0] == "one note" and seen["notes"][1].startswith("against rkd: ")
    back = with_reference(seen, "kd")
    assert back["configs"] == first["configs"] and len(back["notes"]) == 2
    with pytest.raises(ConfigError, match="got 'rdk'; did you mean 'rkd'"):
        with_reference(first, "rdk")


@pytest.mark.parametrize(
    "names, short",
    [
        (["a_kd_small", "a_rkd_kd_small"], ["kd", "rkd_kd"]),
        (["a_kd_x_small", "a_dml_small"], ["kd_x", "dml"]),
        (["kd", "kd_weight9"], ["kd", "kd_weight9"]),
        (["a_kd", "a_rkd"], ["kd", "rkd"]),
        (["a_b_b", "a_b"], ["b_b", "b"]),
        (["only_one"], ["only_one"]),
    ],
)
def test_short_names(names, short):
    assert short_names(names) == dict(zip(names, short))


def test_tables_have_short_names():
    text = json.dumps(comparison(0, 1))
    for name in ("kd", "rkd"):
        text = text.replace(f'"{name}"', f'"a_{name}_b"')
    result = json.loads(text) | {"notes": ["a_rkd_b is not a_kd_b"]}
    seen = with_short_names(result)
    assert list(seen["configs"]) == ["kd", "rkd"] and seen["reference"] == "kd"
    assert seen["controls"][0]["configs"] == ["kd", "rkd"]
    assert seen["notes"] == ["a config's whole name is a_…_b", "rkd is not kd"]
    assert with_short_names(seen) == seen
    shown = page({"x": result})
    assert "| rkd | 0 |" in shown and "a_rkd" not in shown
    assert with_reference(result, "rkd")["reference"] == "a_rkd_b"


def test_command(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    files = [tmp_path / "a" / "compare.json", tmp_path / "b.json"]
    for path, seeds in zip(files, ((0, 1), (2, 3))):
        path.write_text(json.dumps(comparison(*seeds)))
    assert list(read_comparisons(files)) == ["a", "b"]
    together = tmp_path / "together.json"
    main([*map(str, files), "--merge", str(together)])
    assert json.loads(together.read_text())["seeds"] == [0, 1, 2, 3]
    main([str(together), "--page", str(tmp_path / "page.md")])
    assert (tmp_path / "page.md").read_text().startswith("# Results\n\nEach student")
    main([str(files[0])])
    assert "against kd" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is no comparison"),
        ("[]", "it lacks configs, controls, primary, seeds, task"),
        (json.dumps({"stages": {}}), "expected what compare.py writes"),
    ],
)
def test_files_that_are_none(text, message, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_comparisons([path])


def test_two_of_one_name(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.json").write_text(json.dumps(copy.copy(comparison(0))))
    with pytest.raises(ConfigError, match="two comparisons are called 'x'"):
        read_comparisons([tmp_path / "a" / "x.json", tmp_path / "b" / "x.json"])


def measured():
    """``(file, config, row)`` of what is kept in the repository's results."""
    for path in sorted((ROOT / "results").glob("*.json")):
        for name, found in json.loads(path.read_text())["configs"].items():
            (config,) = (
                path
                for path in (ROOT / "configs").glob("*/*.py")
                if f"{path.parent.name}_{path.stem}" == name
            )
            yield pytest.param(config, found, id=name)


@pytest.mark.parametrize("config, found", list(measured()))
def test_a_configs_header_says_what_was_measured(config, found):
    header = " ".join(config.read_text().split("_base_")[0].replace("#", " ").split())
    for arm in ("alone", "distilled"):
        values = found[arm]
        said = f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
        assert said in header, f"{config.name}: expected {said!r} for {arm}"
    assert f"over {len(found['alone'])} seeds" in header


def test_the_page_of_results_is_what_the_command_writes():
    found = read_comparisons(sorted((ROOT / "results").glob("*.json")))
    assert (ROOT / "docs" / "measured.md").read_text() == page(found), (
        "run: python tools/results.py results/*.json --page docs/measured.md"
    )
