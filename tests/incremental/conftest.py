"""One finished run of each small config for the tests that only look at it."""

import pytest
from small_incremental import run_of

from kdtasks.engine import report
from kdtasks.incremental import trainer


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """``finished('lwf')``; its report has no pictures of the task."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = run_of(tmp_path_factory.mktemp(name) / "run", name)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(trainer, "pictures", lambda run: [])
                made[name].train()
        return made[name]

    return get


@pytest.fixture
def no_report(monkeypatch):
    """For tests that run and look at weights: drawing would take most of their time."""
    monkeypatch.setattr(report, "write_report", lambda run: None)
