"""What is done with a student at the end of an experience: WA and BiC in a run."""

import pytest
import small_streams
import torch
from small_incremental import batches, run_of, stage

from kdtasks.core import Stage
from kdtasks.engine.errors import ConfigError
from kdtasks.incremental import BiasCorrection, lwf_loss, weight_alignment
from kdtasks.incremental.data import class_incremental, experiences

WA = {
    "data.train.memory": 9,
    "losses.loss_cls.of": ("student", "target"),
    "losses.loss_lwf.weight": 1.0,
    "stages.joint": False,
    "stages.balance": True,
    "stages.finish": "kdtasks.incremental.finish.align_weights",
    "length": 1,
    "val_interval": 1,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = run_of(tmp_path_factory.mktemp("wa"), **WA)
    run.train()
    return run


def test_the_weights_of_losses_are_the_shares_of_old_and_new_classes(run):
    for name, share in (("taught2", 2 / 4), ("distilled", 4 / 7)):
        losses = stage(run, name).losses
        assert losses["loss_lwf"]["weight"] == pytest.approx(share)
        assert losses["loss_cls"]["weight"] == pytest.approx(1 - share)
    assert stage(run, "alone").losses["loss_cls"]["weight"] == 1
    assert stage(run, "alone").finish is stage(run, "experience1").finish is None


def test_each_taught_experience_ends_with_aligned_weights(run):
    """The student that is kept, and evaluated, and goes on, and teaches."""
    for name, old in (("taught2", 2), ("distilled", 4)):
        weight = torch.cat([block.weight for block in run.trained(name).fc.blocks])
        torch.testing.assert_close(weight, weight_alignment(weight, old))
    control = torch.cat([block.weight for block in run.trained("alone").fc.blocks])
    assert not torch.allclose(control, weight_alignment(control, 4))
    following = run.experiment.distiller(stage(run, "distilled"), run.files)
    before = run.trained("taught2").fc.blocks
    for k, block in enumerate(before):
        assert torch.equal(following.student.fc.blocks[k].weight, block.weight)
        assert torch.equal(following.teachers["teacher"].model.fc.blocks[k].weight, block.weight)
    model, loader = run.trained("distilled"), run.experiment.test_loader(stage(run, "distilled"))
    found = run.experiment.task.evaluate(model, loader)
    assert {name: run.done["distilled"][name] for name in found} == pytest.approx(found)


def test_it_is_done_once_after_the_last_step_as_by_hand(run):
    """The same stage as a loop with SGD and the cosine written out, then aligned."""
    one, student = stage(run, "taught2"), run.trained("taught2")
    start = run.experiment.distiller(one, run.files)
    model, teacher = start.student.train(), run.trained("experience1")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    seen = batches(run, "taught2")
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(seen))
    for batch in seen:
        logits = model(batch["input"])
        loss = 0.5 * torch.nn.functional.cross_entropy(logits, batch["target"])
        loss = loss + 0.5 * lwf_loss(logits[:, :2], teacher(batch["input"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    weight = torch.cat([block.weight for block in model.fc.blocks]).detach()
    torch.testing.assert_close(
        torch.cat([block.weight for block in student.fc.blocks]),
        weight_alignment(weight, 2),
        rtol=1e-4,
        atol=1e-5,
    )


# BiC ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def corrected(tmp_path_factory):
    options = {
        **WA,
        "data.train.memory": 16,
        "data.train.exemplars": "herding",
        "data.train.held_out": 0.3,
        "student.bias_correction": True,
        "stages.finish": "kdtasks.incremental.finish.correct_bias",
    }
    run = run_of(tmp_path_factory.mktemp("bic"), **options)
    run.train()
    return run


def held_out(run, name):
    """Images as the test sees them, and columns."""
    dataset = run.experiment.training_set(stage(run, name), run.files)
    plain = dataset.only(dataset.held_out)
    batch = plain.batch(torch.arange(len(plain)), torch.zeros(len(plain)).long(), 0)
    return batch["input"], batch["target"], plain.places


def test_bic_fits_the_newest_numbers_to_samples_that_are_not_trained_on(corrected):
    run, numbers = corrected, {}
    for name, count, sizes in (("taught2", 2, (2, 2)), ("distilled", 1, (2, 2, 3))):
        images, target, places = held_out(run, name)
        assert torch.bincount(target).tolist() == [count] * sum(sizes)
        trained = run.experiment.training_set(stage(run, name), run.files)
        assert not torch.isin(trained.places, places).any()
        assert trained.class_counts[-1] == 12 - count
        head = run.trained(name).fc
        with torch.no_grad():
            features = run.trained(name).features(images).mean((2, 3))
            logits = torch.cat([block(features) for block in head.blocks], 1)
        expected = BiasCorrection(sizes)
        if name == "distilled":
            expected.alpha[1], expected.beta[1] = numbers["taught2"]
        expected.fit(logits, target)
        torch.testing.assert_close(head.correction.alpha, expected.alpha)
        torch.testing.assert_close(head.correction.beta, expected.beta)
        assert head.correction.alpha[0] == 1 and head.correction.beta[0] == 0
        numbers[name] = (head.correction.alpha[1], head.correction.beta[1])
        assert head.correction.beta[-1] != 0
        torch.testing.assert_close(run.trained(name)(images), expected(logits))
    assert torch.equal(run.trained("alone").fc.correction.alpha, torch.ones(3))
    teacher = run.experiment.distiller(stage(run, "distilled"), run.files).teachers["teacher"]
    assert teacher.model.fc.correction.beta[1] == numbers["taught2"][1]


def test_a_grown_head_begins_with_numbers_that_change_nothing(corrected):
    start = corrected.experiment.distiller(stage(corrected, "distilled"), corrected.files).student
    before, now = corrected.trained("taught2").fc.correction, start.fc.correction
    assert torch.equal(now.alpha[:2], before.alpha) and now.alpha[2] == 1 and now.beta[2] == 0
    head = corrected.trained("taught2").fc
    x = torch.randn(3, 4)
    logits = head(x)
    head.grow(2)
    torch.testing.assert_close(head(x)[:, :4], logits)
    assert head.sizes == head.correction.sizes == (2, 2, 2)


def test_what_bic_lacks_is_said_before_the_first_step(tmp_path):
    finish = {"stages.finish": "kdtasks.incremental.finish.correct_bias"}
    for given in ({}, {"student.bias_correction": True}, {"data.train.held_out": 0.1}):
        with pytest.raises(ConfigError, match="needs student.bias_correction=True"):
            run_of(tmp_path, **{**WA, **finish, **given})
    stream = class_incremental(small_streams.images(classes=4), (2, 2))
    for options, message in (
        (dict(held_out=0.1), "expected a share below 1 of the exemplars of a memory"),
        (dict(held_out=1.0, memory=9), "held_out=1.0"),
        (dict(held_out=0.1, memory=3), "of 1 exemplars of a class"),
    ):
        with pytest.raises(ValueError, match=message):
            experiences(stream, 1, **options)
    assert experiences(stream, 0, held_out=0.1, memory=3).held_out == []
    assert len(experiences(stream, held_out=0.1)) == 48


def test_what_is_no_such_function_is_said_before_the_first_step(tmp_path):
    with pytest.raises(ConfigError, match="has no 'align_weight'; did you mean 'align_weights'"):
        run_of(tmp_path, **{**WA, "stages.finish": "kdtasks.incremental.finish.align_weight"})
    wrong = dict(type="kdtasks.incremental.finish.align_weights", old=3)
    with pytest.raises(ConfigError, match="finish: align_weights has no argument 'old'"):
        run_of(tmp_path, stages=[dict(name="one", finish=wrong)])
    assert Stage("a").finish is None
