"""One colour for each class, the same in a report's figures and in the pictures of a folder."""

from kdtasks.images.display import PALETTE

# the last ones stand out on a photograph
CLASS_COLORS = (*PALETTE, "#C2185B", "#5C8A00", "#00838F", "#8C5A2B", "#3949AB")


def class_color(label: int) -> str:
    """``'#RRGGBB'`` of a label, counted from 1; they come again after twelve."""
    return CLASS_COLORS[(label - 1) % len(CLASS_COLORS)]
