"""Whether a taught student is sturdier: both students on test images under blur, noise and more."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kdtasks.core import Stage
from kdtasks.engine import builder, data_sets
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.evaluation import evaluate

if TYPE_CHECKING:
    from kdtasks.engine.experiment import Experiment
    from kdtasks.engine.run import Run

CLEAN = "none"


def measure(run: "Run") -> dict[str, Any]:
    """The primary metric of the student alone and of the one that counts, on the test data as it is
    and under each corruption of the config's ``robustness``.

    Returns:
        ``metric``; ``corruptions``, ``{name: what is done}``, of which the first, ``'none'``, is
        nothing; ``stages``, ``{stage: {name of the corruption: value}}``.
    """
    experiment = run.experiment
    final = experiment.final
    if final is None:
        return {}
    metric, loader = experiment.task.primary, experiment.test_loader(final)
    kinds = {CLEAN: ("the test images as they are", loader), **_loaders(experiment, final, loader)}
    values: dict[str, dict[str, float]] = {}
    for stage in run.arms.pair:
        model = run.trained(stage.name)
        values[stage.name] = {
            name: evaluate(experiment.task, model, data)[metric]
            for name, (_, data) in kinds.items()
        }
    return {
        "metric": metric,
        "corruptions": {name: text for name, (text, _) in kinds.items()},
        "stages": values,
    }


def check(experiment: "Experiment") -> None:
    """That the config's corruptions can be applied to its test data.

    Raises:
        ConfigError: the task has none, or one cannot be built or applied.
    """
    final = experiment.final
    if final is None:
        return
    try:
        for _, loader in _loaders(experiment, final).values():
            next(iter(loader))
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"robustness: {error}") from error


def _loaders(
    experiment: "Experiment", stage: Stage, loader: Any = None
) -> Mapping[str, tuple[str, Iterable[dict]]]:
    given = experiment.config["robustness"]
    chosen = None
    if isinstance(given, Mapping):
        # kornia applies most transforms to half of the images, if it is not told
        chosen = {
            name: builder.build({"p": 1.0, **spec}, f"robustness.{name}")
            for name, spec in given.items()
        }
    loader = loader or experiment.test_loader(stage, workers=0)
    normalization = data_sets.normalization(loader.dataset)
    return experiment.task.corrupted(loader, chosen, normalization)


# As a table ---------------------------------------------------------------------------------------
def table(measured: Mapping[str, Any], unit: str, decimals: int) -> dict[str, Any]:
    """What :func:`measure` gave as text: ``heads``, (title, whether numbers stand below it);
    ``rows``.
    """
    stages = list(measured["stages"])
    heads = [("corruption", False), ("strength", False)]
    heads += [(f"{stage},{unit}" if unit else stage, True) for stage in stages]
    if len(stages) == 2:
        heads.append(("difference", True))
    rows = []
    for name, text in measured["corruptions"].items():
        values = [measured["stages"][stage][name] for stage in stages]
        row = [name, text, *(f"{value:.{decimals}f}" for value in values)]
        if len(stages) == 2:
            row.append(f"{values[1] - values[0]:+.{decimals}f}".replace("-", "−"))
        rows.append(row)
    return {"heads": heads, "rows": rows}
