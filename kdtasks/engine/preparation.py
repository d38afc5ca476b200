"""What a batch gets before its step: kept outputs of the teachers, or teachers of the right age."""

from collections.abc import Callable, Mapping

from kdtasks.core import Distiller, Stage
from kdtasks.engine.caching import cached_outputs
from kdtasks.engine.config import jsonable
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.loader import Loader
from kdtasks.engine.work_dir import WorkDir

Prepare = Callable[[dict], dict]


def preparation(
    experiment: Experiment, stage: Stage, distiller: Distiller, files: WorkDir, batch: Mapping
) -> Prepare | None:
    """``batch -> batch``, called before each step of a stage; None: there is nothing to do.

    Args:
        experiment: whose stage it is.
        stage: which.
        distiller: of the stage, built.
        files: of finished stages; a cache lies beside them.
        batch: the stage's first one.
    """
    if experiment.is_cached(stage):
        return _cache(experiment, stage, distiller, files, batch)
    return _anchors(experiment, stage, distiller, files)


def _cache(
    experiment: Experiment, stage: Stage, distiller: Distiller, files: WorkDir, batch: Mapping
) -> Prepare:
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
    return cached_outputs(
        distiller, sweep, views, files.path / "cache", facts, experiment.precision, batch
    )


def _anchors(
    experiment: Experiment, stage: Stage, distiller: Distiller, files: WorkDir
) -> Prepare | None:
    """Loads a teacher's next anchor into the same module when its share of the stage begins."""
    routes = {
        name: list(origin)
        for name, origin in stage.teachers.items()
        if origin is not None and not isinstance(origin, str)
    }
    loaded: dict[str, int] = {}

    def follow(batch: dict) -> dict:
        iteration, total = distiller.progress or (0, 1)
        for name, route in routes.items():
            now = iteration * len(route) // total
            if loaded.get(name) != now:
                experiment.load(distiller.model(name), route[now], files)
                loaded[name] = now
        return batch

    return follow if routes else None
