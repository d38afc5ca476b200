"""AIL's shipped configs: the rounds follow each other, and "alone" has their steps, learning rates
and data.
"""

from pathlib import Path

import pytest
import torch
from PIL import Image

from kdtasks.engine import config as configs
from kdtasks.engine.config_checks import iterations, stages_of
from kdtasks.engine.optim import build_schedulers
from kdtasks.super_resolution.ail import AILLoss, released_stages, round_stages
from kdtasks.super_resolution.data import image_folder

FOLDER = Path(__file__).parents[2] / "configs" / "super_resolution"
PATHS = [*sorted(FOLDER.glob("ail_*.py")), FOLDER / "default.py"]
# iterations of an epoch; of a round that counts in iterations
PER_EPOCH, SHORT = 2, 20


@pytest.fixture(params=PATHS, ids=lambda path: path.stem, scope="module")
def config(request):
    config = configs.load(request.param)
    return {**config, "stages": stages_of(config)}


def rounds_of(config):
    return [stage for stage in config["stages"] if "loss_ail" in stage.get("losses", {})]


def alone_of(config):
    (alone,) = (stage for stage in config["stages"] if stage["name"] == "alone")
    return alone


def setting(config, stage, key):
    return config[key] if stage.get(key) is None else stage[key]


def test_rounds_follow_each_other(config):
    rounds = rounds_of(config)
    assert [stage["name"] for stage in rounds] == [
        *(f"round{t}" for t in range(len(rounds) - 1)),
        "distilled",
    ]
    assert len(rounds) in (5, 10)
    settings = []
    for t, stage in enumerate(rounds):
        loss = {
            key: value
            for key, value in stage["losses"]["loss_ail"].items()
            if key not in ("type", "of")
        }
        assert loss["round"] == t and stage["losses"]["loss_ail"]["of"] == AILLoss(**loss).of
        settings.append({key: value for key, value in loss.items() if key != "round"})
        supplied = {*stage.get("teachers", {}), "student", "target"}
        assert supplied == {*AILLoss(**loss).of}
        if t:
            before = rounds[t - 1]["name"]
            assert stage["teachers"]["previous"] == before and stage["student"] in ("keep", before)
            assert (
                stage["optimizer_state"] == "keep"
                and config["stages"].index(stage) == config["stages"].index(rounds[t - 1]) + 1
            )
    assert "optimizer_state" not in rounds[0] and rounds[0].get("student") == alone_of(config).get(
        "student"
    )
    assert all(one == settings[0] for one in settings)


def test_alone_has_the_steps_the_learning_rates_and_the_data_of_all_rounds(config):
    rounds, alone = rounds_of(config), alone_of(config)
    full = [
        iterations(setting(config, stage, "length"), PER_EPOCH, "length")
        for stage in (*rounds, alone)
    ]
    assert full[-1] == sum(full[:-1])
    joined = [rate for stage in rounds for rate in rates(config, stage)]
    assert (
        rates(config, alone) == pytest.approx(joined, rel=1e-6, abs=1e-12) and len(set(joined)) > 4
    )
    for key in ("train", "batch_size"):
        assert all(of_data(config, stage, key) == of_data(config, alone, key) for stage in rounds)
    assert all(
        setting(config, stage, "optimizer") == setting(config, alone, "optimizer")
        for stage in rounds
    )


def of_data(config, stage, key):
    return (stage.get("data") or {}).get(key, config["data"][key])


def rates(config, stage):
    """The learning rate of each step; what counts in iterations is scaled down so that a round has
    ``SHORT``.
    """
    length, schedule = setting(config, stage, "length"), setting(config, stage, "schedule")
    if isinstance(length, dict):
        factor = setting(config, rounds_of(config)[0], "length")["iterations"] // SHORT
        length, schedule = (
            {"iterations": length["iterations"] // factor},
            shortened(schedule, factor),
        )
    length = iterations(length, PER_EPOCH, "length")
    optimizer = torch.optim.SGD(
        [torch.zeros(1, requires_grad=True)], lr=setting(config, stage, "optimizer")["lr"]
    )
    schedulers = build_schedulers(
        schedule if isinstance(schedule, list) else [schedule], optimizer, length, PER_EPOCH
    )
    found = []
    for _ in range(length):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return found


def shortened(schedule, factor):
    return {
        **schedule,
        **(
            {"periods": [period // factor for period in schedule["periods"]]}
            if "periods" in schedule
            else {}
        ),
    }


def test_the_config_of_291_images_cuts_patches_of_small_ones_too(tmp_path, monkeypatch):
    """One of the 91 has 78x78 pixels: at half of its size it is smaller than a patch."""
    monkeypatch.setenv("KDTASKS_DATA", str(tmp_path))
    (tmp_path / "291").mkdir()
    for name, size in (("small", (78, 78)), ("large", (100, 90))):
        Image.new("RGB", size).save(tmp_path / "291" / f"{name}.png")
    config = configs.load(FOLDER / "ail_vdsr64_vdsr13_291_x2.py")
    config["stages"] = stages_of(config)
    plain = next(stage for stage in config["stages"] if stage["name"] == "plain")
    for stage, scales in ((alone_of(config), 1), (plain, 3)):
        with pytest.warns(UserWarning, match=f"left out {scales} of {6 * scales} variants"):
            patches = image_folder(
                **{
                    key: value
                    for key, value in of_data(config, stage, "train").items()
                    if key != "type"
                }
            )
        assert len(patches) == 33 * 5 * scales


def test_the_released_stages_want_epochs_and_one_schedule():
    config = configs.load(FOLDER / "ail_vdsr32_vdsr13_bsds_x2_short.py")
    with pytest.raises(
        ValueError,
        match=r"expected a length in epochs and one MultiStepLR, got "
        r"length={'iterations': 7}",
    ):
        released_stages({**config, "length": {"iterations": 7}})
    with pytest.raises(ValueError, match=r"schedule={'type': 'ConstantLR'}"):
        released_stages({**config, "schedule": {"type": "ConstantLR"}})


@pytest.mark.parametrize(
    "changes",
    [
        {"length": 7},
        {"length": {"iterations": 4001}},
        {"length": {"iterations": 8000}},
        {"schedule": {"type": "CosineAnnealingLR"}},
    ],
    ids=str,
)
def test_rounds_need_a_schedule_with_which_alone_has_their_learning_rates(changes):
    config = configs.load(FOLDER / "ail_espcn_bsds_x2_short.py")
    assert len(round_stages(config)) == 12
    with pytest.raises(ValueError, match=r"n a multiple of rounds=10, and schedule={'type': 'Cos"):
        round_stages({**config, **changes})
