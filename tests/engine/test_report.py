"""The report holds what the run found, in one file that needs nothing else, whatever state the run
is in.
"""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console

from kdtasks.engine import config as configs
from kdtasks.engine.report import facts, figures, stage_colors, write_report
from kdtasks.engine.run import Run
from kdtasks.engine.show import table
from kdtasks.engine.task import Metric, Task

pytestmark = pytest.mark.usefixtures("drawn_reports")

SMALL = Path(__file__).parent / "small" / "small.py"
CE = {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}
KD = {"type": "kdtasks.general.KDLoss", "of": ("student", "teacher"), "weight": 0.9}
BOTH = {"loss_cls": CE, "loss_kd": KD}
VOID = {"meta", "img", "br", "wbr", "hr", "link", "input", "source"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = Run(small(), tmp_path_factory.mktemp("runs") / "whole", name="general_small", quiet=True)
    run.train()
    return run


def small(**options):
    return configs.load(
        SMALL, {key.replace("__", "."): value for key, value in {"length": 1, **options}.items()}
    )


class Page(HTMLParser):
    """Tags that are opened are closed in order; texts, attributes and pictures are kept."""

    def __init__(self, path):
        super().__init__()
        self.open, self.texts, self.links, self.images, self.rows, self.styles = (
            [],
            [],
            [],
            [],
            [],
            "",
        )
        self.narrow, self.figures, self.viewport = [], 0, False
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [
            v
            for k, v in attributes.items()
            if k in ("src", "href", "srcset", "data", "action", "poster") and v
        ]
        if tag == "img":
            self.images.append(attributes)
        if tag == "source":
            self.narrow.append(attributes["srcset"])
        self.figures += tag == "figure"
        self.viewport |= attributes.get("name") == "viewport"
        if tag == "th":
            assert attributes["scope"] == "col"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] in ("style", "script"):
            self.styles += text
            return
        self.texts.append(text)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += text

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def html(run):
    """The report as it is written, its white space as a browser takes it."""
    write_report(run)
    return " ".join((run.work_dir / "report.html").read_text(encoding="utf-8").split())


def read(run):
    """The report, checked for what holds of every one of them."""
    path = run.work_dir / "report.html"
    page = Page(path)
    assert path.stat().st_size < 2_000_000
    # nothing else is loaded
    assert sorted(page.links) == sorted([*(image["src"] for image in page.images), *page.narrow])
    assert not re.search(r"url\(|@import|https?:|fetch|XMLHttp|\beval", page.styles)
    assert page.viewport
    for image in [*page.images, *({"src": uri, "alt": "as its image"} for uri in page.narrow)]:
        kind, _, code = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(code, validate=True)))
        picture.load()
        assert picture.format == "PNG" and len(picture.convert("L").getcolors()) > 10
        # pieces of a gallery have one text for all
        assert image["alt"] or "pieces" in path.read_text(encoding="utf-8")
    assert not re.search(r"\b(nan|inf|None)\b", page.text.partition("The whole config")[0])
    assert not list(run.work_dir.glob(".*tmp"))
    return page


def test_each_stage_and_each_number_of_the_results_is_in_the_table(whole):
    page = read(whole)
    results = json.loads((whole.work_dir / "results.json").read_text())
    head, *rows = page.rows
    assert head == [
        "stage",
        "accuracy",
        "accuracy_top5",
        "against alone",
        "time",
        "parameters",
        "taught by",
        "losses × weight",
    ]
    assert [row[0] for row in rows] == list(results["stages"]) == ["teacher", "alone", "distilled"]
    for row, values in zip(rows, results["stages"].values()):
        assert row[1] == f"{values['accuracy']:.2f}" and row[2] == f"{values['accuracy_top5']:.2f}"
        assert row[4] == f"{values['seconds']:.1f} s"
        model = whole.experiment.model("teacher" if row[0] == "teacher" else "student")
        assert row[5] == f"{sum(p.numel() for p in model.parameters()):,}"
    gain = results["stages"]["distilled"]["accuracy"] - results["stages"]["alone"]["accuracy"]
    assert [row[3] for row in rows] == ["", "", f"{gain:+.2f}".replace("-", "−")]
    assert [row[6] for row in rows] == ["–", "–", "teacher (teacher.last)"]
    assert [row[7] for row in rows] == [
        "loss_cls × 1",
        "loss_cls × 1",
        "loss_cls × 0.1loss_kd × 0.9",
    ]
    assert (
        "general_small" in page.text and "seed 0" in page.text and "Not finished" not in page.text
    )
    assert "tools/compare.py" in page.text and "Here it has loss_cls × 1." in page.text
    # bars, two of curves; three of the task
    assert page.figures == 3 + 3 and len(page.narrow) == 5
    assert "temperature=4.0" in page.text  # the config


