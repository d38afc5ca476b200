"""The pages of docs/: what they take from the code is as the code has it, and the site is built."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import from_docstrings
import pytest
import restructured

from kdtasks.detection import answers
from kdtasks.engine import config
from kdtasks.general.bss_distiller import _BOUNDARY
from kdtasks.incremental import DERDistiller, IncrementalDistiller
from kdtasks.representation.distiller import RepresentationDistiller

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
METHODS = sorted(path for path in (DOCS / "methods").glob("*.md") if path.stem != "index")
TEXT = {path: path.read_text(encoding="utf-8") for path in PAGES}
API = {name for text in TEXT.values() for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}


def test_docstrings_on_pages_are_those_of_the_code():
    stale = [path.name for path, text in TEXT.items() if from_docstrings.written(text) != text]
    assert not stale, "write them anew: python docs/site_code/from_docstrings.py"


def test_docstrings_become_markdown():
    text = (
        "With :math:`a\n+ b` of :func:`~kdtasks.general.kd_loss`,\n\n.. math::\n    x &= y\n\n"
        "    z &= |w|\n\n"
        "====  =====\n``k``  a | b\n      more\n====  =====\n\nas in::\n\n    code\n"
    )
    assert restructured.markdown(text, site=False) == (
        "With $`a + b`$ of `kd_loss`,\n\n```math\nx = y\n```\n\n```math\nz = |w|\n```\n\n"
        "| | |\n|---|---|\n| `k` | a \\| b more |\n\nas in:\n\n    code"
    )
    linked = '<autoref optional identifier="kdtasks.general.kd_loss"><code>kd_loss</code></autoref>'
    assert linked in restructured.markdown(text, site=True)


def rows_of_the_readme() -> list[tuple[str, list[str]]]:
    """Of each method in README's table its first file or folder, and its names."""
    section = (ROOT / "README.md").read_text("utf-8").partition("## Methods\n")[2]
    rows = re.findall(
        r"^\|[^|]*\|[^|]*\| \[[^]]*\]\((kdtasks/[\w/.]+)\)[^|]*\|([^|]*)\|", section, re.MULTILINE
    )
    return [(file, re.findall(r"`(\w+)`", names)) for file, names in rows]


def test_each_method_of_the_readme_has_its_page_with_all_of_its_names():
    rows = rows_of_the_readme()
    assert len(rows) > 35
    for file, names in rows:
        page = DOCS / "methods" / f"{Path(file).stem}.md"
        assert page in METHODS, f"{file} is in README's table: write {page.relative_to(ROOT)}"
        shown = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", TEXT[page], re.M)}
        assert names and set(names) <= shown, page.name
        assert f"({page.name})" in TEXT[DOCS / "methods" / "index.md"]


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_a_methods_page_has_its_parts_and_numbers_of_the_measured_results_only(page):
    parts = re.split(r"^## (.+)$", TEXT[page], flags=re.MULTILINE)
    assert parts[1::2] == ["What it needs", "Configs", "Measured here", "API"]
    assert "<!-- docstring of " in parts[0]
    measured = parts[6]
    linked = re.findall(r"\]\(([^)]+README\.md)\)", measured)
    sources = "\n".join((page.parent / link).read_text("utf-8") for link in linked)
    numbers = re.findall(r"\d+\.\d+", measured)
    assert linked or not numbers
    assert [number for number in numbers if number not in sources] == []


def test_each_task_has_a_page_on_own_data_whose_config_is_one(tmp_path):
    tasks = [path.parent.name for path in (ROOT / "kdtasks").glob("*/trainer.py")]
    assert {path.stem for path in (DOCS / "your-data").glob("*.md")} == set(tasks)
    for task in set(tasks) - {"representation"}:  # a command writes its config
        (code,) = re.findall(
            r"```python\n(.*?)```", TEXT[DOCS / "your-data" / f"{task}.md"], re.DOTALL
        )
        (tmp_path / f"{task}.py").write_text(code, encoding="utf-8")
        assert config.load(tmp_path / f"{task}.py")["task"] == f"kdtasks.{task}.trainer"


