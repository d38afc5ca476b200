"""What a batch gets before its step: kept outputs of the teachers, or teachers of the right age."""

from collections.abc import Callable, Mapping

from kdtasks.core import Distiller, Stage
from kdtasks.engine.anchors import Route, follow
from kdtasks.engine.caching import cached_outputs
from kdtasks.engine.config import jsonable
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.loader import Loader
from kdtasks.engine.show import Bar
from kdtasks.engine.work_dir import WorkDir

BeforeStep = Callable[[dict], dict]


def preparation(
    experiment: Experiment,
    stage: Stage,
    distiller: Distiller,
    files: WorkDir,
    batch: Mapping,
    routes: Mapping[str, Route],
    quiet: bool = True,
) -> BeforeStep | None:
    """``batch -> batch``, called before each step of a stage; None: there is nothing to do.

    Args:
        experiment: whose stage it is.
        stage: which.
        distiller: of the stage, built.
        files: of finished stages; a cache lies beside them.
        batch: the stage's first one.
        routes: of its teachers.
        quiet: show nothing while a cache is filled.
    """
    if experiment.is_cached(stage):
        return _cache(experiment, stage, distiller, files, batch, quiet)
    return follow(experiment, distiller, routes, files) if routes else None


def _cache(
    experiment: Experiment,
    stage: Stage,
    distiller: Distiller,
    files: WorkDir,
    batch: Mapping,
    quiet: bool,
) -> BeforeStep:
    """Adds the teachers' outputs, which are computed once."""
    config, data = experiment.config, experiment.setting(stage, "data")
    views = config["cache"]["views"]
    sweep = Loader(
        experiment.training_set(stage, files),
        data["test_batch_size"],
        shuffle=False,
        views=views,
        **experiment.loader_options(data),
    )
    facts = {
        "options": jsonable({name: experiment.specs.get(name) for name in stage.teachers}),
        "data": jsonable(data["train"]),
        "seed": experiment.seed,
        "amp": config["amp"],
        "channels_last": config["channels_last"],
    }
    bar = Bar(f"{stage.name}: teacher's outputs", views * len(sweep), quiet)
    return cached_outputs(
        distiller, sweep, views, files.path / "cache", facts, experiment.precision, batch, bar
    )
