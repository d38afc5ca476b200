"""What is wrong with a method's setting is said before the first step, through a config's door."""

import pytest
from small_runs import small

from kdtasks.engine.errors import ConfigError
from kdtasks.engine.run import Run

CLS = {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}
KD = {"type": "kdtasks.general.KDLoss", "of": ("student", "teacher")}
MUTUAL = {"type": "kdtasks.general.mutual_losses", "of": ("peers", "target")}
BSS = {
    "type": "kdtasks.general.BSSLoss",
    "of": ("student.boundary", "teacher.boundary", "student.boundary_valid"),
}
NET = "small_parts.Net"


def peers(*described):
    return {
        "losses": {"loss_cls": {**CLS, "weight": 0}, "loss_dml": MUTUAL},
        "peers": [{"type": NET, **one} for one in described],
        "teachers": {},
    }


def attacked(teacher=NET, **options):
    return {
        "losses": {"loss_cls": CLS, "loss_bss": BSS},
        "distiller": {"type": "kdtasks.general.BSSDistiller", **options},
        "teachers": {"teacher": {"type": teacher}},
    }


def chain(**assistant):
    return {
        "losses": {"loss_cls": CLS, "loss_kd": KD},
        "models": {"middle": {"type": NET, **assistant}},
        "stages": {"type": "kdtasks.general.takd.stages", "assistants": {"middle": {}}},
    }


def route(**arguments):
    return {
        "losses": {"loss_cls": CLS, "loss_kd": KD},
        "stages": {"type": "kdtasks.general.rco.stages", **arguments},
    }


def unkept(keep):
    return {
        "stages": [
            {"name": "teacher", "model": "teacher", "keep": keep},
            {"name": "distilled", "teachers": {"teacher": ["teacher.1", "teacher"]}},
        ]
    }


def ensemble(**parts):
    members = [{"type": NET, "width": 4} for _ in range(2)]
    parts = {"members.0": "alone", "members.1": "distilled", **parts}
    return {
        "models": {
            "ensemble": {"type": "kdtasks.general.Ensemble", "members": members, "parts": parts}
        }
    }


SEQUENTIAL = {"distiller": {"type": "kdtasks.general.SequentialDMLDistiller"}}


@pytest.mark.parametrize(
    "changes, message",
    [
        # DML
        (peers(), r"expected the logits of two peers or more, got \[\(32, 10\)\]: one alone has"),
        (peers({"num_classes": 7}), r"of one shape \(B, C\), got \[\(32, 10\), \(32, 7\)\]"),
        ({**peers(), **SEQUENTIAL}, "expected the logits of two peers or more"),
        ({**peers({}), **SEQUENTIAL, "accumulate": 2}, "takes 2 steps on each: expected accumul"),
        # BSS
        (attacked("small_parts.Detached"), "score gives no gradient of its input"),
        (attacked(clip=(3.0, 4.0)), r"values lie in \[.* excludes them"),
        (attacked(mean=(0.5,)), "expected clip=.low, high., or mean and std"),
        # TAKD, BAN: by what the config says, and by what the networks give
        (
            {**chain(num_classes=7), "student": {"type": NET, "num_classes": 10}},
            "models.middle has num_classes=7, and the student 10: expected the same classes",
        ),
        (chain(num_classes=12), r"loss_kd cannot be computed from .*\(32, 12\)"),
        # RCO
        (unkept([]), r"needs 'teacher.1', but the stage 'teacher' keeps the epochs \[\]: add it"),
        (unkept([1, 9]), "stage 'teacher' keeps epoch 9, but ends after 3"),
        (route(interval=9), r"interval=9 of a teacher that is trained for 3 epochs leaves"),
        (route(epochs=[1, 5]), r"epochs=\[1, 5\] of a teacher that is trained for 3 epochs"),
        (route(interval=1, greedy={"threshold": 2}), r"expected greedy=dict\(threshold=…, held_"),
        # BAN's ensemble
        (ensemble(**{"members.2": "alone"}), r"parts\['members.2'\]: no such part; did you mean"),
        (ensemble(**{"members.1": "aline"}), r"parts\['members.1'\] is 'aline'; did you mean 'alo"),
        (ensemble(**{"members.1": "teacher"}), "other weights than what stage 'teacher' trains"),
        (ensemble(**{"members.1": 3}), r"models.ensemble.parts must be a dict"),
    ],
)
def test_it_is_said_before_the_first_step(tmp_path, changes, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        config = small()
        if "parts must be" in message:
            config = small(models=changes["models"])
        Run({**config, **changes}, tmp_path / "run", quiet=True).train()
    assert not (tmp_path / "run").exists()
