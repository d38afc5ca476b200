"""Dark experience replay as stages: each step by hand, the memory from one experience to the next,
the same after a stop.
"""

import json
from types import SimpleNamespace

import pytest
import small_streams
import torch
import torch.nn.functional as F
from small_incremental import batches, run_of, stage
from small_runs import same, weights

from kdtasks.engine.errors import ConfigError
from kdtasks.incremental import DERDistiller, ReservoirBuffer, replay_cross_entropy
from kdtasks.incremental.der_memory import give_memory
from kdtasks.incremental.models import GrowingHead, growing

ARM = ["taught1", "taught2", "distilled"]
SIZES = (2, 2, 3)


@pytest.fixture
def run(finished):
    return finished("der")


def memory(run, name):
    """What a stage has left, as tensors."""
    kept = weights(run, name)["resume"]["attributes"][0]["kept"]
    buffer = ReservoirBuffer(9)
    buffer.seen = kept["seen"][1]
    buffer.kept = {key: value[1] for key, value in kept["kept"][1]}
    buffer._generator.set_state(kept["_generator"][1])
    return buffer


def slow_arm(run, terms):
    """All stages of an arm as a plain loop: SGD and the cosine, the memory's formula written out.
    The control's columns come with their classes.

    Yields the state_dict and the memory behind each.
    """
    names = ARM if "der" in terms else ["alone1", "alone2", "alone"]
    stream = run.experiment.data.train_set(
        {
            **run.experiment.config["data"],
            "train": {**run.experiment.config["data"]["train"], "experience": None},
        }
    )
    buffer, start, carried = ReservoirBuffer(9, run.experiment.seed), 0, None
    for name in names:
        one = stage(run, name)
        model = run.experiment.learner(one).train()
        if carried is not None:
            model.load_state_dict({**model.state_dict(), **carried})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        seen = batches(run, name)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(seen))

        def drawn(number):
            found, passed = buffer.draw(5), buffer.seen
            view = torch.full_like(found["place"], 2**32 + 2 * passed + number)
            return stream.batch(found["place"], view, run.experiment.seed)["input"], found

        for batch in seen:
            replay = []
            if len(buffer):
                replay = [drawn(0) if "der" in terms else None, drawn(1)]
            logits = model(batch["input"])
            loss = F.cross_entropy(logits, batch["target"])
            for kind, part in zip(("der", "replay"), replay):
                if part is not None:
                    images, found = part
                    now = model(images)
                    loss = loss + (
                        0.3 * (now - found["logits"]).square().mean()
                        if kind == "der"
                        else 0.5 * F.cross_entropy(now, found["target"])
                    )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            buffer.add(
                place=batch["index"] + start,
                target=batch["target"],
                logits=logits,
                columns=torch.full_like(batch["target"], logits.shape[1]),
            )
        start += len(run.experiment.training_set(one))
        carried = model.state_dict()
        yield name, carried, buffer


@pytest.mark.parametrize("terms", [("der", "replay"), ("replay",)])
def test_each_step_is_that_of_the_formula_in_all_experiences(run, terms):
    for name, expected, buffer in slow_arm(run, terms):
        found = run.trained(name).state_dict()
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=f"{name} {key}")
        kept = memory(run, name)
        assert kept.seen == buffer.seen and torch.equal(kept.kept["place"], buffer.kept["place"])
        torch.testing.assert_close(kept.kept["logits"], buffer.kept["logits"], rtol=1e-4, atol=1e-5)


def test_the_memory_holds_samples_of_all_experiences_and_both_arms_the_same(run):
    last, control = memory(run, "distilled"), memory(run, "alone")
    # two passes over 24, 24 and 36 samples, of which a batch of six takes all
    assert last.seen == control.seen == 2 * (24 + 24 + 36)
    assert last.kept["logits"].shape == (9, 7) and last.kept["columns"].tolist() == [7] * 9
    stream = run.experiment.data.train_set(
        {
            **run.experiment.config["data"],
            "train": {**run.experiment.config["data"]["train"], "experience": None},
        }
    )
    assert torch.equal(stream.target[last.kept["place"]], last.kept["target"])
    assert len({*torch.bucketize(last.kept["target"], torch.tensor([1, 3])).tolist()}) > 1
    assert "kept" not in weights(run, "joint")["resume"]["attributes"][0]


