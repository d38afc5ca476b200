"""One finished small run for the tests that only look at it."""

import pytest
from small_runs import small

from kdtasks.engine.run import Run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    run = Run(small(), tmp_path_factory.mktemp("runs") / "undisturbed", quiet=True)
    run.train()
    return run
