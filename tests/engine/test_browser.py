"""Reports and comparisons in a real browser, on a phone's width and a screen's: everything is
there, nothing is cut off or asked for elsewhere, and tables sort.
"""

import json
import shutil
from pathlib import Path

import pytest
from small_runs import small

from kdtasks.engine.compare.files import write_page
from kdtasks.engine.report import write_report
from kdtasks.engine.run import Run
from tests.browser import Browser, check_whole, needs_chromium

pytestmark = [needs_chromium, pytest.mark.usefixtures("drawn_reports")]
RESULTS = Path(__file__).parents[2] / "results" / "classification_digits.json"
COLUMN = """(() => {
    const head = [...document.querySelectorAll('th')].find(h => h.textContent.trim() === %s);
    head.querySelector('button').focus();
    const rows = [...head.closest('table').tBodies[0].rows];
    return [head.ariaSort, rows.map(row => row.cells[head.cellIndex].textContent.trim())];
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pages(undisturbed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(undisturbed.work_dir, folder / "run")
    write_report(
        Run(small(), folder / "run", name="a_run_with_a_name_longer_than_any_phone_is_wide")
    )
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_page({"first": content, "second": content}, folder / "compare.html")
    return [folder / "run" / "report.html", folder / "compare.html"]


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_cut_off_or_loaded_from_elsewhere(browser, pages, width, dark):
    for path in pages:
        images = check_whole(browser, path, width, dark)
        assert len(images) > 5 or path.stem == "compare"
        page, ink = (
            sum(map(int, browser.run(f"getComputedStyle(document.body).{key}")[4:-1].split(",")))
            for key in ("backgroundColor", "color")
        )
        assert (page < 100 and ink > 600) if dark else (page > 700 and ink < 150)


def column(browser, title):
    """How a column is sorted, and its texts; its button has the focus then."""
    return browser.run(COLUMN % json.dumps(title))


def test_tables_sort_by_value_with_the_keyboard(browser, pages):
    browser.open(pages[1])
    way, before = column(browser, "against alone [95%]")
    assert way == "none" and before[:2] == ["", ""]
    values = [float(text.split()[0]) for text in before[2:]]
    browser.press("Enter")
    way, texts = column(browser, "against alone [95%]")
    # what has no number stays last
    assert way == "ascending" and texts[-2:] == ["", ""]
    assert [float(text.split()[0]) for text in texts[:-2]] == sorted(values) != values
    browser.press(" ")
    way, texts = column(browser, "against alone [95%]")
    assert way == "descending" and texts[-2:] == ["", ""]
    assert [float(text.split()[0]) for text in texts[:-2]] == sorted(values, reverse=True)
    browser.press("Enter")
    assert column(browser, "against alone [95%]") == ["none", before]
    # a name, by its letters
    names = column(browser, "arm")[1]
    browser.press("Enter")
    assert column(browser, "arm") == ["ascending", sorted(names)]


def test_numbers_are_read_as_they_are_written(browser, pages):
    browser.open(pages[0])
    texts = [
        "−1.5 [−2, −1]",
        "320,260",
        "1 h 02 min",
        "2 min 03 s",
        "0.5 ms",
        "1.5 MB",
        "58 ± 3",
        "–",
    ]
    want = [-1.5, 320260, 3720, 123, 0.0005, 1.5e6, 58, None]
    assert browser.run(f"{json.dumps(texts)}.map(valueOf)") == want