def test_every_public_name_has_its_description_and_every_description_a_name():
    packages = {path.parent.name for path in (ROOT / "kdtasks").glob("*/__init__.py")}
    described = {name.rpartition(".")[2] for name in API}
    for package in sorted(packages - {"engine", "images"}):
        module = importlib.import_module(f"kdtasks.{package}")
        assert set(getattr(module, "__all__", ())) <= described, package
    for name in API:
        owner, _, last = name.rpartition(".")
        found = hasattr(importlib.import_module(owner), last)
        assert found or importlib.import_module(name), name


def named_by_configs() -> set[str]:
    """What of ours a ``type`` of a config, or of a text, names."""
    files = [*(ROOT / "configs").rglob("*.py"), *(ROOT / "configs").rglob("*.md"), *PAGES]
    texts = [path.read_text("utf-8") for path in (ROOT / "README.md", *files)]
    return set(re.findall(r"""type=["'](kdtasks\.[\w.]+)["']""", "\n".join(texts)))


def test_what_configs_name_has_its_description():
    found = named_by_configs()
    assert len(found) > 100
    missing = []
    for name in sorted(found):
        module, _, last = name.rpartition(".")
        thing = getattr(importlib.import_module(module), last)
        home = thing.__module__
        known = {
            name,
            module,
            home,
            f"{home}.{thing.__qualname__}",
            f"{home.rpartition('.')[0]}.{last}",
        }
        # a task may have another one's function under its own name
        again = vars(importlib.import_module("kdtasks.classification.data")).get(last) is thing
        if API.isdisjoint(known) and not again:
            missing.append(name)
    assert missing == [], "write them into docs/api.md or the page of their method"


def test_every_distiller_that_supplies_tensors_stands_on_their_page():
    changes = r"(?:names|own_names|outputs|prepare)"
    own = re.compile(
        rf"^class (\w+)\(\w*Distiller\b[^)]*\):\n(?:(?!^class ).*\n)*?    def {changes}\(", re.M
    )
    found = [
        name
        for path in (ROOT / "kdtasks").rglob("*.py")
        for name in own.findall(path.read_text("utf-8"))
    ]
    assert len(found) >= 9
    page = TEXT[DOCS / "tensors.md"]
    assert [name for name in found if not re.search(rf"\.{name}(`| -->)", page)] == []


def test_every_name_of_a_tensor_stands_on_its_page():
    page = TEXT[DOCS / "tensors.md"]
    names = {*answers.OF_BOTH, *answers.OF_TEACHER, *answers.OF_STUDENT, *_BOUNDARY}
    for kind in (IncrementalDistiller, DERDistiller):
        names |= {*kind.own_names(kind.__new__(kind), "student")}
    names |= {"<teacher>.old", "<teacher>.heads", "student.attention", "student.attended"}
    names |= {"peers", "labelled", "index", "view"}
    assert [name for name in names if f"`{name}`" not in page] == []
    assert "`'<role>.embedding'`" in page and "`'<role>.map'`" in page
    own = set(RepresentationDistiller.names.__code__.co_consts)
    assert {".embedding", ".map"} <= own  # what the page says is what the class supplies


def test_the_example_of_the_first_page_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT[DOCS / "index.md"], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "index.md", "exec"), {})
    assert (tmp_path / "student.pth").is_file()


@pytest.mark.slow
def test_the_site_is_built_strictly(tmp_path):
    pytest.importorskip("mkdocs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert built.returncode == 0, built.stderr[-4000:]
    page = (tmp_path / "methods" / "kd.html").read_text("utf-8")
    assert "<math" in page and "$" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r'(?:src|href)="https?://[^"]*\.(?:js|css)"', page)
