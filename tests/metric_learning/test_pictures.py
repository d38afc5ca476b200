"""What the report draws: the numbers behind it, and that it is drawn at all."""

import io

import pytest
import torch
from scipy.stats import kendalltau

from kdtasks.core.choices import evenly_spaced
from kdtasks.engine.loader import Loader
from kdtasks.metric_learning import data, pictures


def found(n=60, width=4, noise=0.3, seed=0, classes=3):
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(n) % classes
    rows = torch.eye(classes, width)[target] * 2 + noise * torch.randn(
        n, width, generator=generator
    )
    return rows, target, torch.arange(n)


def test_the_plane_has_the_largest_variance_and_lies_as_the_first():
    rows, _, _ = found()
    flat, share = pictures.plane(rows)
    centred = (rows - rows.mean(0)).double()
    values = torch.linalg.svdvals(centred) ** 2
    assert flat.square().sum(0).tolist() == pytest.approx(values[:2].tolist())
    assert share == pytest.approx(float(100 * values[:2].sum() / values.sum()))
    turn, _ = torch.linalg.qr(
        torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    )
    again, _ = pictures.plane(3 * rows.double() @ turn + 7, like=flat)
    assert torch.allclose(again, 3 * flat, atol=1e-6)
    assert pictures.plane(rows[:, :1])[0].shape == (60, 2)


def test_agreement_is_scipys_tau_and_the_shared_neighbours_of_a_loop():
    teacher, student = found()[0], found(noise=0.6, seed=4)[0]
    taus, shared = pictures.agreement(teacher, student, candidates=59, neighbours=10)
    d = [torch.cdist(x.double(), x.double()).fill_diagonal_(torch.inf) for x in (teacher, student)]
    for q in (0, 17, 59):
        others = [i for i in range(60) if i != q]
        assert float(taus[q]) == pytest.approx(
            kendalltau(d[0][q, others], d[1][q, others]).statistic
        )
    near = [x.argsort(dim=1) for x in d]
    for k in (1, 5, 10):
        expected = sum(len({*a[:k].tolist()} & {*b[:k].tolist()}) for a, b in zip(*near)) / (60 * k)
        assert float(shared[k - 1]) == pytest.approx(100 * expected)


def test_agreement_of_equals_and_of_few_candidates():
    rows = found()[0]
    taus, shared = pictures.agreement(rows, 3 * rows + 1, candidates=7, queries=20)
    assert (
        taus.shape == (20,)
        and torch.allclose(taus, torch.ones(20).double())
        and torch.allclose(shared, torch.full((50,), 100.0).double())
    )
    near, _ = pictures.agreement(rows, rows.flip(1)[:, :1], candidates=7)
    assert (near.abs() <= 1).all() and near.mean() < 0.9


def test_the_first_one_found():
    rows, target, index = found()
    right = pictures.first_right((rows, target, index))
    d = torch.cdist(rows, rows).fill_diagonal_(torch.inf)
    assert torch.equal(right, target[d.argmin(1)] == target)


@pytest.mark.parametrize(
    "names, pair",
    [
        (["teacher", "alone", "distilled"], ["alone", "distilled"]),
        (["alone"], ["alone"]),
        (["teacher"], []),
        ([], []),
    ],
)
def test_whatever_there_is_is_drawn(names, pair):
    digits = data.digits(train=False)
    loader = Loader(digits, 100, shuffle=False)
    n = len(digits)
    models = {}
    for k, name in enumerate(names):
        noise = torch.randn(n, 5, generator=torch.Generator().manual_seed(k))
        models[name] = (
            torch.eye(5)[digits.target] + (0.4 + 0.2 * k) * noise,
            digits.target,
            torch.arange(n),
        )
    colors = dict(zip(["teacher", "alone", "distilled"], ["#111111", "#E69F00", "#0072B2"]))
    drawn = pictures.draw(
        models, [name for name in names if name == "teacher"], pair, loader, colors
    )
    assert len(drawn) == (0 if not names else 3 if len(names) == 3 else 2)
    for _, figure in drawn:
        figure.savefig(io.BytesIO(), format="png", dpi=30)
    if len(pair) == 2:
        before, after = (pictures.first_right(models[name]) for name in pair)
        assert (
            f"{int((~before & after).sum())} fixed, {int((before & ~after).sum())} broken of {n}"
            in drawn[0][0]
        )
        framed = [axes for axes in drawn[0][1].axes if axes.spines["left"].get_visible()]
        assert 0 < len(framed) < len(drawn[0][1].axes)


def test_the_images_framed_are_those_of_the_querys_class():
    """Places in the data set are not places among the embeddings, where a part of it is labelled."""
    digits, kept = (
        data.digits(train=False),
        torch.randperm(714, generator=torch.Generator().manual_seed(1))[:300],
    )
    target = digits.target[kept]
    rows = torch.eye(4)[target] + 0.6 * torch.randn(
        300, 4, generator=torch.Generator().manual_seed(0)
    )
    _, figure = pictures.draw_gallery(
        {"alone": (rows, target, kept)}, [], digits.classes, Loader(digits, 100, shuffle=False)
    )
    images = {(image / 255).numpy().tobytes(): k for k, image in enumerate(digits.images[:, 0])}
    axes = [
        (ax, images[ax.images[0].get_array().data.astype("float32").tobytes()])
        for ax in figure.axes
    ]
    assert len(axes) == 10 * 6
    for query, place in enumerate(kept[evenly_spaced(len(kept), 10)].tolist()):
        (_, first), *rest = axes[6 * query : 6 * query + 6]
        assert first == place
        assert [ax.spines["top"].get_visible() for ax, _ in rest] == [
            digits.target[k] == digits.target[place] for _, k in rest
        ]


def test_names_of_classes_are_no_formulas_and_one_sample_is_no_picture():
    digits = data.digits(train=False)
    digits.classes = [r"$\frac{$", "$x$", "a$b", "c"]
    models = {"alone": (torch.eye(4)[digits.target], digits.target, torch.arange(714))}
    for _, figure in pictures.draw(
        models, [], ["alone"], Loader(digits, 100, shuffle=False), {"alone": "#E69F00"}
    ):
        figure.savefig(io.BytesIO(), format="png", dpi=30)
    one = {"alone": tuple(x[:1] for x in models["alone"])}
    assert pictures.draw(one, [], ["alone"], Loader(digits, 100, shuffle=False), {}) == []
