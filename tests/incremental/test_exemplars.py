"""Exemplars that a run's networks choose, and the nearest mean of them: by hand, kept as prefixes,
the same after a stop.
"""

import json
import shutil

import pytest
import small_streams
import torch
from small_incremental import batches, run_of, stage
from small_runs import same, weights

from kdtasks.incremental import class_means, herding, nearest_mean
from kdtasks.incremental.data import class_incremental, experiences

ARM = ["experience1", "taught2", "distilled"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = run_of(tmp_path_factory.mktemp("icarl"), "icarl")
    run.train()
    return run


def features(model, images):
    """What the head of a small network reads."""
    with torch.no_grad():
        return model.features(images).mean((2, 3))


def unaugmented(run, name, experience=None):
    """All training images of a stage's stream, as the test sees them, and their columns."""
    data = run.experiment.setting(stage(run, name), "data")
    made = run.experiment.data.train_set({**data, "train": {**data["train"], "experience": None}})
    source = made.only(made.parts)
    batch = source.batch(torch.arange(len(source)), torch.zeros(len(source)).long(), 0)
    return batch["input"], batch["target"], made.places


def chosen(run, name):
    return torch.load(run.work_dir / "exemplars" / f"{name}.pth", weights_only=True)


def test_each_network_chooses_exemplars_of_its_own_experience(run):
    images, target, places = unaugmented(run, "distilled")
    start = 0
    for name, size, count in zip(ARM, (2, 2, 3), (5, 3, 2)):
        model, found = run.trained(name), chosen(run, name)["places"]
        assert len(found) == size
        for column, order in enumerate(found, start):
            rows = (target == column).nonzero()[:, 0]
            expected = places[rows][herding(features(model, images[rows]), count)]
            assert torch.equal(order, expected), (name, column)
        start += size


def test_a_later_experience_keeps_the_first_of_each_class(run):
    """Of 9: five and four of two classes, then two each of four, and one more of the latest."""
    orders = [order for name in ARM[:2] for order in chosen(run, name)["places"]]
    trained = run.experiment.training_set(stage(run, "distilled"), run.files)
    for column, (order, count) in enumerate(zip(orders, (2, 2, 2, 3))):
        kept = trained.places[trained.target == column]
        assert sorted(order[:count].tolist()) == kept.tolist()
    own = trained.target >= 4
    assert own.sum() == 36 and trained.class_counts.tolist() == [2, 2, 2, 3, 12, 12, 12]
    # what a batch shows is what stands there
    seen = torch.cat([batch["index"] for batch in batches(run, "distilled")])
    assert len(set(seen.tolist())) == len(seen) == 42
    # the control's own networks choose its exemplars
    alone = run.experiment.training_set(stage(run, "alone"), run.files)
    assert alone.class_counts.tolist() == trained.class_counts.tolist()
    assert torch.equal(chosen(run, "experience1")["places"][0], orders[0])
    # before anything is trained, random ones stand for them
    assert len(run.experiment.training_set(stage(run, "distilled"))) == len(trained)


def test_results_have_the_nearest_mean_of_exemplars(run):
    images, target, places = unaugmented(run, "distilled")
    orders = [order for name in ARM for order in chosen(run, name)["places"]]
    counts = (1, 1, 1, 1, 1, 2, 2)
    rows = torch.cat(
        [
            ((target == column)[:, None] & (places[:, None] == order[:count])).nonzero()[:, 0]
            for column, (order, count) in enumerate(zip(orders, counts))
        ]
    )
    model = run.trained("distilled")
    means = class_means(features(model, images[rows]), target[rows], 7)
    torch.testing.assert_close(chosen(run, "distilled")["means"], means)
    right = []
    for batch in run.experiment.test_loader(stage(run, "distilled")):
        right.append(nearest_mean(features(model, batch["input"]), means) == batch["target"])
    results = json.loads((run.work_dir / "results.json").read_text())["stages"]["distilled"]
    assert results["accuracy_nearest_mean"] == pytest.approx(100 * torch.cat(right).float().mean())
    matrix = results["matrix_nearest_mean"]
    assert [len(row) for row in matrix] == [1, 2, 3]
    assert matrix[2] == [results[f"nearest_mean_on_{k}"] for k in (1, 2, 3)]
    assert results["average_accuracy_nearest_mean"] == pytest.approx(sum(matrix[2]) / 3)
    assert {"forgetting_nearest_mean", "average_incremental_accuracy_nearest_mean"} <= {*results}


def test_a_run_that_was_stopped_goes_on_to_the_same_exemplars(run, tmp_path, no_report):
    """In the midst of a stage, and with the exemplars of finished ones lost."""
    folder, stop = tmp_path / "run", dict(type="small_streams.StopAt", stage="distilled")
    with pytest.raises(KeyboardInterrupt):
        run_of(folder, "icarl", custom_hooks=[{**stop, "iteration": 3}]).train(only=ARM)
    stamp = folder / "stages" / "config.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "custom_hooks": []}))
    shutil.rmtree(folder / "exemplars")
    again = run_of(folder, "icarl")
    again.train(resume=True, only=ARM)
    assert same(weights(again, "distilled")["state_dict"], weights(run, "distilled")["state_dict"])
    for name in ARM:
        ours, whole = (chosen(r, name) for r in (again, run))
        assert all(map(torch.equal, ours["places"], whole["places"])), name
        assert torch.equal(ours["means"], whole["means"])
        done = [{k: v for k, v in r.done[name].items() if k != "seconds"} for r in (again, run)]
        assert done[0] == done[1]


def test_a_memory_by_class():
    stream = class_incremental(small_streams.images(classes=4), (2, 2), order=[1, 0, 2, 3])
    made = experiences(stream, 1, memory_per_class=3)
    assert made.class_counts.tolist() == [3, 3, 12, 12]
    assert experiences(stream, 0, memory_per_class=3).class_counts.tolist() == [12, 12]
    own = made.memory.newest()[0].index[:4]
    with pytest.raises(ValueError, match="exemplars of other data"):
        made.with_exemplars([own, own])
    with pytest.raises(ValueError, match="there is no memory"):
        experiences(stream, 1).with_exemplars([own])
    with pytest.raises(ValueError, match="memory, in all, or memory_per_class, got 4 and 3"):
        experiences(stream, 1, memory=4, memory_per_class=3)
    with pytest.raises(ValueError, match="no choice 'herdin'; did you mean 'herding'"):
        experiences(stream, 1, memory=4, exemplars="herdin")
