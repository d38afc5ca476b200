"""One colour for each class, the same in a report's figures and in the pictures of a folder."""

# Okabe and Ito's colours first, then others that stand out on a photograph.
CLASS_COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7B4FA3",
    "#C2185B",
    "#5C8A00",
    "#00838F",
    "#8C5A2B",
    "#3949AB",
)


def class_color(label: int) -> str:
    """``'#RRGGBB'`` of a label, counted from 1; they come again after twelve."""
    return CLASS_COLORS[(label - 1) % len(CLASS_COLORS)]
