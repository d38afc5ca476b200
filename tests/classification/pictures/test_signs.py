"""Shares of equal signs are what is counted by hand from the weights in a run's files."""

import pytest
import torch
import torch.nn.functional as F
from picture_runs import NET, ab_stages, drawn, images_of, loader, trained
from small_runs import weights

from kdtasks.classification.pictures import signs
from kdtasks.engine.report import stage_colors


def responses(model, x, layer):
    """What the ReLU behind a BatchNorm of ``small_parts.Net`` is given."""
    for part in list(model)[: layer + 1]:
        x = part(x)
    return x


def test_signs_equal_a_count_by_hand_through_the_kept_connectors(ab):
    (picture,) = signs.pictures(ab, loader(ab), stage_colors(ab))
    images, _ = images_of(ab)
    teacher = ab.trained("teacher")
    kept = weights(ab, "boundaries")["resume"]["losses"]
    _, texts = drawn(picture)
    for name, layer in (("loss_ab1", 1), ("loss_ab2", 5)):
        active = responses(teacher, images, layer) > 0
        norm = {key: kept[f"{name}.projector.1.{key}"] for key in ("weight", "bias")}
        mean, var = (kept[f"{name}.projector.1.running_{key}"] for key in ("mean", "var"))
        for stage in ("boundaries", "distilled"):
            own = F.conv2d(
                responses(ab.trained(stage), images, layer), kept[f"{name}.projector.0.weight"]
            )
            own = F.batch_norm(own, mean, var, **norm)
            share = 100 * ((own > 0) == active).double().mean().item()
            assert f"{share:.1f}" in texts
        often = active.double().mean(0)
        lines = [c.get_segments()[0][0][1] for c in picture[1].axes[0].collections]
        assert any(
            value == pytest.approx(100 * torch.maximum(often, 1 - often).mean().item())
            for value in lines
        )
    assert {"at the start", "after boundaries", "after distilled"} <= set(texts)
    # it never had a connector
    assert "after alone" not in texts and "alone never had any" in picture[0]


def test_the_start_of_signs_is_what_training_started_with(ab):
    stage = ab.experiment.stage("boundaries")
    begun, again = (ab.distiller(stage, ended=False).state_dict() for _ in range(2))
    ended = ab.distiller(stage).state_dict()
    assert all(torch.equal(begun[key], again[key]) for key in begun)
    assert not torch.equal(
        begun["losses.loss_ab1.projector.0.weight"], ended["losses.loss_ab1.projector.0.weight"]
    )
    fresh = ab.experiment.model("student").state_dict()
    assert all(torch.equal(begun[f"student.{key}"], fresh[key]) for key in fresh)


def test_without_connectors_the_control_is_shown_too(folders):
    same = ab_stages(first={"length": 1})
    run = trained(folders(), length=1, student={"type": NET, "width": 8}, stages=same)
    (picture,) = signs.pictures(run, loader(run), stage_colors(run))
    title, texts = drawn(picture)
    assert "connectors" not in title and "after alone" in texts
    images, _ = images_of(run)
    own, other = (responses(run.trained(name), images, 1) > 0 for name in ("alone", "teacher"))
    assert f"{100 * (own == other).double().mean().item():.1f}" in texts
