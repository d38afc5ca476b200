"""Learning rates of their own for parts of a student."""

import pytest
import torch
from small_runs import small

from kdtasks.core import Distiller
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.parameters import build_optimizer, select_parameters


def distiller():
    student = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    losses = {"loss": (torch.nn.MSELoss(), ("student", "target"))}
    return Distiller(student, losses=losses)


def spec(**factors):
    return {"type": "torch.optim.SGD", "lr": 0.5, "factors": factors}


def test_each_parameter_steps_by_its_own_rate():
    made = distiller()
    optimizer = build_optimizer(
        spec(**{"student.*": 0.1, "student.1.bias": 0.2}),
        made,
        select_parameters(made, ["student"]),
    )
    before = {name: p.clone() for name, p in made.named_parameters()}
    for parameter in made.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in made.named_parameters():
        rate = 0.1 if name == "student.1.bias" else 0.05
        torch.testing.assert_close(parameter, before[name] - rate)
    assert len(optimizer.param_groups) == 2


def test_what_does_not_learn_has_no_rate_and_a_slip_is_named():
    made = distiller()
    trained = select_parameters(made, ["student.1"])
    with pytest.raises(
        ValueError, match="optimizer.factors: nothing that can train is called 'student.0'"
    ):
        build_optimizer(spec(**{"student.0": 0.1}), made, trained)
    with pytest.raises(ValueError, match="numbers > 0, got 0"):
        build_optimizer(spec(**{"student.1.bias": 0}), made, trained)
    with pytest.raises(ValueError, match="lr, which must be a number, got None"):
        build_optimizer({"type": "torch.optim.SGD", "factors": {"student.1": 0.1}}, made, trained)
    with pytest.raises(ConfigError, match="SGD has no argument 'factor'"):
        small(optimizer={"type": "torch.optim.SGD", "lr": 0.1, "factor": {}})
