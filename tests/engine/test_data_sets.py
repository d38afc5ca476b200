"""What the engine tells data sets: that a test set does not train, and which number each class has."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import ROOT, small

from kdtasks.classification.data import arrays
from kdtasks.core.cache import TeacherCache
from kdtasks.engine import cli
from kdtasks.engine.class_checks import check_source
from kdtasks.engine.data_sets import told
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.run import Run

# a class is a grey level: it can be read back
SHADES = {"ant": 10, "bee": 60, "cat": 110, "dog": 160, "eel": 210}


def folder(root, names, each=3):
    for name in names:
        (root / name).mkdir(parents=True)
        for k in range(each):
            Image.fromarray(np.full((8, 8, 3), SHADES[name] + k, np.uint8)).save(
                root / name / f"{k}.png"
            )
    return str(root)


def own_set(root, size=8):
    """A user's own map-style data set, by torchvision."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    return ImageFolder(root, v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]))


class OwnBatches:
    """A user's own batched data set: ``classes`` and ``target``, in an order of its own."""

    def __init__(self, root):
        files = own_set(root)
        self.classes = files.classes[::-1]
        self.images = torch.stack([image for image, _ in files])
        self.target = torch.tensor([len(self.classes) - 1 - y for y in files.targets])

    def __len__(self):
        return len(self.target)

    def batch(self, index, view, seed):
        return {"input": self.images[index], "target": self.target[index]}


class OwnDicts:
    """A user's own map-style data set that lists no targets."""

    def __init__(self, root):
        self.files = own_set(root)
        self.classes = np.array(self.files.classes[::-1])

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        image, y = self.files[i]
        return {"input": image, "target": self.classes.tolist().index(self.files.classes[y])}


KINDS = {
    "arrays": {
        "type": "kdtasks.classification.data.image_folder",
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
    },
    "files": {
        "type": "kdtasks.classification.data.image_folder",
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
        "small": False,
        "size": 8,
    },
    "torchvision": {
        "type": "kdtasks.classification.data.torchvision_set",
        "dataset": "ImageFolder",
        "size": 8,
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
    },
    "own": {"type": own_set},
    "batches": {"type": OwnBatches},
    "dicts": {"type": OwnDicts},
}


def run_of(tmp_path, kind, train, test, **changes):
    spec = KINDS[kind]
    changes = {
        "data.train": {**spec, "root": folder(tmp_path / "train", train)},
        "student.num_classes": len(train),
        "data.test": {**spec, "root": folder(tmp_path / "test", test)},
        "task": "kdtasks.classification.trainer",
        **changes,
    }
    return Run(small(**changes), tmp_path / "run", quiet=True)


