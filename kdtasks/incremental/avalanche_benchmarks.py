"""Guards for avalanche's benchmarks: classes that got lost, lists of classes that are sets, targets
that are missing.
"""

from collections.abc import Iterable


def checked_benchmark(benchmark, classes: Iterable[int] | None = None):
    """The benchmark, its lists of classes sorted, and found to have lost none.

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
        found = [classes_of(experience) for experience in experiences]
        present = sorted({*(number for those in found for number in those)})
        wanted = (
            {*classes}
            if classes is not None
            else {*_targets_of_sources(e.dataset for e in experiences)}
        )
        if lost := sorted(wanted - {*present}):
            raise ValueError(
                f"classes {lost} are in no experience of the stream {name!r}, which has "
                f"{present}: give class_incremental_benchmark a number of experiences that divides "
                "that of the classes, or num_classes_per_exp=[…]"
            )
        before: set[int] = set()
        for experience, those in zip(experiences, found):
            lists = {
                "classes_in_this_experience": those,
                "previous_classes": sorted(before),
                "classes_seen_so_far": sorted({*those} | before),
                "future_classes": sorted({*present} - {*those} - before),
            }
            before |= {*those}
            for key, value in lists.items():
                if getattr(experience, key, None) != value:
                    setattr(experience, key, value)
    return benchmark


def classes_of(experience) -> list[int]:
    """The class numbers of an experience, sorted; out of its dataset's ``targets`` where it does
    not list them.

    Raises:
        ValueError: it has neither.
    """
    classes = getattr(experience, "classes_in_this_experience", None)
    if classes is None:
        classes = _targets(experience.dataset)
    return sorted({int(number) for number in classes})


def _targets(dataset) -> Iterable[int]:
    if not hasattr(dataset, "targets"):
        raise ValueError(
            f"a {type(dataset).__name__} has no targets: give class_incremental_benchmark plain "
            "datasets with .targets, or benchmark_from_datasets those of as_classification_dataset"
        )
    return getattr(dataset.targets, "uniques", dataset.targets)


def _targets_of_sources(datasets: Iterable) -> set[int]:
    """All targets of the datasets inside of avalanche's, those that no experience took included."""
    found, known, left = set(), set(), list(datasets)
    while left:
        dataset = left.pop()
        inner = getattr(getattr(dataset, "_flat_data", dataset), "_datasets", None)
        if inner is not None:
            left.extend(inner)
        elif id(dataset) not in known:
            known.add(id(dataset))
            found.update(int(number) for number in getattr(dataset, "targets", ()))
    return found