def test_the_same_results_give_the_same_report(whole):
    before = (whole.work_dir / "report.html").read_bytes()
    state = torch.random.get_rng_state()
    write_report(Run(small(), whole.work_dir, name="general_small"))
    assert (whole.work_dir / "report.html").read_bytes() == before
    assert torch.equal(torch.random.get_rng_state(), state)


def test_no_global_state_of_matplotlib_is_changed(whole):
    import matplotlib
    from matplotlib._pylab_helpers import Gcf

    before = dict(matplotlib.rcParams)
    write_report(whole)
    assert dict(matplotlib.rcParams) == before and not Gcf.figs


def test_stages_that_are_not_finished_are_said(tmp_path):
    stop = {"type": "small_parts.StopAt", "stage": "alone", "iteration": 8}
    run = Run(small(length=3, custom_hooks=[stop]), tmp_path / "run", quiet=True)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    write_report(run)
    page = read(run)
    assert "Not finished: alone (iteration 6), distilled (not begun)" in page.text
    found = f"{run.done['teacher']['accuracy']:.2f}"
    assert [row[:2] for row in page.rows[1:]] == [
        ["teacher", found],
        ["alone", "–"],
        ["distilled", "–"],
    ]
    assert "No distilled student yet; accuracy so far: teacher" in page.text
    (run.work_dir / "stages" / "done.json").unlink()
    write_report(run)
    assert "No distilled student yet." in read(run).text


def test_nothing_begun(tmp_path):
    run = Run(small(), tmp_path, quiet=True)
    write_report(run)
    page = read(run)
    assert (
        not page.images
        and "teacher (not begun), alone (not begun), distilled (not begun)" in page.text
    )
    # the config, without a config.py
    assert "small_parts.Net" in page.text


def test_a_chain(tmp_path):
    config = small()
    config["models"] = {"assistant": {"type": "small_parts.Net", "width": 6}}
    config["stages"] = [
        {"name": "teacher", "model": "teacher", "losses": {"loss_cls": CE}},
        {
            "name": "assistant1",
            "model": "assistant",
            "teachers": {"teacher": "teacher.last"},
            "losses": BOTH,
        },
        {"name": "distilled", "teachers": {"teacher": "teacher.best"}, "losses": BOTH},
        {"name": "tuned", "student": "distilled", "losses": {"loss_cls": CE}, "role": "joint"},
    ]
    run = Run(config, tmp_path / "run", quiet=True)
    run.train()
    page = read(run)
    assert [row[0] for row in page.rows[1:]] == [
        "teacher",
        "assistant1",
        "alone",
        "distilled",
        "tuned",
    ]
    assert "against alone" in page.rows[0]
    colors = stage_colors(run)
    assert len({colors[name] for name in run.done}) == 5 and set(colors) >= {
        name for s in run.experiment.stages for name in s.teachers
    }


def test_a_run_without_a_control(tmp_path):
    config = {
        **small(),
        "stages": [
            {"name": "first", "losses": {"loss_cls": CE}},
            {"name": "tuned", "student": "first"},
        ],
    }
    run = Run(config, tmp_path / "run", quiet=True)
    run.train()
    page = read(run)
    assert [row[0] for row in page.rows[1:]] == ["first", "tuned"]
    assert "against alone" not in page.rows[0] and "This run has no stage alone" in page.text
    assert "the run has no control" in page.text


