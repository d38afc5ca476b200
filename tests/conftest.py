"""One thread: the networks of the tests are tiny, and run faster so. And no images in the reports of
runs that are there for something else.
"""

import os

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def undrawn_reports():
    """Figures of reports are made and titled, but not drawn, which would take more than half of a
    small run's time; in processes that tests start: ``small_parts.py``.
    """
    from kdtasks.engine.report import figures

    embed = figures.embed
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDRAWN_REPORTS", str(os.getpid()))
        patch.setattr(
            figures, "embed", lambda pictures: [figures.Picture(title, 1) for title, _ in pictures]
        )
        yield embed


def _drawn(embed):
    from kdtasks.engine.report import figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "embed", embed)
        yield


@pytest.fixture
def drawn_report(undrawn_reports):
    """For a test that looks at a report as users see it."""
    yield from _drawn(undrawn_reports)


@pytest.fixture(scope="module")
def drawn_reports(undrawn_reports):
    """For a module whose reports are as users see them."""
    yield from _drawn(undrawn_reports)
