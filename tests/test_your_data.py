"""The pages "your data in ten minutes", followed to the letter with data that nobody prepared: their
configs pass the check of a run, and their three errors are what they say. Slow: the whole commands.
"""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdtasks import cli
from kdtasks.engine import config as configs
from kdtasks.engine.check import check
from kdtasks.engine.class_checks import odd_classes
from kdtasks.engine.dry_run import dry_run
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.experiment import Experiment
from tests.browser import CHROMIUM, Browser, check_whole

PAGES = Path(__file__).parents[1] / "docs" / "your-data"
CLASSES = ("cross", "disc", "ring", "square")
# how the same content lies in files that come from anywhere
KINDS = ("RGB .jpg", "L .JPG", "RGBA .png", "P .png", "RGB .bmp", "LA .png", "CMYK .jpeg")


def photo(path: Path, width: int, height: int, number: int, kind: str = "") -> Path:
    """Noise with a bright square, whose place and size the number says; returns the file."""
    mode, _, suffix = (kind or KINDS[number % len(KINDS)]).partition(" ")
    draw = np.random.default_rng(number)
    pixels = draw.integers(0, 120, (height, width, 3), dtype=np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = 60 * (number % 4) + 60
    path = path.with_suffix(suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def class_folders(root: Path, count: int, side: int = 40) -> None:
    """Some images lie deeper; names have spaces and other letters, and there is what is no image."""
    for k, name in enumerate(CLASSES):
        for i in range(count):
            photo(root / name / ("" if i % 3 else "täg 2") / f"{i:03} ü", side, side, 4 * i + k)
    (root / "cross" / "Thumbs.db").write_bytes(b"no image")


def photos_with_boxes(folder: Path) -> None:
    """As another tool exports them: folders in file_name, categories that are not 1, 2, … and out of
    order, no area, no iscrowd, a box that is cut off, photos without a box.
    """
    categories = [{"id": 90, "name": "red cell"}, {"id": 7, "name": "white cell"}]
    for split, count in (("train", 12), ("test", 8)):
        images, annotations = [], []
        for k in range(count):
            width, height = (96, 72) if k % 2 else (72, 96)
            file = photo(folder / "photos" / split / "a" / f"{k}", width, height, k)
            name = file.relative_to(folder / "photos").as_posix()
            images.append({"id": 1000 - k, "file_name": name, "width": width, "height": height})
            if k % 4 == 3:
                continue
            box = [width / 4, height / 4, width / 4, height / 4] if k % 4 else [60, 40, 40.5, 30]
            known = {"id": k, "image_id": 1000 - k, "category_id": (90, 7)[k % 2], "bbox": box}
            annotations.append(known)
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def prepare(task: str, folder: Path) -> None:
    """What "The folders" of a page asks for."""
    if task in ("classification", "incremental"):
        class_folders(folder / "photos" / "train", 16)
        class_folders(folder / "photos" / "test", 4)
    elif task == "metric_learning":
        class_folders(folder / "photos", 16)
    elif task == "detection":
        photos_with_boxes(folder)
    elif task == "super_resolution":
        for split in ("train", "test"):
            photo(folder / "photos" / split / "0", 160, 128, 0, "RGB .png")
            photo(folder / "photos" / split / "deeper" / "1", 131, 97, 1)
    else:
        class_folders(folder / "labelled", 4)
        for k in range(24):
            photo(folder / "photos" / ("a" if k % 2 else "b") / f"{k}", 50 + k, 40, k)


def text_of(task: str) -> str:
    return (PAGES / f"{task}.md").read_text(encoding="utf-8")


def config_of(task: str) -> str:
    """The config of a page; of ``representation`` a command writes it."""
    return re.findall(r"```python\n(.*?)```", text_of(task), re.DOTALL)[0]


def errors_of(task: str) -> list[str]:
    told = text_of(task).partition("## Three errors")[2]
    return [" ".join(text.split()) for text in re.findall(r"```text\n(.*?)```", told, re.DOTALL)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of each task the folder that its page describes, made once."""
    made = {}

    def folder(task: str) -> Path:
        if task not in made:
            made[task] = tmp_path_factory.mktemp(task)
            prepare(task, made[task])
        return made[task]

    return folder


@pytest.fixture
def enter(folders, monkeypatch):
    def entered(task: str) -> Path:
        monkeypatch.chdir(folders(task))
        monkeypatch.setenv("KDTASKS_DATA", "data")
        return folders(task)

    return entered


WITH_CONFIG = ("classification", "detection", "metric_learning", "super_resolution", "incremental")


def checked(text: str) -> None:
    Path("mine.py").write_text(text, encoding="utf-8")
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        check(Experiment(configs.load("mine.py")))


@pytest.mark.parametrize("task", WITH_CONFIG)
def test_the_config_of_the_page_fits_its_folders(task, enter):
    enter(task)
    checked(config_of(task))


# Of each of a page's three errors what a person has written instead.
MISTAKES = {
    "classification": [
        ("photos/train", "photos/trian"),
        (", size=32)", ")"),
        ("num_classes=4", "num_classes=3"),
    ],
    "detection": [
        ("train.json", "trian.json"),
        ('images="photos"', 'images="pictures"'),
        ("batch_size", "batch_sise"),
    ],
    "metric_learning": [
        ("test_classes=0.5", "test_classes=0.9"),
        ('root="photos"', 'root="photo"'),
        ("test_classes", "test_clases"),
    ],
    "super_resolution": [
        ("patch=32", "patch=400"),
        ("photos/train", "photos/trian"),
        ("patch=", "patchsize="),
    ],
    "incremental": [
        ("sizes=(2, 2),\n        dataset", "sizes=(2, 3),\n        dataset"),
        ("sizes=(2, 2),\n    network", "size=(2, 2),\n    network"),
        ("photos/train", "photos/trian"),
    ],
}


@pytest.mark.parametrize(
    "task, number", [(task, k) for task, found in MISTAKES.items() for k in range(len(found))]
)
def test_an_error_is_what_the_page_says(task, number, enter, monkeypatch):
    folder, (right, wrong) = enter(task), MISTAKES[task][number]
    text = config_of(task)
    assert right in text and len(errors_of(task)) == 3
    if (task, number) == ("classification", 1):
        folder = folder / "of_other_sizes"
        photo(folder / "photos/train/cross/000", 48, 48, 0, "RGB .jpg")
        photo(folder / "photos/train/disc/zz", 60, 40, 0, "RGB .jpg")
        monkeypatch.chdir(folder)
    with pytest.raises(Exception) as found:
        checked(text.replace(right, wrong))
    assert " ".join(str(found.value).split()) == errors_of(task)[number]


@pytest.mark.parametrize(
    "right, wrong, message",
    [
        ("optimizer =", "optimiser =", "no key 'optimiser'; did you mean 'optimizer'?"),
        (
            "lr=0.05",
            'lr="0.05"',
            "optimizer.lr='0.05' (SGD): .*; lr='0.05' is text, not the number",
        ),
        ("width=8", 'width="8"', "student (resnet8): .*; width='8' is text, not the number 8"),
        ("length = 5", 'length = "5"', "length must be a number of epochs .* got '5'"),
        ("teacher = ", "_teacher = ", "supplies 'teacher', and there is no teacher; "),
        (", size=32)", ", size=0)", "data.train (image_folder): size=0: expected at least 1 pixel"),
    ],
)
def test_a_slip_is_named(right, wrong, message, enter):
    enter("classification")
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(ValueError, match=pattern):
        checked(config_of("classification").replace(right, wrong))


def test_a_dry_run_says_which_images_a_model_cannot_take(enter):
    enter("classification")
    Path("tiny.py").write_text(config_of("classification").replace(", size=32)", ", size=0)"))
    with pytest.raises(ConfigError, match=r"stage 'teacher': .* random images \(32, 3, 0, 0\)"):
        dry_run(Experiment(configs.load("tiny.py")))


def test_classes_that_the_test_lacks_or_nobody_has_are_told(enter, capsys):
    folder = enter("classification")
    text = config_of("classification")
    Path("right.py").write_text(text, encoding="utf-8")
    assert odd_classes(Experiment(configs.load("right.py"))) == []
    photo(folder / "few" / "cross" / "0", 40, 40, 0)
    text = text.replace("photos/test", "few").replace("num_classes=4", "num_classes=10")
    Path("odd.py").write_text(text, encoding="utf-8")
    assert odd_classes(Experiment(configs.load("odd.py"))) == [
        "the test data has no sample of 'disc', 'ring', 'square', of the training data's 4 classes",
        "student.num_classes=10, but the data has 4 classes: no sample is of the others",
    ]


DISTILL = [
    *("distill", "--data", "photos", "--labelled", "labelled", "--student"),
    *(
        "kdtasks.classification.models.resnet8",
        "--teacher",
        "kdtasks.classification.models.resnet8",
    ),
    *("--size", "16", "--epochs", "1", "--name", "mine"),
]


@pytest.mark.parametrize("number", range(3))
def test_an_error_of_the_command_is_what_the_page_says(number, enter, capsys):
    folder = enter("representation")
    given = list(DISTILL)
    if number == 0:
        given[2] = "photoz"
    elif number == 1:
        photo(folder / "flat" / "photos" / "0", 40, 40, 0)
        given[4] = "flat/photos"
    else:
        photo(folder / "one" / "cat" / "0", 40, 40, 0)
        photo(folder / "one" / "cat" / "1", 40, 40, 1)
        photo(folder / "one" / "dog" / "0", 40, 40, 0)
        given[4] = "one"
    with pytest.raises(SystemExit), warnings.catch_warnings(action="ignore"):
        cli.main([*given, "--name", f"mine{number}"])
    said = " ".join(capsys.readouterr().err.split())
    assert said.removeprefix("error: ").replace("flat/", "") == errors_of("representation")[number]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("chromium")) if CHROMIUM else None
    yield opened
    if opened:
        opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("task", [*WITH_CONFIG, "representation"])
def test_the_command_of_the_page_ends_with_its_table_and_its_report(
    task, enter, capsys, browser, drawn_report
):
    folder = enter(task)
    if task == "representation":
        cli.main([*DISTILL, "--name", "run"])
    else:
        (folder / "run.py").write_text(config_of(task), encoding="utf-8")
        assert "kdtasks train mine.py" in text_of(task)
        cli.main(["train", "run.py", "--device", "cpu"])
    said = capsys.readouterr().out
    run = folder / "work_dirs" / "run" / "seed0"
    assert "distilled" in said and (run / "student.pth").exists()
    report = (run / "report.html").read_text("utf-8")
    assert "<figure" in report and "could not be made" not in report
    for width in (390, 1440) if browser else ():
        assert check_whole(browser, run / "report.html", width)
