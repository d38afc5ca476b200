"""The page of a report: facts and figures put into report.html, in one file that needs nothing
else.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import kdtasks
from kdtasks.core.files import write_atomically, write_text
from kdtasks.engine import deployment
from kdtasks.engine.report import facts, figures, style

if TYPE_CHECKING:
    from kdtasks.engine.report.figures import Picture
    from kdtasks.engine.run import Run


def write_report(run: "Run") -> list[tuple[str, str]]:
    """Write ``<work_dir>/report.html`` from what the run has so far.

    The task's pictures are an extra: if they cannot be made, the report says why, and a warning
    does.

    Args:
        run: a :class:`kdtasks.engine.run.Run`; stages may be missing or unfinished.

    Returns:
        Its pictures, ``(title, data URI of a PNG)``.
    """
    import matplotlib.style  # slow to import; pyplot and its global state are not touched

    with matplotlib.style.context(style.STYLE, after_reset=True):
        (charts, curves), pictures, note = figures.draw(run), [], ""
        try:
            pictures = [(str(title), figure) for title, figure in run.experiment.task.pictures(run)]
        except Exception as error:
            note = f"The task's pictures could not be made: {type(error).__name__}: {error}"
            warnings.warn(note, stacklevel=2)
        images = figures.embed([*charts, *curves, *pictures])
    cut, end = len(charts), len(charts) + len(curves)
    page = render(run, images[:cut], images[cut:end], images[end:], note)
    write_atomically(run.work_dir / "report.html", lambda path: write_text(path, page))
    return [(picture.title, picture.whole) for picture in images]


def render(
    run: "Run",
    charts: "list[Picture]",
    curves: "list[Picture]",
    pictures: "list[Picture]",
    note: str,
) -> str:
    """The page as text."""
    experiment = run.experiment
    parameters, measured = facts.parameter_counts(run), run.files.deployment
    return fill(
        Path(__file__).parent / "report.html",
        name=experiment.name,
        seed=experiment.seed,
        colors=figures.stage_colors(run),
        unit=experiment.task.unit(experiment.task.primary),
        about=[
            f"seed {experiment.seed}",
            run.results["device"],
            f"kdtasks {kdtasks.__version__}",
            f"torch {torch.__version__}",
        ],
        sentence=facts.sentence(run),
        cards=facts.cards(run, parameters),
        unfinished=facts.unfinished(run),
        table=facts.stage_table(run, parameters),
        unreadable=facts.unreadable(run),
        control=facts.about_control(run),
        deployment=deployment.table(measured) if measured else None,
        robustness=facts.robustness_table(run),
        config=facts.config_text(run),
        charts=charts,
        curves=curves,
        pictures=pictures,
        note=note,
    )


def fill(template: Path, **values: object) -> str:
    """A page that needs nothing else: a template that extends ``frame.html``, filled in."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(**values)
