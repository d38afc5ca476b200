"""Guards for avalanche's benchmarks: classes that got lost, lists of classes that are sets, targets
that are missing.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avalanche.benchmarks import CLExperience, CLScenario


def checked_benchmark(
    benchmark: "CLScenario", classes: Iterable[int] | None = None
) -> "CLScenario":
    """The benchmark with its lists of classes sorted, once it is sure that none is lost.

    ``class_incremental_benchmark(…, num_experiences=3)`` leaves out the last class of ten without a
    word. It also gives classes as sets, which avalanche's ``MultiHeadClassifier`` cannot index
    with; ``task_incremental_benchmark`` gives none. Datasets without ``targets_task_labels`` are
    good for our plugins, and are left as they are.

    Args:
        benchmark: an avalanche benchmark (``CLScenario``); its experiences are changed.
        classes: what its streams should hold; None: every target of the datasets that the
            experiences were cut from, as far as these have ``targets``.

    Raises:
        ValueError: a class of ``classes`` is in no experience of a stream; an experience's dataset
            has no ``targets``.
    """
    for name, stream in benchmark.streams.items():
        experiences = list(stream)
        lists = [classes_of(experience) for experience in experiences]
        present = set().union(*lists)
        if classes is None:
            expected = _targets_of_sources(experience.dataset for experience in experiences)
        else:
            expected = {*classes}
        if missing := sorted(expected - present):
            raise ValueError(
                f"classes {missing} are in no experience of the stream {name!r}, which has "
                f"{sorted(present)}: give class_incremental_benchmark a number of experiences that "
                "divides that of the classes, or num_classes_per_exp=[…]"
            )
        _sort_lists(experiences, lists, present)
    return benchmark


def _sort_lists(
    experiences: list["CLExperience"], lists: list[list[int]], present: set[int]
) -> None:
    """Give each experience its lists of classes, sorted."""
    before: set[int] = set()
    for experience, classes in zip(experiences, lists):
        so_far = before | {*classes}
        attributes = {
            "classes_in_this_experience": classes,
            "previous_classes": sorted(before),
            "classes_seen_so_far": sorted(so_far),
            "future_classes": sorted(present - so_far),
        }
        before = so_far
        for key, value in attributes.items():
            if getattr(experience, key, None) != value:
                setattr(experience, key, value)


def classes_of(experience: "CLExperience") -> list[int]:
    """The class numbers of an experience, sorted; from its dataset's ``targets`` if it does not
    list them.

    Raises:
        ValueError: it has neither.
    """
    classes = getattr(experience, "classes_in_this_experience", None)
    if classes is None:
        classes = _targets(experience.dataset)
    return sorted({int(number) for number in classes})


def _targets(dataset: object) -> Iterable[int]:
    if not hasattr(dataset, "targets"):
        raise ValueError(
            f"a {type(dataset).__name__} has no targets: give class_incremental_benchmark plain "
            "datasets with .targets, or benchmark_from_datasets those of as_classification_dataset"
        )
    return getattr(dataset.targets, "uniques", dataset.targets)


def _targets_of_sources(datasets: Iterable) -> set[int]:
    """All targets of the datasets inside of avalanche's, those that no experience took included."""
    targets: set[int] = set()
    visited: set[int] = set()
    queue = list(datasets)
    while queue:
        dataset = queue.pop()
        inner = getattr(getattr(dataset, "_flat_data", dataset), "_datasets", None)
        if inner is not None:
            queue.extend(inner)
        elif id(dataset) not in visited:
            visited.add(id(dataset))
            targets.update(int(number) for number in getattr(dataset, "targets", ()))
    return targets
