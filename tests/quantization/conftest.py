"""Runs of these tests write no report: its pictures take as long as the training."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def no_report():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdtasks.engine.report.write_report", lambda run: None)
        yield
