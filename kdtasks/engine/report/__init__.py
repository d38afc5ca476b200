"""report.html: what a run found, in one file with its pictures inside.

``facts`` says what the numbers say, ``figures`` draws them in the ``style`` of all figures, for a
phone ``narrow``, and ``page`` puts both into ``report.html``. Its frame, style and script
(``frame.html``, ``parts.html``, ``style.css``, ``tables.js``) are those of a comparison's page too.
"""

from kdtasks.engine.report.figures import stage_colors
from kdtasks.engine.report.page import write_report
from kdtasks.engine.report.style import CONTROL, OTHERS, STYLE, TAUGHT, TEACHER

__all__ = ["CONTROL", "OTHERS", "STYLE", "TAUGHT", "TEACHER", "stage_colors", "write_report"]