def test_a_teacher_from_a_file_and_a_task_without_pictures(whole, tmp_path, monkeypatch):
    file = whole.folder(whole.experiment.stages[0]) / "best.pth"
    run = Run(small(teacher__checkpoint=str(file)), tmp_path / "run", quiet=True)
    monkeypatch.setattr(run.experiment.task, "pictures", lambda run: [])
    run.train()
    page = read(run)
    assert [row[0] for row in page.rows[1:]] == ["alone", "distilled"] and page.rows[-1][
        6
    ] == "teacher (best.pth)"
    assert "Pictures" not in page.texts and page.figures == 3
    assert str(whole.work_dir) not in page.text.partition("The whole config")[0]


def test_pictures_that_fail_are_said_and_warned_of(whole, monkeypatch):
    def broken(run):
        raise ZeroDivisionError("no <images>")

    monkeypatch.setattr(whole.experiment.task, "pictures", broken)
    with pytest.warns(UserWarning, match="ZeroDivisionError: no <images>"):
        write_report(whole)
    assert "could not be made: ZeroDivisionError: no <images>" in read(whole).text


@pytest.mark.parametrize(
    "primary, higher, alone, distilled, want",
    [
        (
            "accuracy",
            True,
            70.0,
            72.5,
            "72.50 % accuracy, +2.50 against the same student alone (70.00 %).",
        ),
        (
            "psnr_y",
            True,
            31.0,
            30.5,
            "30.50 dB psnr y, −0.50 against the same student alone (31.00 dB); here the teacher "
            "did not help.",
        ),
        (
            "error",
            False,
            3.0,
            2.0,
            "2.00 error (lower is better), −1.00 against the same student alone (3.00).",
        ),
        (
            "error",
            False,
            2.0,
            3.0,
            "3.00 error (lower is better), +1.00 against the same student alone (2.00); here the "
            "teacher did not help.",
        ),
        (
            "map",
            True,
            40.0,
            40.0,
            "40.00 % map, +0.00 against the same student alone (40.00 %); no difference.",
        ),
        (
            "map",
            True,
            float("nan"),
            40.0,
            "40.00 % map; the control is not finished, so what the teacher brought is not known.",
        ),
    ],
)
def test_the_sentence_says_what_happened(tmp_path, primary, higher, alone, distilled, want):
    run = Run(small(), tmp_path)
    run.experiment.task = task(primary, higher)
    (tmp_path / "stages").mkdir()
    stages = {
        "alone": {primary: alone, "seconds": 3700.0, "cost": 100},
        "distilled": {primary: distilled, "seconds": 75.2, "matrix": [[1]]},
    }
    (tmp_path / "stages" / "done.json").write_text(json.dumps(stages))
    write_report(run)
    page = read(run)
    assert "distilled: " + want in page.text
    assert page.rows[2][-5:-3] == ["1 h 01 min", "1 min 40 s"] and page.rows[3][-5:-3] == [
        "1 min 15 s",
        "–",
    ]


def test_losses_that_are_not_finite_and_a_control_that_differs(tmp_path):
    config = small()
    config["stages"] = [
        {"name": "alone", "role": "control", "losses": {"loss_cls": CE}, "length": 2},
        {
            "name": "distilled",
            "student": "alone",
            "teachers": {"teacher": "teacher.pth"},
            "losses": BOTH,
        },
    ]
    run = Run(config, tmp_path, quiet=True)
    for stage in run.experiment.stages:
        run.folder(stage).mkdir(parents=True)
        history = [
            {"iteration": 1, "lr": 0.1, "loss_cls": 2.0},
            {"iteration": 2, "lr": 0.1, "loss_cls": float("nan")},
            {"iteration": 3, "lr": 0.1, "loss_cls": 1e-3},
            {"iteration": 3, "accuracy": float("inf")},
        ]
        (run.folder(stage) / "history.json").write_text(json.dumps(history))
    write_report(run)
    page = read(run)
    assert len(page.images) == 2
    assert (
        "distilled also differs from it in length" in page.text
        and "distilled starts from alone" in page.text
    )


