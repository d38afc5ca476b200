"""A finished run of each method, for all tests that look at it."""

import pytest
from picture_runs import NET, ab_stages, rco_stages, trained

CE = {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}
BOUNDARY = ("student.boundary", "teacher.boundary", "student.boundary_valid")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """New folders for runs."""
    return lambda: tmp_path_factory.mktemp("runs") / "run"


@pytest.fixture(scope="session")
def bss(folders):
    return trained(
        folders(),
        length=8,
        distiller={"type": "kdtasks.general.BSSDistiller", "count": 8, "max_steps": 4},
        losses__loss_bss={"type": "kdtasks.general.BSSLoss", "of": BOUNDARY, "weight": 0.2},
    )


@pytest.fixture(scope="session")
def dml(folders):
    return trained(
        folders(),
        teacher=None,
        length=8,
        peers=[{"type": NET, "width": 4}, {"type": NET, "width": 6}],
        losses={
            "loss_cls": {**CE, "weight": 0},
            "loss_dml": {"type": "kdtasks.general.mutual_losses", "of": ("peers", "target")},
            "agreement": {"type": "kdtasks.general.peer_agreement", "of": ("peers",)},
        },
    )


@pytest.fixture(scope="session")
def ab(folders):
    return trained(folders(), stages=ab_stages(first={"length": 4}))


@pytest.fixture(scope="session")
def takd(folders, bss):
    """Its teacher is a file."""
    return trained(
        folders(),
        teacher__checkpoint=str(bss.folder(bss.experiment.stage("teacher")) / "last.pth"),
        models={"middle": {"type": NET, "width": 6}},
        stages={"type": "kdtasks.general.takd.stages", "assistants": {"middle": {}}},
    )


@pytest.fixture(scope="session")
def rco(folders):
    return trained(folders(), stages=rco_stages(), length=3)
