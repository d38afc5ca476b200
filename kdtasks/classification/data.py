"""Images for classification: whole data sets in one uint8 tensor, or files that are read when they
are needed.

``digits``, ``cifar100``, ``image_folder``, ``torchvision_set``, ``arrays``: labelled images.
``unlabelled_folder``: images without labels. ``concat``, ``few_labels``: sets made of others.
They are written in :mod:`kdtasks.images`, as other tasks have them too. A path is taken as it
stands, or else below :func:`~kdtasks.images.roots.data_root`.
"""

from kdtasks.images.arrays import ImageArrays
from kdtasks.images.cifar import CIFAR100_CLASSES, CIFAR100_SUPERCLASSES, cifar100
from kdtasks.images.digits import digits
from kdtasks.images.files import ImageFiles
from kdtasks.images.folders import image_folder, unlabelled_folder
from kdtasks.images.sets import arrays, torchvision_set
from kdtasks.images.subsets import concat, few_labels, labelled_subset

__all__ = [
    "CIFAR100_CLASSES",
    "CIFAR100_SUPERCLASSES",
    "ImageArrays",
    "ImageFiles",
    "arrays",
    "cifar100",
    "concat",
    "digits",
    "few_labels",
    "image_folder",
    "labelled_subset",
    "torchvision_set",
    "unlabelled_folder",
]