def test_rounds_with_the_steps_of_the_control_are_said_to_be_so(tmp_path):
    rounds = [
        {"name": "alone", "role": "control", "losses": {"loss_cls": CE}, "length": 3},
        {"name": "first", "losses": {"loss_cls": CE}, "length": 2},
        {
            "name": "distilled",
            "student": "keep",
            "teachers": {"teacher": "teacher.pth"},
            "losses": BOTH,
            "length": 1,
        },
    ]
    said = []
    for length in (3, 2):
        stages = [{**rounds[0], "length": length}, *rounds[1:]]
        run = Run({**small(), "stages": stages}, tmp_path, quiet=True)
        said.append(html(run))
    assert "is the last of 2 stages" in said[0] and "as many steps as <code>alone</code>" in said[0]
    assert "as many steps as" not in said[1] and "so it has had more steps in all" in said[1]


METRICS = {
    "accuracy_on_*": Metric("%", listed=False),
    "accuracy*": Metric("%"),
    "map": Metric("%"),
    "psnr_y": Metric("dB"),
}


def task(primary="accuracy", higher=True):
    """A task without pictures."""
    return Task(
        SimpleNamespace(
            __name__="a_task",
            PRIMARY=primary,
            HIGHER_IS_BETTER=higher,
            METRICS=METRICS,
            evaluate=None,
            example=None,
            pictures=lambda run: [],
        )
    )


def growing(folder, finished):
    """A run in which both arms begin with a smaller network; nothing is trained."""

    def stage(name, width, *origins, **more):
        taught = (
            {"teachers": {"teacher": origins[1]}, "losses": BOTH}
            if origins[1:]
            else {"losses": {"loss_cls": CE}}
        )
        return {
            "name": name,
            "arguments": {"width": width},
            "student": origins[0] if origins else "fresh",
            **taught,
            **more,
        }

    rows = [
        stage("first", 2),
        stage("alone2", 3, "first", length=2),
        stage("alone", 4, "alone2", length=2, role="control"),
        stage("joint", 4),
        stage("taught2", 3, "first", "first"),
        stage("other", 3),
        stage("before", 4, "taught2", "taught2"),
        stage("distilled", 4, "before", "taught2", length=2),
    ]
    run = Run({**small(), "stages": rows, "teachers": {}}, folder, quiet=True)
    run.experiment.task = task()
    (folder / "stages").mkdir(exist_ok=True)
    values = {
        row["name"]: {
            "accuracy": 90.0 - 10 * k,
            "accuracy_on_1": 1.25,
            "seconds": 2.0,
            "class_counts": [2] * row["arguments"]["width"],
        }
        for k, row in enumerate(rows)
    }
    (folder / "stages" / "done.json").write_text(
        json.dumps({name: values[name] for name in finished})
    )
    return run


MANY = ["first", "alone2", "alone", "joint", "taught2", "other", "before", "distilled"]


def test_stages_on_the_way_are_apart_and_not_compared(tmp_path):
    run = growing(tmp_path, MANY)
    # "other" is smaller too, but leads nowhere
    assert run.experiment.on_the_way == {"first", "alone2", "taught2"}
    write_report(run)
    page = read(run)
    cut = page.rows.index(page.rows[0], 1)
    assert [row[0] for row in page.rows[1:cut]] == [
        "alone",
        "joint",
        "other",
        "before",
        "distilled",
    ]
    assert [row[0] for row in page.rows[cut + 1 :]] == ["first", "alone2", "taught2"]
    against, parameters = page.rows[0].index("against alone"), page.rows[0].index("parameters")
    assert [row[against] for row in page.rows[1:cut]] == [
        "",
        "−10.00",
        "−30.00",
        "",  # "before" is a step to "distilled"
        "−50.00",
    ]
    assert [row[against] for row in page.rows[cut + 1 :]] == [""] * 3
    sizes = {
        width: sum(p.numel() for p in run.experiment.model("student", width=width).parameters())
        for width in (2, 3, 4)
    }
    assert [row[parameters] for row in page.rows[cut + 1 :]] == [
        f"{sizes[width]:,}" for width in (2, 3, 3)
    ]
    assert "The 3 stages on the way there" in page.text and "accuracy_on_1" not in page.text
    assert "accuracy of each stage that has the whole network" in page.text
    ((_, figure),) = figures.draw(run)[0]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "alone",
        "joint",
        "other",
        "before",
        "distilled",
    ]
    colors = stage_colors(run)
    assert len({colors[name] for name in run.done if name not in run.experiment.on_the_way}) == 5


