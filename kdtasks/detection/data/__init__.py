"""Images with boxes: COCO's json, Pascal VOC's folders, images without labels, and a set that needs
no download.

All functions return :class:`DetectionData`, but for ``photos`` and ``box_crops``, which make images
without boxes of one. A path is taken as it stands, or else below
:func:`kdtasks.images.roots.data_root` (the environment variable KDTASKS_DATA).
"""

from kdtasks.detection.data.coco_json import coco, coco2017
from kdtasks.detection.data.data_set import DetectionData
from kdtasks.detection.data.image_sets import box_crops, photos
from kdtasks.detection.data.partly_labelled import few_labels, unlabelled, with_unlabelled
from kdtasks.detection.data.synthetic import digits_on_photos
from kdtasks.detection.data.voc_xml import BCCD_CLASSES, VOC_CLASSES, bccd, voc, voc0712

__all__ = [
    "BCCD_CLASSES",
    "VOC_CLASSES",
    "DetectionData",
    "bccd",
    "box_crops",
    "coco",
    "coco2017",
    "digits_on_photos",
    "few_labels",
    "photos",
    "unlabelled",
    "voc",
    "voc0712",
    "with_unlabelled",
]
