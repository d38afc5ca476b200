"""iCaRL and BiC in avalanche's own strategies: which exemplars are chosen, what the batches and the
losses are, what evaluation sees, against loops.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("avalanche", reason="avalanche-lib is not installed")

from small_avalanche import Images, ManyHeads, Net, benchmark, single_heads, task_benchmark, trained

from kdtasks.incremental import BiasCorrection, class_means, herding, lwf_loss, nearest_mean
from kdtasks.incremental.plugin import BiCPlugin, ICaRLPlugin

EXACT = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def digits():
    """Images of each class, in the order of the data set."""
    images, target = Images().tensors
    return {number: images[target == number] for number in range(10)}


def features(model, images):
    with torch.no_grad():
        return copy.deepcopy(model).eval().features(images).mean((2, 3))


def rows_of(steps):
    return torch.cat([step["x"] for step in steps]), torch.cat([step["y"] for step in steps])


@pytest.mark.parametrize("head", single_heads())
def test_icarl_s_exemplars_are_those_of_the_network_that_ends_an_experience(head, digits):
    """Nine of four classes: two each and one more of the latest; then of two classes' five and
    four, the first ones stay.
    """
    plugin, model = ICaRLPlugin(memory=9), single_heads()[head]()
    _, first, _ = trained(model, plugin, benchmark().train_stream, 2)
    kept = {}
    for number, network, count in ((3, first, 2), (7, first, 2), (0, model, 2), (1, model, 3)):
        order = herding(features(network, digits[number]), count)
        kept[number] = digits[number][order]
    for number, (experience, places) in plugin.kept().items():
        images = torch.stack([plugin.images[experience][place][0] for place in places])
        torch.testing.assert_close(images, kept[number])
    assert [*plugin.kept()] == plugin.arrived == [3, 7, 0, 1]


def test_icarl_s_batches_are_the_experience_and_the_exemplars_each_once(digits):
    plugin = ICaRLPlugin(memory_per_class=2)
    _, teacher, steps = trained(Net(nn.Linear(8, 10)), plugin, benchmark().train_stream, 2)
    images, target = rows_of(steps)
    assert torch.bincount(target, minlength=10).tolist() == [10, 10, 0, 2, 0, 0, 0, 2, 0, 0]
    for number in (3, 7):
        order = herding(features(teacher, digits[number]), 2)
        found = images[target == number].flatten(1).sort(0).values
        torch.testing.assert_close(found, digits[number][order].flatten(1).sort(0).values)
    # and the loss is LwF.MC's, of old and new columns
    for step in steps:
        wanted = torch.zeros(len(step["y"]), 4)
        with torch.no_grad():
            wanted[:, :2] = teacher(step["x"])[:, [3, 7]].sigmoid()
        for row, number in enumerate(step["y"].tolist()):
            if number in (0, 1):
                wanted[row, 2 + number] = 1
        loss = F.binary_cross_entropy_with_logits(step["logits"][:, [3, 7, 0, 1]], wanted)
        torch.testing.assert_close(step["loss"].squeeze(), loss, **EXACT)


def outputs(strategy, experience):
    """What a strategy's evaluation of an experience has as its output, and the targets."""
    seen = []

    class Output:
        def after_eval_iteration(self, strategy, **kwargs):
            seen.append((strategy.mb_x, strategy.mb_output.detach(), strategy.mb_y))

    strategy.plugins.append(Output())
    strategy.eval(experience)
    strategy.plugins.pop()
    return (torch.cat(values) for values in zip(*seen))


def test_icarl_is_evaluated_by_the_nearest_mean_of_exemplars(digits):
    plugin, model = ICaRLPlugin(memory=12), Net(nn.Linear(8, 10))
    stream = benchmark()
    strategy, _, _ = trained(model, plugin, stream.train_stream, 2)
    images, target = [], []
    for column, (experience, places) in enumerate(plugin.kept().values()):
        images += [plugin.images[experience][place][0] for place in places]
        target += [column] * len(places)
    means = class_means(features(model, torch.stack(images)), torch.tensor(target), 4)
    torch.testing.assert_close(plugin.means, means)
    x, output, _ = outputs(strategy, stream.test_stream[:2])
    classes = torch.tensor(plugin.arrived)
    expected = classes[nearest_mean(features(model, x), means)]
    assert torch.equal(output.argmax(1), expected) and output.shape == (40, 10)
    assert (output[:, [2, 4, 5, 6, 8, 9]] == -1000).all()
    plain = ICaRLPlugin(memory=12, nearest_mean=False)
    strategy, _, _ = trained(model, plain, stream.train_stream, 1)
    x, output, _ = outputs(strategy, stream.test_stream[:1])
    with torch.no_grad():
        torch.testing.assert_close(output, copy.deepcopy(model).eval()(x))


