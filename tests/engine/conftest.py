"""One finished small run for the tests that only look at it; one thread, since its networks are tiny."""

import pytest
import torch
from small_runs import small

from kdtasks.engine.run import Run


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    run = Run(small(), tmp_path_factory.mktemp("runs") / "undisturbed", quiet=True)
    run.train()
    return run
