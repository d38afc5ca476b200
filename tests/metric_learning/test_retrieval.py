"""The figures of retrieval against loops and against pytorch-metric-learning and scikit-learn."""

import pytest
import torch
from scipy.stats import kendalltau
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from kdtasks.metric_learning import retrieval
from kdtasks.metric_learning.plugin import accuracy_calculator
from kdtasks.metric_learning.retrieval import k_means, kendall_tau, nearest, nmi, recall_and_map


def clusters(n=120, classes=7, width=5, spread=1.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, width, generator=generator) * spread
    return centres[target] + torch.randn(n, width, generator=generator), target


def by_hand(rows, target, ks=(1, 2, 4, 8)):
    hits, precision, queries = dict.fromkeys(ks, 0), 0.0, 0
    for q in range(len(rows)):
        r = int((target == target[q]).sum()) - 1
        if r == 0:
            continue
        queries += 1
        order = sorted(
            (i for i in range(len(rows)) if i != q),
            key=lambda i: float((rows[i] - rows[q]).double().norm()),
        )
        right = [bool(target[i] == target[q]) for i in order]
        for k in ks:
            hits[k] += any(right[:k])
        precision += sum(sum(right[: i + 1]) / (i + 1) for i in range(r) if right[i]) / r
    return {f"recall_at_{k}": 100 * n / queries for k, n in hits.items()} | {
        "map_at_r": 100 * precision / queries
    }


@pytest.mark.parametrize("block", [1, 37, 2**24])
def test_recall_and_map_equal_a_loop_in_blocks_of_any_size(block, monkeypatch):
    monkeypatch.setattr(retrieval, "ENTRIES", block * 120)
    rows, target = clusters()
    assert recall_and_map(rows, target) == pytest.approx(by_hand(rows, target))


def test_a_sample_alone_in_its_class_is_in_the_gallery_but_no_query():
    rows = torch.tensor([[0.0], [0.1], [1.0], [1.3]])
    # the nearest of sample 0 is the lonely one
    target = torch.tensor([4, 9, 4, 4])
    found = recall_and_map(rows, target)
    assert found == pytest.approx(by_hand(rows, target)) and found["recall_at_1"] == pytest.approx(
        200 / 3
    )
    with pytest.raises(ValueError, match="no class of the 3 samples has two"):
        recall_and_map(rows[:3], torch.arange(3))


@pytest.mark.parametrize(
    "bad, dtype",
    [(float("nan"), torch.float32), (float("inf"), torch.float32), (1e200, torch.float64)],
)
def test_rows_that_are_not_finite_are_an_error_and_not_100_percent(bad, dtype):
    rows, target = clusters(n=30)
    rows = rows.to(dtype)
    rows[[7, 19], 2] = bad
    with pytest.raises(ValueError, match=r"^2 of 30 embeddings are not finite \(first: row 7\)$"):
        recall_and_map(rows, target)


def test_equal_to_the_calculator_of_pytorch_metric_learning():
    rows, target = clusters(n=200, classes=9)
    target[:9] = torch.arange(9)
    theirs = accuracy_calculator(k="max_bin_count").get_accuracy(rows, target)
    ours = recall_and_map(rows, target) | {"nmi": nmi(target, k_means(rows, 9))}
    names = {
        "recall_at_1": "precision_at_1",
        "map_at_r": "mean_average_precision_at_r",
        "nmi": "NMI",
    }
    assert {a: ours[a] for a in names} == pytest.approx(
        {a: 100 * theirs[b] for a, b in names.items()}
    )
    assert list(
        accuracy_calculator(include=("NMI",), kmeans_func=lambda x, k: target)
        .get_accuracy(rows, target)
        .values()
    ) == [1]


