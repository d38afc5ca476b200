"""Each method shows its own pictures."""

from kdtasks.classification import trainer


def titles(run):
    """Of all pictures behind the three that every run has."""
    return [title.split(":")[0].split(",")[0] for title, _ in trainer.pictures(run)[3:]]


def test_each_method_shows_its_own_and_no_other(bss, dml, ab, takd, rco):
    """A run of none shows none: ``test_pictures.py``."""
    first, second = titles(bss)
    assert first == "Boundary samples" and second.startswith("MagSim and AngSim of the teacher's")
    assert titles(dml) == ["Agreement of the 3 peers", "Accuracy of each peer"]
    (signs_title,) = titles(ab)
    assert signs_title.startswith("Neurons whose sign")
    assert titles(takd) == ["Accuracy along the chain"]
    assert titles(rco) == ["Accuracy along the route"]
