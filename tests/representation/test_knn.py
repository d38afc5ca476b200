"""Weighted kNN against a loop over queries and rows, and the linear probe's own laws."""

import math

import pytest
import torch

from kdtasks.representation import weighted_knn
from kdtasks.representation.knn import nearest_in_bank
from kdtasks.representation.probe import probe_answers

F64 = torch.float64


def slow(bank, labels, queries, k, temperature, classes):
    found = []
    for query in queries.tolist():
        cosines = []
        for place, row in enumerate(bank.tolist()):
            product = sum(a * b for a, b in zip(query, row))
            lengths = math.hypot(*query) * math.hypot(*row)
            cosines.append((-product / lengths if lengths > 0 else 0.0, place))
        scores = [0.0] * classes
        for cosine, place in sorted(cosines)[:k]:
            scores[labels[place]] += math.exp((-cosine - 1) / temperature)
        found.append(scores)
    return torch.tensor(found, dtype=F64)


def drawn(n=11, m=4, d=3):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n + m, d, generator=generator, dtype=F64)
    return rows[:n], torch.arange(n) % 3, rows[n:]


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (4, 0.07), (11, 1.0), (50, 0.3)])
def test_scores_are_those_of_the_loop(k, temperature):
    bank, labels, queries = drawn()
    found = weighted_knn(bank, labels, queries, k, temperature, classes=4)
    torch.testing.assert_close(found, slow(bank, labels.tolist(), queries, k, temperature, 4))


def test_lengths_do_not_count_and_equal_rows_go_by_their_place():
    bank, labels, queries = drawn()
    scaled = weighted_knn(bank * torch.arange(1, 12)[:, None], labels, 100 * queries, 4)
    torch.testing.assert_close(scaled, weighted_knn(bank, labels, queries, 4))
    copies = torch.ones(6, 3)
    cosine, place = nearest_in_bank(copies, copies[:2], 4)
    assert place.tolist() == [[0, 1, 2, 3]] * 2 and cosine.eq(cosine[0, 0]).all()
    # two classes with as many votes: the smaller one
    assert weighted_knn(copies, torch.tensor([1, 0, 1, 0, 1, 0]), copies[:1], 2).argmax() == 0


def test_many_queries_in_blocks_are_those_of_one_block(monkeypatch):
    bank, labels, queries = drawn()
    whole = weighted_knn(bank, labels, queries, 3)
    monkeypatch.setattr("kdtasks.representation.knn._ENTRIES", 20)
    torch.testing.assert_close(weighted_knn(bank, labels, queries, 3), whole, rtol=0, atol=0)


def test_half_precision_is_raised_and_no_query_has_no_score():
    bank, labels, queries = drawn()
    assert weighted_knn(bank.half(), labels, queries.half()).dtype == torch.float32
    assert weighted_knn(bank, labels, queries[:0], classes=3).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(3, dtype=torch.long)}, "label for each of 11 rows"),
        ({"labels": torch.arange(11) - 1}, "labels in 0..9, got -1 to 9"),
        ({"classes": 2}, "labels in 0..1, got 0 to 2"),
        ({"k": 0}, "k >= 1"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"queries": torch.ones(2, 5)}, r"queries \(M, D\), got \(11, 3\) and \(2, 5\)"),
        ({"queries": torch.full((2, 3), math.nan)}, "2 rows of the queries are not finite"),
    ],
)
def test_what_cannot_be_is_said(change, message):
    bank, labels, queries = drawn()
    given = {"bank": bank, "labels": labels, "queries": queries, **change}
    with pytest.raises(ValueError, match=message):
        weighted_knn(**given)


def test_a_probe_separates_what_a_line_can_and_is_blind_to_units():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    centres = torch.tensor([[0.0, 0.0], [0.0, 6.0], [6.0, 0.0]])
    rows = centres[labels] + torch.randn(120, 2, generator=generator)
    bank, queries = rows[:90], rows[90:]
    answers = probe_answers(bank, labels[:90], queries)
    assert (answers == labels[90:]).double().mean() > 0.95
    units = torch.tensor([1e-3, 1e4])
    dead = torch.ones(120, 1)  # a dimension that never varies
    changed = torch.cat([rows * units - 7, dead], 1)
    assert torch.equal(probe_answers(changed[:90], labels[:90], changed[90:]), answers)
    with pytest.raises(ValueError, match="two classes at least"):
        probe_answers(bank, torch.zeros(90, dtype=torch.long), queries)
