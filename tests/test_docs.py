"""What README.md and docs/ say is there is there, and what is there is said."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from kdtasks.detection.models import retinanet
from kdtasks.engine import builder, config_keys
from kdtasks.engine.key_table import key_table
from kdtasks.representation.command import distill

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    path for folder in (".", "docs", "docs/*", "configs/*") for path in ROOT.glob(f"{folder}/*.md")
)
TASKS = sorted(path.parent.name for path in ROOT.glob("kdtasks/*/trainer.py"))


def test_the_page_of_keys_is_that_of_the_code():
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == key_table(), "write it anew: python -m kdtasks.engine.key_table > docs/config.md"
    named = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(named) == len(set(named)) and set(config_keys.KEYS) <= set(named)
    for prefix, keys in (
        ("data", config_keys.DATA_KEYS),
        ("student", config_keys.MODEL_KEYS),
        ("teacher", config_keys.TEACHER_KEYS),
        ("losses.<name>", config_keys.LOSS_KEYS),
        ("stages.<k>", config_keys.STAGE_KEYS),
    ):
        assert {f"{prefix}.{key}" for key in keys} <= set(named)


# Tables and links ---------------------------------------------------------------------------------
def broken_tables(text: str) -> list[str]:
    """What keeps a table of a Markdown text from being shown whole: a row of other cells, or one
    with no head above it.
    """
    found, table = [], []
    for number, line in enumerate(
        [
            *re.sub(
                r"```.*?```", lambda code: "\n" * code[0].count("\n"), text, flags=re.DOTALL
            ).splitlines(),
            "",
        ],
        1,
    ):
        if line.startswith("|"):
            table.append((number, len(re.findall(r"(?<!\\)\|", line)) - 1, line))
            continue
        if table and not (len(table) > 1 and re.fullmatch(r"(\| *:?-+:? *)+\|", table[1][2])):
            found.append(f"line {table[0][0]}: a table without a head: {table[0][2][:60]}")
        found += [
            f"line {n}: {cells} cells, not {table[0][1]}"
            for n, cells, _ in table
            if cells != table[0][1]
        ]
        table = []
    return found


def test_broken_tables_are_found():
    head = "| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert not broken_tables(f"text\n\n{head}\ntext\n{head}") and not broken_tables(
        "```\n| 1 | 2 |\n```\n"
    )
    assert broken_tables(f"{head}\n| 3 | 4 |\n") == ["line 5: a table without a head: | 3 | 4 |"]
    assert broken_tables(f"{head}| 3 | 4 | 5 |\n") == ["line 4: 3 cells, not 2"]
    assert broken_tables(f"{head}| `3|4` | 5 |\n") == [
        "line 4: 3 cells, not 2"
    ] and not broken_tables(f"{head}| `3\\|4` | 5 |\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_whole_and_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    assert not broken_tables(text)
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    assert [
        link
        for link in links
        if not re.match(r"https?:", link) and not (page.parent / link).exists()
    ] == []


# Names --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("package", ["general", *TASKS])
def test_every_public_name_of_a_package_stands_in_the_readme(package):
    names = importlib.import_module(f"kdtasks.{package}").__all__
    # its methods are those of general
    assert names or package == "classification"
    assert [name for name in names if f"`{name}`" not in README] == []


def test_the_table_of_methods_names_what_its_files_have():
    rows = re.findall(
        r"^\|[^|]*\|[^|]*\| (\[[^|]*\]\(kdtasks/\w+/\w+\.py\)) \|([^|]*)\|", README, re.MULTILINE
    )
    assert len(rows) >= 16
    for links, names in rows:
        files = [path.replace("/", ".") for path in re.findall(r"\((kdtasks/\w+/\w+)\.py\)", links)]
        for name in re.findall(r"`(\w+)`", names):
            task = importlib.import_module(files[0].rpartition(".")[0])
            assert getattr(task, name).__module__ in files


# that help to make some
NO_DATA_SETS = {
    "load_embeddings",
    "save_labels",
    "data_root",
    "labelled_subset",
    "split_classes",
    "patch_shapes",
    "targets_of",
    "unaugmented",
}


@pytest.mark.parametrize("task", TASKS)
def test_own_data_names_every_function_that_makes_a_data_set(task):
    section = README.partition("## Own data\n")[2].partition("\n## ")[0]
    module = importlib.import_module(f"kdtasks.{task}.data")
    made = [
        name
        for name, thing in vars(module).items()
        if inspect.isfunction(thing)
        and (thing.__module__ == module.__name__ or name in getattr(module, "__all__", ()))
        and not name.startswith("_")
        and name not in NO_DATA_SETS
    ]
    assert (
        made
        and [
            name
            for name in made
            if f"{module.__name__}.{name}'" not in section and f"`{name}`" not in section
        ]
        == []
    )


def test_the_lines_of_config_under_own_data_are_right():
    lines = re.findall(r"`(dict\(.*\))` \|$", README.partition("## Own data\n")[2], re.MULTILINE)
    assert len(lines) > 15
    for line in lines:
        builder.check(eval(line.replace("…", "None"), {"dict": dict}), line)


# Code ---------------------------------------------------------------------------------------------
def python_of(heading: str) -> list[str]:
    """The blocks of Python below a heading of README.md."""
    section = re.split(r"\n##+ ", README.partition(f"# {heading}\n")[2])[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


class Net(nn.Module):
    """With the parts that README.md names."""

    def __init__(self):
        super().__init__()
        self.layer3, self.fc = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.layer3(x).relu())


def test_the_plain_loop_trains_and_saves_the_student_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = python_of("A plain loop")
    batches = [(torch.randn(5, 4), torch.randint(3, (5,))) for _ in range(3)]
    student, teacher = Net(), Net()
    before = [[p.clone() for p in net.parameters()] for net in (student, teacher)]
    exec(code, {"student": student, "teacher": teacher, "loader": batches})
    after = [list(net.parameters()) for net in (student, teacher)]
    assert not any(map(torch.equal, before[0], after[0]))
    assert all(map(torch.equal, before[1], after[1]))
    Net().load_state_dict(torch.load("student.pth", weights_only=True), strict=True)


def test_the_lines_for_detectors_give_the_losses_that_they_say():
    code, config = python_of("Detectors")
    names = {"student": retinanet(num_classes=2), "teacher": retinanet(num_classes=2)}
    boxes = {"boxes": torch.tensor([[5.0, 5.0, 40.0, 30.0]]), "labels": torch.tensor([1])}
    names |= {"images": [torch.rand(3, 64, 64)], "targets": [boxes]}
    exec(code, names)
    said = re.findall(r"loss_\w+", code.rpartition("#")[2])
    assert set(said) == set(names["losses"]) and len(said) == 3
    # runs inside MMDetection, which is not here
    made: dict = {}
    exec(config, made)
    loss = made["model"]["losses"]["loss_adl"]
    builder.check(loss, "loss_adl", reserved=("of",))
    assert (ROOT / "kdtasks" / "detection" / "plugin.py").read_text().count("class DistillDetector")


def test_the_three_lines_of_distillation_without_labels_are_a_call_that_can_be_made():
    (code,) = python_of("A pretrained backbone teaches your small one, without labels")
    call = next(n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call))
    given = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    bound = inspect.signature(distill).bind(*map(ast.literal_eval, call.args), **given)
    for name in ("student", "teacher"):
        builder.resolve(bound.arguments[name], name)
        builder.check({"type": bound.arguments[name]}, name)
    assert len(re.findall(r"```python\n", README)) == 4, "a block of Python without a test"


def test_the_readme_says_that_opening_a_config_runs_it():
    for page in (README, (ROOT / "docs" / "config.md").read_text(encoding="utf-8")):
        assert re.search(
            r"A config is a Python program: opening one, with any tool, "
            r"runs\s+it",
            page,
        )
