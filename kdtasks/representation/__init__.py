"""Representations: a backbone learns from a teacher on images without labels."""

from kdtasks.representation.knn import weighted_knn
from kdtasks.representation.losses import ClassifierLoss

__all__ = ["ClassifierLoss", "weighted_knn"]
