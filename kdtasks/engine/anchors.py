"""Teachers that are several checkpoints of one training ("anchors"), one after the other."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kdtasks.core import Distiller, Stage
from kdtasks.core.stages import anchors_of, stage_reference
from kdtasks.core.weight_files import read_weights
from kdtasks.engine import builder, data_sets
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.loader import Loader
from kdtasks.engine.processes import told_by_first
from kdtasks.engine.work_dir import WorkDir

# (N, C) answers of the student, and those of the anchor that has just taught and of all behind it,
# for held-out images; how many anchors to go on: 1 is the next one
Chooser = Callable[[Tensor, Sequence[Tensor]], int]


class Route:
    """Which anchor of a teacher teaches in which share of a stage.

    With n anchors there are n shares of equal length. Each anchor teaches in one, as they are
    listed; or it is chosen, when its share begins, which one comes next, and the last one teaches
    for what is left.

    Args:
        sources: where the anchors' weights come from.
        choose: the number of the anchor that has just taught, from 0 on -> the next one's; None: as
            they are listed.

    Attributes:
        chosen: the number of the anchor in each share so far; a checkpoint holds it.
    """

    def __init__(self, sources: Sequence[str], choose: Callable[[int], int] | None = None):
        self.sources, self.choose = list(sources), choose
        self.chosen: list[int] = []

    def anchor(self, share: int) -> int:
        """The number of the anchor that teaches in a share."""
        if self.choose is None:
            return share
        while len(self.chosen) <= share:
            now, last = (self.chosen or [None])[-1], len(self.sources) - 1
            following = now if now in (None, last) else self.choose(now)
            self.chosen.append(following or 0)
        return self.chosen[share]

    @property
    def taken(self) -> list[str]:
        """The sources of the anchors that were chosen, each once."""
        return [self.sources[number] for number in dict.fromkeys(self.chosen)]


def routes_of(
    experiment: Experiment, stage: Stage, distiller: Distiller, files: WorkDir
) -> dict[str, Route]:
    """The routes of a stage's teachers, by name; none for those with one set of weights."""
    return {
        name: Route(sources, _chooser(experiment, stage, distiller, files, name, sources))
        for name, sources in listed_anchors(stage).items()
    }


def listed_anchors(stage: Stage) -> dict[str, list[str]]:
    """``{teacher: sources}`` of the teachers that are a list of anchors."""
    return {
        name: list(origin)
        for name, origin in stage.teachers.items()
        if origin is not None and not isinstance(origin, str)
    }