def test_before_any_stage_is_there_that_can_be_compared_all_are_drawn(tmp_path):
    run = growing(tmp_path, ["first", "alone2"])
    ((title, figure),) = figures.draw(run)[0]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "first",
        "alone2",
    ] and title == "accuracy of each stage"
    write_report(run)
    page = read(run)
    assert "against alone" not in page.rows[0] and "accuracy so far: alone2 80.00 %." in page.text


def test_arms_with_equally_many_steps_are_said_to_be_so(tmp_path):
    run = growing(tmp_path, [])
    assert (
        "<code>distilled</code> is the last of 3 stages that go on with one student, from "
        "<code>taught2</code> on; together they have as many steps as those from "
        "<code>alone2</code> to <code>alone</code>."
    ) in html(run)
    run.experiment.stages[1].length = 3
    assert "as many steps as" not in html(run)


def test_many_stages_that_are_not_finished_are_counted(tmp_path):
    rows = [{"name": f"s{k}", "losses": {"loss_cls": CE}} for k in range(31)]
    run = Run({**small(), "stages": rows}, tmp_path, quiet=True)
    assert html(run).count("(not begun)") == 20 and "s19 (not begun), and 11 more." in html(run)


def shown(run, width=120):
    text, experiment = io.StringIO(), run.experiment
    screen = Console(file=text, width=width)
    table(run.results, experiment.arms, experiment.task, experiment.on_the_way, screen)
    return text.getvalue()


def test_the_screen_shows_what_can_be_compared(tmp_path):
    text = shown(growing(tmp_path, MANY))
    assert [name for name in MANY if re.search(rf"│ {name} ", text)] == [
        "alone",
        "joint",
        "other",
        "before",
        "distilled",
    ]
    assert (
        "and 3 stages on the way there" in text
        and "-50.00" in text
        and "-40.00" not in text
        and "+20.00" not in text
        and "accuracy_on_1" not in text
    )
    early = shown(growing(tmp_path, ["first", "alone2"]))
    assert all(name in early for name in ("first", "alone2")) and "on the way" not in early


def test_the_weight_of_a_loss_is_short():
    schedule = {"type": "kdtasks.core.Linear", "start": 4 / 9, "end": 0, "until": 0.75}
    assert facts.weight_text({"weight": schedule}) == "Linear(start=0.4444, end=0, until=0.75)"
    assert facts.weight_text({"weight": 1 / 3}) == "0.333333" and facts.weight_text({}) == "1"


def test_running_mean_equals_a_loop():
    values, window = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0], 2
    slow = []
    for i in range(len(values)):
        near = [values[j] for j in range(len(values)) if abs(i - j) <= window]
        slow.append(sum(near) / len(near))
    assert facts.running_mean(values, window) == pytest.approx(slow)


def test_large_pictures_are_stored_less_finely():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5))
    noise = torch.rand(800, 800, 3, generator=torch.Generator().manual_seed(0)).numpy()
    figure.add_axes((0, 0, 1, 1)).imshow(noise, interpolation="nearest")
    (stored,) = figures.embed([("noise", figure)])
    (((uri, width, _),),) = stored.rows
    assert width == stored.width == 500 and len(uri) < 1.4 * figures.LARGEST
    assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == (600, 600)
