"""Models that are made of what the stages of a run have trained: the ensemble of its students,
say.
"""

from collections.abc import Mapping

from torch import nn

from kdtasks.core.names import did_you_mean
from kdtasks.core.stages import stage_reference
from kdtasks.engine import checkpoint
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.evaluation import evaluate
from kdtasks.engine.experiment import Experiment
from kdtasks.engine.model_factory import model_facts
from kdtasks.engine.work_dir import WorkDir


def check_assemblies(experiment: Experiment) -> None:
    """Each part of each such model is there, and is the network that its stage trains.

    Raises:
        ConfigError: naming the model, the part and the nearest right one.
    """
    stages = [stage.name for stage in experiment.stages]
    for name, parts in _described(experiment).items():
        model = experiment.model(name)
        paths = dict(model.named_modules())
        for path, source in parts.items():
            where = f"models.{name}.parts[{path!r}]"
            if path not in paths:
                raise ConfigError(f"{where}: no such part; {did_you_mean(path, paths)}")
            reference = stage_reference(source, stages)
            if reference is None:
                raise ConfigError(f"{where} is {source!r}; {did_you_mean(source, stages)}")
            trained = experiment.learner(experiment.stage(reference[0]))
            if _shapes(trained) != _shapes(paths[path]):
                raise ConfigError(
                    f"{where} is a {type(paths[path]).__name__} of other weights than what stage "
                    f"{reference[0]!r} trains: expected the same network"
                )


def write_assemblies(experiment: Experiment, files: WorkDir) -> dict[str, float]:
    """Write ``<name>.pth``, with the facts in ``<name>.json``, of each such model whose stages are
    done.

    Returns:
        ``{<name>_<metric>: value}`` of their evaluations.
    """
    reached: dict[str, float] = {}
    final, done = experiment.final, files.done
    for name, parts in _described(experiment).items():
        references = [stage_reference(source, files.stages) for source in parts.values()]
        if final is None or not all(reference and reference[0] in done for reference in references):
            continue
        model = experiment.model(name)
        for path, source in parts.items():
            experiment.load(model.get_submodule(path), source, files)
        metrics = evaluate(experiment.task, model, experiment.test_loader(final))
        facts = model_facts(experiment.specs[name])
        meta = {**experiment.meta(final), **facts, "parts": dict(parts)}
        weights = {key: value.cpu() for key, value in model.state_dict().items()}
        checkpoint.save_weights(weights, {**meta, "metrics": metrics}, files.path / f"{name}.pth")
        reached |= {f"{name}_{metric}": value for metric, value in metrics.items()}
    return reached


def _described(experiment: Experiment) -> dict[str, Mapping[str, str]]:
    """``{model: {path of a part: stage}}``."""
    models = experiment.config["models"].items()
    return {name: spec["parts"] for name, spec in models if spec.get("parts")}


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