# BiC ----------------------------------------------------------------------------------------------
def test_bic_s_loss_is_of_corrected_outputs_and_its_numbers_of_what_was_held_out(digits):
    plugin, model = BiCPlugin(memory_per_class=4, held_out=0.3), Net(nn.Linear(8, 10))
    stream = benchmark()
    strategy, teacher, steps = trained(model, plugin, stream.train_stream, 3)
    _, target = rows_of(steps)
    # one of the four exemplars, and one of the ten images, of each class are held out
    assert torch.bincount(target, minlength=10).tolist() == [3, 3, 9, 3, 0, 0, 0, 3, 0, 9]
    held = {number: dataset for number, dataset, _ in plugin.out}
    assert [number for number, *_ in plugin.out] == [*plugin.arrived[:4], 2, 9]
    assert all(len(places) == 1 for *_, places in plugin.out) and len(held) == 6
    old, come = plugin.arrived[:4], plugin.arrived
    numbers = plugin.correction
    assert numbers.alpha[0] == 1 and numbers.beta[0] == 0 and numbers.beta[1] != 0

    def corrected(logits, count):
        """By the numbers of the first experiences, as BiC's formula has them."""
        logits = logits.clone()
        for k in range(count):
            columns = come[2 * k : 2 * k + 2]
            logits[:, columns] = numbers.alpha[k] * logits[:, columns] + numbers.beta[k]
        return logits

    for step in steps:
        # noted behind the plugin's correction, in which the newest numbers are 1 and 0 still
        net = copy.deepcopy(model).train()
        net.load_state_dict(step["state"])
        logits = corrected(net(step["x"]), 2)
        torch.testing.assert_close(step["logits"], logits, **EXACT)
        with torch.no_grad():
            soft = corrected(teacher(step["x"]), 2)[:, old]
        wanted = F.cross_entropy(logits, step["y"]) / 3
        wanted = wanted + 2 / 3 * lwf_loss(logits[:, old], soft, 2.0)
        torch.testing.assert_close(step["loss"].squeeze(), wanted, **EXACT)

    x = torch.cat([dataset[place][0][None] for _, dataset, (place,) in plugin.out])
    with torch.no_grad():
        raw = copy.deepcopy(model).eval()(x)[:, come]
    fitted = BiasCorrection((2, 2, 2))
    fitted.load_state_dict({"alpha": numbers.alpha.clone(), "beta": numbers.beta.clone()})
    fitted.fit(raw, torch.arange(6))
    torch.testing.assert_close(numbers.alpha, fitted.alpha)
    torch.testing.assert_close(numbers.beta, fitted.beta)
    x, output, _ = outputs(strategy, stream.test_stream[:3])
    with torch.no_grad():
        torch.testing.assert_close(output, corrected(copy.deepcopy(model).eval()(x), 3), **EXACT)


def test_what_icarl_and_bic_cannot_do_is_said():
    for kind in (ICaRLPlugin, BiCPlugin):
        for options in ({}, {"memory": 5, "memory_per_class": 5}, {"memory": -1}):
            with pytest.raises(ValueError, match="expected memory, in all, or memory_per_class"):
                kind(**options)
        with pytest.raises(ValueError, match="needs one head for all classes; ManyHeads has one a"):
            trained(ManyHeads(), kind(9), task_benchmark().train_stream, 1)
        flat = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64))
        with pytest.raises(ValueError, match="no linear layer that .*Plugin could read"):
            trained(flat, kind(9), benchmark().train_stream, 1)
        again = [benchmark().train_stream[0]] * 2
        with pytest.raises(ValueError, match="experience 2 brings class 3 again"):
            trained(Net(nn.Linear(8, 10)), kind(9), again, 2)
    with pytest.raises(ValueError, match=r"held_out must be a share in \(0, 1\), got 0"):
        BiCPlugin(9, held_out=0)
    with pytest.raises(ValueError, match="held_out=0.1 of 1 exemplars of a class"):
        trained(Net(nn.Linear(8, 10)), BiCPlugin(memory=3), benchmark().train_stream, 2)
    stream = benchmark(experiences=10).train_stream
    with pytest.raises(ValueError, match="one old class, .3., has a softmax of 1"):
        trained(Net(nn.Linear(8, 10)), BiCPlugin(9), stream, 2)
