"""Small runs of methods whose pictures are looked at, and what the tests of these share."""

import io

from small_runs import small

from kdtasks.engine.run import Run

NET = "small_parts.Net"
TEST = {"type": "small_parts.Digits", "first": 1000, "count": 60, "labelled": 50}


def trained(folder, **options):
    """A run to its end."""
    run = Run(small(schedule=[], data__test=TEST, **options), folder, quiet=True)
    run.train()
    return run


def ab_stages(**options):
    layers = {"student": ["1", "5"], "teacher": ["1", "5"]}
    return {"type": "kdtasks.general.ab.stages", **layers, **options}


def rco_stages(**options):
    return {"type": "kdtasks.general.rco.stages", "epochs": [1, 2], **options}


def images_of(run):
    """Its inputs and targets."""
    data = run.experiment.data_set(run.experiment.config["data"], "test")
    return data.images, data.target


def accuracy(model, images, target):
    known = target >= 0
    return 100 * (model(images[known]).argmax(1) == target[known]).double().mean().item()


def drawn(picture):
    """Its title, and the texts in the figure, which can be drawn."""
    title, figure = picture
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    return title, [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))]


def loader(run):
    return run.experiment.test_loader(run.finished[-1])