def follow(
    experiment: Experiment, distiller: Distiller, routes: Mapping[str, Route], files: WorkDir
) -> Callable[[dict], dict]:
    """``batch -> batch``, which loads a teacher's next anchor into the same module when its share
    of the stage begins.
    """
    loaded: dict[str, int] = {}

    def before_step(batch: dict) -> dict:
        iteration, total = distiller.progress or (0, 1)
        for name, route in routes.items():
            anchor = route.anchor(iteration * len(route.sources) // total)
            if loaded.get(name) != anchor:
                experiment.load(distiller.model(name), route.sources[anchor], files)
                loaded[name] = anchor
        return batch

    return before_step


def check_routes(experiment: Experiment, stage: Stage, distiller: Distiller, length: int) -> None:
    """Each anchor has a share, and what chooses among them can do so.

    Raises:
        ConfigError: more anchors than iterations; a ``route`` without anchors; held-out images that
            the student learns from, or is tested on.
        ValueError: what the chooser says of its arguments and of the models' answers.
    """
    anchors = listed_anchors(stage)
    for name, sources in anchors.items():
        if len(sources) > length:
            raise ConfigError(
                f"the {len(sources)} anchors of {name!r} share {length} iterations: expected a "
                "longer stage, or fewer anchors"
            )
    if stage.route is None:
        return
    if not anchors:
        raise ConfigError(
            "its route chooses among anchors, and no teacher has any: expected teachers={name: "
            "[anchor, …]}"
        )
    data = experiment.setting(stage, "data")
    for part, why in (("train", "the student learns from"), ("test", "the student is tested on")):
        if stage.route["held_out"] == data[part]:
            raise ConfigError(
                f"route.held_out is data.{part}, which {why}: expected other images, as a part of "
                "the training data that the student does not see"
            )
    choose, images = _built(stage), next(iter(_held_out(experiment, stage)))["input"]
    with distiller.at_rest():
        for name in anchors:
            teacher = distiller.teachers[name]
            _checked(choose(distiller.student(images), [teacher(images)] * 2), 2)


def check_kept(experiment: Experiment, stage: Stage, files: WorkDir) -> None:
    """A stage that has been trained has left the epochs that later ones start from or learn from,
    and has moved between them.

    Raises:
        ConfigError: it ended before one of them; or its weights are the same in all, so that there
            is no route to follow.
    """
    names, needed = [other.name for other in experiment.stages], set()
    for later in experiment.stages:
        for source in (later.student, *anchors_of(later)):
            name, which = stage_reference(source, names) or ("", "")
            if name == stage.name and which.startswith("epoch_"):
                needed.add(which)
    if not needed:
        return
    paths = [files.weights(stage.name, which) for which in (*sorted(needed), "last")]
    for path in paths:
        if not path.is_file():
            raise ConfigError(
                f"stage {stage.name!r} ended before {path.stem.replace('_', ' ')}, which a later "
                "stage needs: expected a longer one, or no hook that ends it"
            )
    learned = [name for name, _ in experiment.learner(stage).named_parameters()]
    first, *others = (read_weights(path)[0] for path in paths)
    if not any(not torch.equal(first[name], other[name]) for other in others for name in learned):
        raise ConfigError(
            f"stage {stage.name!r} has not learned: its weights are the same in all of "
            f"{[path.stem for path in paths]}, which later stages need; expected an optimizer that "
            f"moves them, got {experiment.setting(stage, 'optimizer')}"
        )


def _chooser(
    experiment: Experiment,
    stage: Stage,
    distiller: Distiller,
    files: WorkDir,
    name: str,
    sources: Sequence[str],
) -> Callable[[int], int] | None:
    """What :class:`Route` asks; None where the stage has no ``route``."""
    if stage.route is None:
        return None
    choose, images = _built(stage), _held_out(experiment, stage)

    def following(now: int) -> int:
        # which puts the teacher's weights back, too
        with distiller.at_rest():
            student, anchors = _answers(distiller.student, images), []
            for source in sources[now:]:
                experiment.load(distiller.model(name), source, files)
                anchors.append(_answers(distiller.teachers[name], images))
        # BatchNorm statistics, and so answers, differ between processes: all follow the first
        return now + told_by_first(_checked(choose(student, anchors), len(anchors)))

    return following


def _built(stage: Stage) -> Chooser:
    assert stage.route is not None  # who calls has seen to it
    arguments = {key: value for key, value in stage.route.items() if key != "held_out"}
    return builder.build(arguments, f"{stage.name}.route")


def _held_out(experiment: Experiment, stage: Stage) -> Loader:
    assert stage.route is not None  # as above
    data = {**experiment.setting(stage, "data"), "train": stage.route["held_out"]}
    made = experiment.data_set(data, "train")
    data_sets.check_plain(made, f"{stage.name}.route.held_out")
    options = {**experiment.loader_options(data), "workers": 0}
    return Loader(made, data["test_batch_size"], shuffle=False, **options)


def _answers(model: nn.Module, images: Loader) -> Tensor:
    """Of all images; on the CPU, where there is room for those of several anchors."""
    return torch.cat([model(batch["input"]).cpu() for batch in images])


def _checked(ahead: int, anchors: int) -> int:
    if not 1 <= ahead < anchors:
        raise ValueError(
            f"a route goes on by 1 to {anchors - 1} anchors, got {ahead} from its chooser"
        )
    return ahead
