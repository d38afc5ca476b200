"""report.html: what a run found, in one file with its pictures inside.

``facts`` says what the numbers say, ``figures`` draws them, ``page`` puts both into
``template.html`` with ``style.css``.
"""

from kdtasks.engine.report.figures import CONTROL, OTHERS, STYLE, TAUGHT, TEACHER, stage_colors
from kdtasks.engine.report.page import write_report

__all__ = ["CONTROL", "OTHERS", "STYLE", "TAUGHT", "TEACHER", "stage_colors", "write_report"]
