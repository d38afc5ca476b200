"""Draws docs/concepts.svg: ``python docs/site_code/picture.py > docs/concepts.svg``.

It has a light ground of its own, so that it can be read on a light page and on a dark one.
"""

INK, PALE, STUDENT, TEACHER, LOSS = "#1f2328", "#6b7280", "#dbeafe", "#fde68a", "#dcfce7"
FONT = 'font-family="Helvetica, Arial, DejaVu Sans, sans-serif"'


def text(x: float, y: float, words: str, size: int = 14, **options: str) -> str:
    """Words around x, or from it on with ``anchor='start'``."""
    anchor, colour = options.get("anchor", "middle"), options.get("colour", INK)
    weight, face = options.get("weight", "normal"), options.get("face", FONT)
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
        f'font-weight="{weight}" {face}>{words}</text>'
    )


def code(x: float, y: float, words: str) -> str:
    """A name of a tensor, of a loss or of a stage."""
    face = 'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace"'
    return text(x, y, words, 12, anchor="start", face=face)


def box(x: float, y: float, width: float, height: float, fill: str, title: str, *lines: str) -> str:
    """A box with a title and lines of explanation."""
    middle, top = x + width / 2, y + 24
    drawn = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" '
    drawn += f'stroke="{INK}" stroke-width="1.2"/>' + text(middle, top, title, 15, weight="bold")
    return drawn + "".join(
        text(middle, top + 19 * (k + 1), line, 12) for k, line in enumerate(lines)
    )


def arrow(points: str, dashed: bool = False) -> str:
    """A line along points that ends in an arrow."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<polyline points="{points}" fill="none" stroke="{INK}" stroke-width="1.4"{dash} '
        'marker-end="url(#tip)"/>'
    )


def picture() -> str:
    """The whole picture: one step above, a run below."""
    step = [
        text(30, 36, "One step", 17, anchor="start", weight="bold"),
        box(30, 105, 130, 80, "#ffffff", "a batch", "images, targets", "numbers"),
        box(225, 55, 180, 74, TEACHER, "teacher", "frozen, in eval", "or its cached outputs"),
        box(225, 165, 180, 74, STUDENT, "student", "the only one that learns", "(with its peers)"),
        arrow("160,135 192,135 192,92 221,92"),
        arrow("160,155 192,155 192,202 221,202"),
        box(470, 45, 200, 204, "#ffffff", "tensors by name"),
        *(
            code(488, 98 + 21 * k, name)
            for k, name in enumerate(
                ("teacher", "teacher.layer3", "student", "student.layer3", "target", "…")
            )
        ),
        text(570, 236, "what the distiller supplies", 12, colour=PALE),
        arrow("405,92 466,92"),
        arrow("405,202 466,202"),
        box(735, 45, 215, 204, LOSS, "losses", "function(tensors) · weight"),
        code(750, 124, "loss_cls"),
        text(765, 143, "of student, target", 12, anchor="start"),
        code(750, 170, "loss_kd"),
        text(765, 189, "of student, teacher", 12, anchor="start"),
        text(842, 232, "sum, backward, step", 13, weight="bold"),
        arrow("670,147 731,147"),
        arrow("842,249 842,278 315,278 315,243"),
        text(580, 271, "gradients reach the student alone", 12, colour=PALE),
    ]
    run = [
        f'<line x1="30" y1="304" x2="950" y2="304" stroke="{PALE}" stroke-width="0.8"/>',
        text(30, 336, "One run: stages", 17, anchor="start", weight="bold"),
        box(30, 370, 170, 74, TEACHER, "teacher", "role: teacher", "or a checkpoint"),
        box(290, 350, 230, 74, STUDENT, "alone", "role: control", "no teacher, losses at weight 1"),
        box(290, 446, 230, 74, STUDENT, "distilled", "role: taught", "the same images and steps"),
        arrow("200,407 245,407 245,483 286,483"),
        text(405, 439, "the same first weights", 12, colour=PALE),
        box(600, 398, 150, 74, LOSS, "results", "distilled - alone", "report.html"),
        arrow("520,387 560,387 560,425 596,425"),
        arrow("520,483 560,483 560,445 596,445"),
        box(812, 398, 138, 74, LOSS, "compare", "paired by seed", "with an interval"),
        arrow("750,435 808,435"),
    ]
    tip = (
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" '
        f'markerHeight="7" orient="auto-start-reverse"><path d="M0,0 L10,5 L0,10 z" fill="{INK}"/>'
        "</marker></defs>"
    )
    title = "<title>A step and a run of kdtasks</title>"
    ground = '<rect width="980" height="545" rx="12" fill="#fafaf9"/>'
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 980 545" role="img">'
    return "\n".join([head, title, tip, ground, *step, *run, "</svg>"])


if __name__ == "__main__":
    print(picture())