def test_a_run_that_was_stopped_goes_on_to_the_same_weights_and_memory(run, tmp_path, no_report):
    folder, stop = tmp_path / "run", dict(type="small_streams.StopAt", stage="taught2")
    with pytest.raises(KeyboardInterrupt):
        run_of(folder, "der", custom_hooks=[{**stop, "iteration": 5}]).train(only=ARM)
    stamp = folder / "stages" / "config.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "custom_hooks": []}))
    again = run_of(folder, "der")
    again.train(resume=True, only=ARM)
    for name in ARM:
        assert same(weights(again, name)["state_dict"], weights(run, name)["state_dict"]), name
        ours, whole = memory(again, name), memory(run, name)
        assert same(ours.kept, whole.kept) and torch.equal(
            ours._generator.get_state(), whole._generator.get_state()
        )


def test_map_style_data_and_columns_that_come_with_their_classes(tmp_path, no_report):
    """Of the other kind of set the same samples pass, and replayed views are drawn."""
    run = run_of(
        tmp_path / "run",
        "der",
        data__train__stream__dataset=dict(type="small_streams.Listed", classes=7),
        stages__ahead=False,
    )
    run.train(only=ARM[:2])
    kept = memory(run, "taught2")
    assert kept.kept["logits"].shape == (9, 4)
    old = kept.kept["target"] < 2
    assert old.any() and kept.kept["columns"][old].min() == 2
    assert (kept.kept["logits"][kept.kept["columns"] == 2][:, 2:] == 0).all()


# In a plain loop ----------------------------------------------------------------------------------
def model_of():
    torch.manual_seed(0)
    return growing(small_streams.Net(norm=False), SIZES[:2])


def distiller_of(**options):
    losses = {
        "loss_cls": (torch.nn.CrossEntropyLoss(), ("student", "target")),
        "loss_replay": (replay_cross_entropy, ("student.second_draw", "second_draw.target"), 0.5),
    }
    return DERDistiller(model_of(), losses=losses, **options)


def test_outside_of_a_run_images_are_kept_as_they_came():
    distiller, images = distiller_of(size=4), torch.randn(4, 1, 6, 6)
    target = torch.tensor([0, 1, 2, 3])
    distiller.build(images, target)
    distiller.eval()
    distiller(images, target)
    assert len(distiller.kept) == 0  # a trial moves nothing
    distiller.train()
    assert distiller(images, target)["loss_replay"] == 0
    assert torch.equal(distiller.kept.kept["input"], images)
    again = distiller(images, target)
    torch.testing.assert_close(again["loss_replay"], 0.5 * again["loss_cls"])
    (gradient,) = torch.autograd.grad(
        again["loss_replay"], [distiller.student.fc.blocks[0].bias], retain_graph=True
    )
    assert gradient.abs().sum() > 0


def test_of_a_batch_only_labelled_samples_pass():
    distiller = distiller_of(size=9)
    target = torch.tensor([0, 1, -100, -100])
    distiller(
        {
            "input": torch.randn(4, 1, 6, 6),
            "target": target,
            "labelled": torch.tensor([True, True, False, False]),
        }
    )
    assert distiller.kept.kept["target"].tolist() == [0, 1]


def test_replay_cross_entropy():
    logits, target = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 2, 1, 1])
    rows = [-row.log_softmax(0)[y] for row, y in zip(logits.double(), target)]
    torch.testing.assert_close(replay_cross_entropy(logits.double(), target), sum(rows) / 4)
    none = replay_cross_entropy(logits[:0], target[:0])
    none.backward()
    assert none == 0 and (logits.grad == 0).all()
    assert replay_cross_entropy(logits.half(), target).dtype == torch.float32
    with pytest.raises(ValueError, match=r"expected student \(R, C\), C at least 1, and target"):
        replay_cross_entropy(logits, target[:2])


def test_columns_ahead_are_there_in_training_only():
    head = GrowingHead(4, (2, 2), ahead=(3,))
    x = torch.randn(5, 4)
    assert head(x).shape == (5, 7) and head.sizes == (2, 2) and head.old == 2
    whole = head(x)
    assert torch.equal(head.eval()(x), whole[:, :4])
    with pytest.raises(ValueError, match="has the columns of what comes already"):
        head.grow(1)
    with pytest.raises(ValueError, match="expected ahead="):
        GrowingHead(4, (2,), correction=True, ahead=(3,))
    with pytest.raises(ValueError, match=r"ahead=\(0,\)"):
        GrowingHead(4, (2,), ahead=(0,))


def test_what_does_not_go_together_is_said(tmp_path):
    with pytest.raises(ConfigError, match="keeps 9 exemplars beside the distiller's memory"):
        run_of(tmp_path, "der", data__train__memory=9)
    for options, message in (
        (dict(size=0), "size must be an integer of at least 1"),
        (dict(size=3, draw=0), "draw must be at least 1, or None, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            distiller_of(**options)
    with pytest.raises(ConfigError, match="in one process, and there are 2"):
        give_memory(SimpleNamespace(world=2), None, distiller_of(size=3), None)