def on_a_grid(n=96, classes=5, seed=0):
    """Points of which many coincide or are equally far, with distances that are exact."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, (n, 2), generator=generator).double()
    # the mean is a whole number
    rows[-1] += n * 2 - rows.sum(0) % (n * 2)
    return rows, torch.randint(classes, (n,), generator=generator)


def ties_by_index(query, k, reference, ref_includes_query):
    """What pytorch-metric-learning asks of a search: (distances, indices) of the k nearest; a
    stable sort of whole rows.
    """
    apart = (query[:, None] - reference[None]).double().square().sum(2).fill_diagonal_(torch.inf)
    values, index = apart.sort(dim=1, stable=True)
    return values[:, :k], index[:, :k]


@pytest.mark.parametrize("seed", range(4))
def test_of_equal_distances_the_smaller_number_comes_first(seed):
    rows, target = on_a_grid(seed=seed)
    apart = (rows[:, None] - rows[None]).square().sum(2).fill_diagonal_(torch.inf)
    for count in (1, 2, 7, 40, 95):
        exact = [
            sorted((i for i in range(96) if i != q), key=lambda i: (float(apart[q, i]), i))[:count]
            for q in range(96)
        ]
        assert torch.cat([near for _, near in nearest(rows, count)]).tolist() == exact
    assert any(len(row.unique()) < 95 for row in apart)  # there are ties
    found = [recall_and_map(rows, target, ks) for ks in ((1,), (1, 16), (1, 90))]
    assert len({f["map_at_r"] for f in found}) == 1 == len({f["recall_at_1"] for f in found})


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_pytorch_metric_learning_where_distances_are_equal(seed):
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    rows, target = on_a_grid(seed=seed)
    theirs = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"),
        k="max_bin_count",
        knn_func=ties_by_index,
        device=torch.device("cpu"),
    ).get_accuracy(rows, target)
    ours = recall_and_map(rows, target)
    assert ours["map_at_r"] == pytest.approx(100 * theirs["mean_average_precision_at_r"])
    assert ours["recall_at_1"] == pytest.approx(100 * theirs["precision_at_1"])


def test_neighbours_far_from_the_origin_and_close_together_keep_their_order():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(80, 6, generator=generator, dtype=torch.float64)
    true = torch.cat([near for _, near in nearest(rows, 10)])
    # what float32 leaves of it
    moved = (rows * 1e-4 + 3).float().double()
    exact = (
        (moved[:, None] - moved[None])
        .square()
        .sum(2)
        .fill_diagonal_(torch.inf)
        .topk(10, largest=False)
        .indices
    )
    assert torch.equal(torch.cat([near for _, near in nearest(moved.float(), 10)]), exact)
    assert torch.equal(torch.cat([near for _, near in nearest((rows + 100), 10)]), true)


def test_a_copy_of_the_query_counts_and_the_query_itself_does_not():
    rows = torch.tensor([[0.0], [0.0], [5.0], [5.0]])
    assert recall_and_map(rows, torch.tensor([0, 0, 1, 1]))["recall_at_1"] == 100
    assert recall_and_map(rows, torch.tensor([0, 1, 0, 1]))["recall_at_1"] == 0


def test_nmi_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    for classes, groups in ((5, 5), (3, 40), (1, 4)):
        a, b = (
            torch.randint(classes, (300,), generator=generator) * 7,
            torch.randint(groups, (300,), generator=generator),
        )
        b[:150] = a[:150]
        assert nmi(a, b) == pytest.approx(100 * normalized_mutual_info_score(a, b), abs=1e-9)
    assert nmi(a, a) == 100 and nmi(torch.arange(6), torch.arange(6).flip(0)) == pytest.approx(100)


def test_k_means_is_as_good_as_scikit_learns_and_the_same_each_time():
    rows, _ = clusters(n=400, classes=6, spread=4)
    labels = k_means(rows, 6)
    means = torch.stack([rows[labels == c].mean(0) for c in range(6)])
    inertia = (rows - means[labels]).square().sum()
    assert inertia < 1.05 * min(
        KMeans(6, n_init=10, random_state=0).fit(rows.numpy()).inertia_, float("inf")
    )
    assert torch.equal(labels, k_means(rows, 6)) and torch.equal(
        labels, (rows[:, None] - means).square().sum(2).argmin(1)
    )


def test_k_means_of_coincident_rows_and_of_as_many_clusters_as_rows():
    assert k_means(torch.ones(5, 3), 3).shape == (5,)
    assert len(k_means(torch.arange(6.0)[:, None], 6).unique()) == 6


def test_kendall_tau_is_scipys_ties_too():
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randint(6, (20, 9), generator=generator).double(),
        torch.randn(20, 9, generator=generator),
    )
    expected = [kendalltau(x, y).statistic for x, y in zip(a, b)]
    assert kendall_tau(a, b).tolist() == pytest.approx(expected)
    assert kendall_tau(a, a).tolist() == pytest.approx([1.0] * 20) and kendall_tau(
        b, -b
    ).tolist() == pytest.approx([-1.0] * 20)
    assert kendall_tau(torch.ones(1, 4), torch.arange(4.0)[None]).tolist() == [0]