def seen(loader):
    """{class by its grey level: the target that it comes with}"""
    levels = list(SHADES.values())
    found = {}
    for batch in loader:
        for image, y in zip(batch["input"], batch["target"]):
            level = float(image.mean() * 255)
            name = list(SHADES)[int(np.argmin([abs(level - shade - 1) for shade in levels]))]
            assert found.setdefault(name, int(y)) == int(y)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_classes_have_the_training_datas_numbers_in_every_split(tmp_path, kind):
    """Fewer of them, so that all would have shifted; and, in the sets of one's own, in another
    order.
    """
    run = run_of(tmp_path, kind, list(SHADES), ["bee", "dog", "eel"])
    loader, names = (
        run.experiment.test_loader(run.experiment.stages[-1]),
        list(run.experiment.data_set(run.experiment.config["data"], "train").classes),
    )
    assert seen(loader) == {name: names.index(name) for name in ("bee", "dog", "eel")}
    assert (
        loader.dataset.classes == names
        and loader.dataset is run.experiment.test_loader(run.experiment.stages[0]).dataset
    )
    assert [loader.dataset.path(i) if hasattr(loader.dataset, "path") else i for i in range(2)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dicts"])
def test_a_class_that_the_training_data_lacks(tmp_path, kind):
    run = run_of(tmp_path, kind, ["ant", "cat", "dog"], ["ant", "bee", "cat", "dog"])
    with pytest.raises(
        ConfigError,
        match=r"data.test: it has 1 classes that the training data "
        r"lacks: 'bee' \(3\).*3: \[.*'cat'.*4: "
        r"\[.*'bee'.*'drop'",
    ):
        run.experiment.test_loader(run.experiment.stages[-1])
    run = Run(
        {
            **run.experiment.config,
            "data": {**run.experiment.config["data"], "unknown_classes": "drop"},
        },
        tmp_path / "run",
        quiet=True,
    )
    names = list(run.experiment.data_set(run.experiment.config["data"], "train").classes)
    with pytest.warns(
        UserWarning,
        match=r"left out what is of the 1 classes that the training "
        r"data lacks: 'bee' \(3\)",
    ):
        loader = run.experiment.test_loader(run.experiment.stages[-1])
    assert seen(loader) == {"bee": -100, **{name: names.index(name) for name in names}}


def test_numbers_without_names_must_have_an_output(tmp_path):
    """Data sets that tell no classes: by the training data's, or else by what the model gives."""
    images = np.zeros((30, 8, 8), np.uint8)
    for train, message in (
        (list("abcdefghij"), "a target is 10, but there are 10 classes"),
        ([], "class number 10, but the model has 10 outputs"),
    ):
        made = {
            part: {"type": arrays, "images": images, "target": [top] * 30, "classes": names}
            for part, top, names in (("train", 9, train), ("test", 10, []))
        }
        with pytest.raises(ConfigError, match=message):
            Run(
                small(**{"data.train": made["train"], "data.test": made["test"]}),
                tmp_path / "run",
                quiet=True,
            ).train()
    assert not (tmp_path / "run").exists()


def test_a_teacher_trained_on_other_data_learns_the_same_numbers(tmp_path):
    """Its training data list the same classes in another order: the student's order counts."""
    run = run_of(
        tmp_path,
        "arrays",
        ["ant", "bee", "cat"],
        ["bee", "cat"],
        teacher_training={
            "data": {
                "train": {
                    **KINDS["arrays"],
                    "root": folder(tmp_path / "more", ["ant", "bee", "cat"]),
                    "classes": ["cat", "bee", "ant"],
                }
            }
        },
    )
    names = ["ant", "bee", "cat"]
    for stage in run.experiment.stages:
        assert run.experiment.classes(stage) == names
        assert seen(run.experiment.train_loader(stage, batch_size=9)) == {
            name: names.index(name) for name in names
        }
        assert seen(run.experiment.test_loader(stage)) == {"bee": 1, "cat": 2}


PLAIN = {"loss_cls": {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}}


def chain_of(tmp_path, first, then, goes_on):
    """A run of two stages, the second of which goes on with what the first has trained on other
    data.
    """
    data = {"train": {**KINDS["arrays"], "root": folder(tmp_path / "first", first)}}
    stages = [
        {"name": "first", "losses": PLAIN, "data": {**data, "test": data["train"]}},
        {"name": "second", "student": goes_on, "losses": PLAIN},
    ]
    return run_of(tmp_path, "arrays", then, then, **{"stages": stages})


@pytest.mark.parametrize("goes_on", ["keep", "first", "first.best"])
@pytest.mark.parametrize(
    "first, then, number, before, now",
    [
        (["ant", "bee", "cat"], ["ant", "cat", "dog"], 1, "bee", "cat"),  # as many
        # one more, in front
        (["bee", "cat"], ["ant", "bee", "cat"], 0, "bee", "ant"),
        (["ant", "bee", "cat", "dog"], ["bee", "dog"], 0, "ant", "bee"),
    ],
)
def test_a_student_that_goes_on_with_other_classes(
    tmp_path, goes_on, first, then, number, before, now
):
    run = chain_of(tmp_path, first, then, goes_on)
    message = (
        f"stage 'second' goes on with the student of stage 'first', where class {number} is "
        f"'{before}', and here '{now}'.*"
        rf"There are {len(first)}: \[.*'{first[-1]}'\]; here {len(then)}: "
        rf"\[.*'{then[-1]}'\]"
    )
    with pytest.raises(ConfigError, match=message):
        check_source(run.experiment, run.experiment.stages[1])
    check_source(run.experiment, run.experiment.stages[0])


def test_a_student_whose_classes_are_mapped_or_grow_goes_on(tmp_path):
    for k, (first, order, then) in enumerate(
        [
            (["ant", "bee"], None, ["ant", "bee", "cat"]),
            (["ant", "bee"], ["bee", "ant"], ["ant", "bee"]),
        ]
    ):
        run = chain_of(tmp_path / str(k), first, then, "keep")
        run.experiment.stages[0].data["train"]["classes"] = order
        check_source(run.experiment, run.experiment.stages[1])
        names = list(run.experiment.classes(run.experiment.stages[0]))
        assert names == then[: len(first)]
        assert seen(run.experiment.train_loader(run.experiment.stages[0], batch_size=6)) == {
            name: names.index(name) for name in first
        }


def test_a_student_that_goes_on_with_other_classes_is_refused_before_the_first_step(tmp_path):
    other = {"type": "small_parts.Digits", "first": 0, "count": 200, "classes": list("abcdefghij")}
    stages = [
        {"name": "first", "losses": PLAIN, "data": {"train": other, "test": other}},
        {"name": "second", "student": "keep", "losses": PLAIN},
    ]
    with pytest.raises(
        ConfigError,
        match="stage 'second' goes on with the student of stage 'first', where class 0 is 'a', and "
        "here '0'",
    ):
        Run(small(stages=stages, length=1), tmp_path / "run", quiet=True).train()
    assert not (tmp_path / "run").exists()


def test_the_same_test_in_another_order_gives_the_same_accuracy(undisturbed, tmp_path, capsys):
    """In a whole run, and by tools/test.py with a checkpoint that says its classes; one class more
    is an error in both.
    """
    other = {"type": "small_parts.Reversed", "first": 1000, "count": 200}
    run = Run(small(**{"data.test": other, "length": 1}), tmp_path / "run", quiet=True)
    plain = Run(small(length=1), tmp_path / "plain", quiet=True)
    assert [v["accuracy"] for v in run.train()["stages"].values()] == [
        v["accuracy"] for v in plain.train()["stages"].values()
    ]
    config = ROOT / "tests" / "engine" / "small" / "small.py"
    wanted = [f"accuracy {undisturbed.results['stages']['distilled']['accuracy']:.3f}"]
    spec = "data.test={'type': 'small_parts.Reversed', 'first': 1000, 'count': 200}"
    cli.test(
        [
            str(config),
            str(undisturbed.work_dir / "student.pth"),
            "--device",
            "cpu",
            "--cfg-options",
            spec,
        ]
    )
    assert capsys.readouterr().out.splitlines()[:1] == wanted
    nine = Run(
        small(
            **{
                "data.train": {"type": "small_parts.Reversed", "first": 0, "count": 200, "most": 8},
                "data.test": other,
            }
        ),
        tmp_path / "nine",
        quiet=True,
    )
    with pytest.raises(ConfigError, match=r"the training data lacks: '9' \(\d+\)"):
        nine.train()
    assert not (tmp_path / "nine").exists()


# What trains --------------------------------------------------------------------------------------
def test_a_function_that_accepts_it_is_told_whether_it_trains_at_any_depth():
    inner = {"type": "kdtasks.classification.data.digits", "part": "student"}
    spec = {
        "type": "kdtasks.classification.data.concat",
        "sets": [inner, {"type": arrays, "images": 1}],
        "size": (1, 2),
    }
    found = told(
        {"type": "kdtasks.classification.data.few_labels", "dataset": spec, "per_class": 2}, True
    )
    assert found["dataset"]["sets"] == [{**inner, "train": True}, {"type": arrays, "images": 1}]
    assert "train" not in found and found["dataset"]["size"] == (1, 2)
    # what is said stays
    assert told({**inner, "train": False}, True)["train"] is False


@pytest.mark.parametrize(
    "spec, train, test",
    [
        ({"type": "kdtasks.classification.data.digits", "augment": {"crop": 1}}, 1258, 539),
        (
            {
                "type": "kdtasks.classification.data.few_labels",
                "per_class": 5,
                "dataset": {"type": "kdtasks.classification.data.digits", "augment": {"crop": 1}},
            },
            1258,
            539,
        ),
        (
            {
                "type": "kdtasks.classification.data.concat",
                "sets": [{"type": "kdtasks.classification.data.digits", "augment": {"crop": 1}}]
                * 2,
            },
            2516,
            1078,
        ),
    ],
)
def test_the_same_words_under_train_and_test(tmp_path, spec, train, test):
    plain_test = json.loads(json.dumps(spec).replace(', "augment": {"crop": 1}', ""))
    run = Run(small(**{"data.train": spec, "data.test": plain_test}), tmp_path, quiet=True)
    sets = {
        part: run.experiment.data_set(run.experiment.config["data"], part)
        for part in ("train", "test")
    }
    assert (len(sets["train"]), len(sets["test"])) == (train, test)
    assert sets["train"].augment and sets["test"].augment is None
    at = torch.arange(9)
    views = [
        [made.batch(at, torch.full_like(at, view), 0)["input"] for view in (0, 1)]
        for made in sets.values()
    ]
    assert not torch.equal(*views[0]) and torch.equal(*views[1])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"data.test.train": True}, r"data\.test\.train=True: test data does not train"),
        (
            {"data.test.augment": {"crop": 1}},
            r"data\.test\.augment={'crop': 1}: test data is never "
            r"augmented",
        ),
        (
            {
                "data.test": {
                    "type": "kdtasks.classification.data.concat",
                    "sets": [{"type": "kdtasks.classification.data.digits", "train": True}],
                }
            },
            r"data\.test\.sets\[0\]\.train=True",
        ),
        (
            {
                "teacher_training": {
                    "data": {
                        "test": {
                            "type": "kdtasks.classification.data.digits",
                            "augment": {"crop": 1},
                        }
                    }
                }
            },
            r"teacher_training\.data\.test\.augment",
        ),
    ],
)
def test_a_test_set_that_says_it_trains(options, message):
    with pytest.raises(ConfigError, match=message):
        small(**{"data.test": {"type": "kdtasks.classification.data.digits"}, **options})


