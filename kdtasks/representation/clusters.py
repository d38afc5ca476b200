"""A teacher's clusters of images, which stand for classes where there are no labels."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdtasks.general.directions import directions
from kdtasks.representation.models import embedding_of

if TYPE_CHECKING:
    from kdtasks.engine.experiment import Experiment


@torch.no_grad()
def teacher_clusters(experiment: "Experiment", clusters: int | None = None) -> Tensor:
    """The cluster (n,) of each image of the training data: k-means (scikit-learn, seed 0) of the
    first teacher's embeddings, brought to length 1. Each has two images at least, since one is
    searched and one asks (:func:`without_singles`).

    Args:
        experiment: whose final stage has a teacher; images are taken without augmentation.
        clusters: how many; None: the root of half as many as there are images, between 2 and 100
            (a usual rule of thumb).

    Raises:
        ValueError: fewer than 8 images, or fewer than two for each cluster.
    """
    from sklearn.cluster import KMeans

    from kdtasks.engine.loader import Loader

    stage = experiment.final
    assert stage is not None  # a run of representation has one
    setting = experiment.setting(stage, "data")
    plain = {key: value for key, value in setting["train"].items() if key != "augment"}
    images = experiment.data_set({**setting, "train": plain}, "train")
    if len(images) < 8:
        raise ValueError(f"expected at least 8 images to cluster, got {len(images)}")
    loader = Loader(images, 64, shuffle=False, drop_last=False, device=experiment.device)
    teacher = next(iter(experiment.distiller(stage).teachers.values()))
    teacher.eval()
    embeddings = [embedding_of(teacher(batch["input"])).float().cpu() for batch in loader]
    rows = directions(torch.cat(embeddings))
    count = clusters or min(max(round((len(rows) / 2) ** 0.5), 2), 100)
    if len(rows) < 2 * count:
        raise ValueError(f"expected at least {2 * count} images for {count} clusters")
    fitted = KMeans(count, n_init=4, random_state=0).fit(rows.numpy())
    return without_singles(rows, torch.from_numpy(fitted.labels_).long())


def without_singles(rows: Tensor, labels: Tensor) -> Tensor:
    """The labels, where each cluster of one image has taken the most alike image of a cluster that
    has three or more.

    Args:
        rows: (n, D), of length 1.
        labels: (n,), of n / 2 clusters at most.
    """
    labels = labels.clone()
    for label in labels.unique()[labels.unique(return_counts=True)[1] == 1].tolist():
        size = labels.bincount()[labels]
        alike = (rows @ rows[labels == label][0]).masked_fill(size < 3, -torch.inf)
        labels[alike.argmax()] = label
    return labels