def augmented_in_secret():
    from kdtasks.classification.data import digits

    return digits(augment={"crop": 1})


def test_a_test_set_that_augments_whatever_it_is_called(tmp_path):
    run = Run(small(**{"data.test": {"type": augmented_in_secret}}), tmp_path, quiet=True)
    with pytest.raises(ConfigError, match=r"data.test: the ImageArrays has augment=\{'crop': 1"):
        run.experiment.test_loader(run.experiment.stages[-1])


# kornia's transforms in a config ------------------------------------------------------------------
def with_transforms(*transforms, part="train", **changes):
    spec = {"type": "kdtasks.classification.data.digits", "augment": list(transforms)}
    return small(**{f"data.{part}": spec, **changes})


CROP = {"type": "kornia.augmentation.RandomCrop", "size": (8, 8), "padding": 1}


def test_transforms_of_a_config_with_a_cached_teacher(tmp_path):
    """What the cache says about a view is what the teacher says about the student's images."""
    pytest.importorskip("kornia", reason="needs kornia: pip install 'kdtasks[augment]'")
    rotation = {"type": "kornia.augmentation.RandomRotation", "degrees": 20.0}
    few = {"type": "kdtasks.classification.data.few_labels", "per_class": 9}
    config = with_transforms(CROP, rotation, cache={"views": 2})
    config = small(**{"data.train": {**few, "dataset": config["data"]["train"]}, "cache.views": 2})
    run = Run(config, tmp_path / "run", quiet=True)
    run.train()
    (folder,) = [path for path in (tmp_path / "run" / "cache").iterdir() if path.is_dir()]
    key = json.loads((folder / "meta.json").read_text())["key"]
    assert key["data"]["dataset"]["augment"][1] == rotation
    stage = run.experiment.stages[-1]
    loader = run.experiment.train_loader(stage)
    assert loader.dataset.augment.ways == ["batch", "batch"]
    distiller = run.experiment.distiller(stage, run.files).eval()
    batch = next(iter(loader.epoch(1)))
    kept = TeacherCache.open(folder, key)
    rows = kept.fetch(batch["index"], batch["view"], "cpu")["teacher"]
    with torch.no_grad():
        live = distiller.teachers["teacher"](batch["input"])
    torch.testing.assert_close(rows.float(), live, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    "transform, message",
    [
        (
            {"type": "kornia.augmentation.RandomHorizontalFlp"},
            "kornia.augmentation has no 'RandomHorizontalFlp'; did you mean 'RandomHorizontalFlip'",
        ),
        ({**CROP, "pading": 1}, "RandomCrop has no argument 'pading'; did you mean 'padding'"),
        ({"type": "kornia.augmentation.RandomCrop"}, "RandomCrop needs 'size'"),
    ],
)
def test_a_transform_that_does_not_exist(transform, message):
    pytest.importorskip("kornia", reason="needs kornia: pip install 'kdtasks[augment]'")
    with pytest.raises(ConfigError, match=rf"data\.train\.augment.*{message}"):
        with_transforms(transform)


def test_a_transform_that_cannot_be_applied_and_one_for_a_test(tmp_path):
    pytest.importorskip("kornia", reason="needs kornia: pip install 'kdtasks[augment]'")
    run = Run(with_transforms({**CROP, "size": (6, 6), "p": 0.5}), tmp_path, quiet=True)
    with pytest.raises(ConfigError, match="data.train .*RandomCrop cannot .* expected p=1"):
        run.experiment.data_set(run.experiment.config["data"], "train")
    with pytest.raises(ConfigError, match=r"data\.test\.augment=.* test data is never augmented"):
        with_transforms(CROP, part="test")


def test_kornia_is_not_installed(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "kornia"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(ConfigError, match=r"no module 'kornia' \(pip install 'kdtasks\[augment\]'"):
        with_transforms(CROP)
