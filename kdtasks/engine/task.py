"""What the engine may ask of a task: its trainer module, read once, and defaults for what it leaves
out.
"""

import difflib
import fnmatch
import importlib
import importlib.util
import pkgutil
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from kdtasks.core.names import did_you_mean
from kdtasks.engine.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from kdtasks.core import Distiller, Stage
    from kdtasks.engine.experiment import Experiment
    from kdtasks.engine.export_form import OnnxForm
    from kdtasks.engine.run import Run
    from kdtasks.engine.work_dir import WorkDir


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Args:
        unit: ``'%'``, ``'dB'``; empty: it has none.
        decimals: it is shown with so many at least; 0: it is a count, and shown whole.
        label: what a sentence calls it; empty: its name, with spaces.
        listed: whether tables show it; what is of a part of the data only stands in results.json.
    """

    unit: str = ""
    decimals: int = 2
    label: str = ""
    listed: bool = True


# what files take
OF_FILES = {
    "packed_bytes": Metric(decimals=0),
    "packed_ratio": Metric(decimals=2),
    "packed_formula": Metric(decimals=2),
    "onnx_bytes": Metric(decimals=0),
    "onnx_ms": Metric(decimals=3),
    "onnx_threads": Metric(decimals=0, listed=False),
}


class TrainerModule(Protocol):
    """A task's trainer module, ``task='kdtasks.<task>.trainer'`` of a config: what it must have.

    What it may have beside these names is in :class:`Task`.
    """

    __name__: str
    PRIMARY: str
    HIGHER_IS_BETTER: bool

    def evaluate(self, model: "nn.Module", loader: Iterable[dict]) -> Mapping[str, float]:
        """``{metric: value}`` of a model in eval on test batches, ``PRIMARY`` among them."""
        ...

    def example(self, config: dict, batch_size: int) -> dict[str, Any]:
        """A random batch of the shapes that the data has, without reading it."""
        ...

    def pictures(self, run: "Run") -> list[tuple]:
        """``[(title, figure)]`` for the report, of the finished stages."""
        ...


REQUIRED = ("PRIMARY", "HIGHER_IS_BETTER", "evaluate", "example", "pictures")


class Task:
    """A trainer module as the engine sees it: every part is there, by its default if need be.

    Args:
        module: has what :class:`TrainerModule` says, and may have more.

    Attributes:
        name: of the module.
        primary, higher_is_better: the metric that counts, and its direction.
        evaluate, example, pictures: see :class:`TrainerModule`.
        own_names: ``OWN_NAMES``, what a batch has beside the target that no teacher has a part in.
        unseen_classes: ``UNSEEN_CLASSES``, whether the test is of classes that nobody trained on.
        backbone: ``BACKBONE``, whether its student is a network without a head, whose weights other
            models that are built on it take.
        hub_task: ``HUB_TASK``, what model hubs call the task; empty: they do not.
        metrics: ``METRICS``, ``{name or pattern of names: Metric}``; the first that fits counts.

    Raises:
        ConfigError: the module lacks a name, or has one that is nearly, but not quite, one of
            these.
    """

    def __init__(self, module: TrainerModule | ModuleType):
        _check(cast(ModuleType, module))
        parts = cast(Any, module)
        self.name: str = parts.__name__
        self.primary: str = parts.PRIMARY
        self.higher_is_better: bool = parts.HIGHER_IS_BETTER
        self.evaluate: Callable[..., Mapping[str, float]] = parts.evaluate
        self.example: Callable[[dict, int], dict[str, Any]] = parts.example
        self.pictures: Callable[[Run], list[tuple]] = parts.pictures
        self._optional = {name: getattr(parts, name, None) for name in OPTIONAL}
        self.own_names: Sequence[str] = tuple(self._optional["OWN_NAMES"] or ())
        self.unseen_classes = bool(self._optional["UNSEEN_CLASSES"])
        self.backbone = bool(self._optional["BACKBONE"])
        self.hub_task: str = self._optional["HUB_TASK"] or ""
        self.metrics: Mapping[str, Metric] = self._optional["METRICS"] or {}

    @property
    def package(self) -> str:
        """The name of the folder that the trainer module is in; without one, its own."""
        return self.name.split(".")[-2:][0]

    def training_set(
        self, experiment: "Experiment", stage: "Stage", made: Any, files: "WorkDir | None"
    ) -> Any:
        """What a stage learns from; default: ``made``, the config's data as it is."""
        function = self._optional["training_set"]
        return function(experiment, stage, made, files) if function else made

    def equip(
        self, experiment: "Experiment", stage: "Stage", distiller: "Distiller", files: "WorkDir"
    ) -> None:
        """Give a stage's distiller what it needs of the run, before the first step; default:
        nothing.
        """
        function = self._optional["equip"]
        if function:
            function(experiment, stage, distiller, files)

    def summary(self, run: "Run", stage: "Stage", metrics: Mapping[str, float]) -> dict:
        """What results.json has of a finished stage beside its metrics; default: nothing."""
        function = self._optional["summary"]
        return function(run, stage, metrics) if function else {}

    def deciding(self, model: "nn.Module") -> "list[nn.Module]":
        """The modules whose outputs must be finite in an evaluation; default: the model.

        A task says others where the model's output may have left out what is not finite.
        """
        function = self._optional["deciding"]
        return function(model) if function else [model]

    def doubts(
        self, metrics: Mapping[str, float], model: "nn.Module", loader: Iterable[dict]
    ) -> list[str]:
        """What in a teacher's metrics on test data speaks for a mistake; default: nothing."""
        function = self._optional["doubts"]
        return function(metrics, model, loader) if function else []

    def corrupted(
        self, loader: Any, chosen: Mapping[str, Any] | None, normalization: Any
    ) -> "Mapping[str, tuple[str, Iterable[dict]]]":
        """``{name: (what is done, the loader with images that it was done to)}``, of test data.

        Args:
            loader: of the test data.
            chosen: ``{name: transform}``; None: the task's own choice.
            normalization: mean and std of the images; None: unknown, or there is none.

        Raises:
            ConfigError: the task has no such thing.
        """
        function = self._optional["corrupted"]
        if not function:
            raise ConfigError(
                f"robustness: the task {self.package} says nothing of corrupted images; expected "
                "False, or a task that does, as classification and detection"
            )
        return function(loader, chosen, normalization)

    def is_comparable(self, ours: Any, theirs: Any, config: Mapping) -> bool:
        """Whether a teacher's output can be measured as the student's; default: where it has the
        same shape, or both are the same kind of object.
        """
        function = self._optional["is_comparable"]
        if function:
            return function(ours, theirs, config)
        shapes = getattr(ours, "shape", None), getattr(theirs, "shape", None)
        return type(ours) is type(theirs) and shapes[0] == shapes[1]

    def onnx_form(self, student: "nn.Module", images: Any) -> "OnnxForm | None":
        """What an ONNX file holds; default: None, one tensor in and any batch size."""
        function = self._optional["onnx_form"]
        return function(student, images) if function else None

    def predict_arguments(self, parser: ArgumentParser) -> list[str]:
        """Add the task's own flags of tools/test.py to its parser; default: there are none.

        Returns:
            What they are called: keyword arguments of :meth:`predict`, which is asked in the place
            of :meth:`evaluate` where one of them is given.
        """
        function = self._optional["predict_arguments"]
        if not function:
            return []
        before = vars(parser.parse_known_args([])[0])
        function(parser.add_argument_group(f"of {self.name}"))
        return [name for name in vars(parser.parse_known_args([])[0]) if name not in before]

    def predict(
        self, model: "nn.Module", config: dict, classes: Sequence[str] | None, **flags: Any
    ) -> list[str]:
        """Use a model on what the flags name; returns what had to be left out."""
        function: Any = self._optional["predict"]
        return function(model, config, classes=classes, **flags)

    def is_better(self, value: float, other: float) -> bool:
        """Whether a value of the primary metric is better than another."""
        return value > other if self.higher_is_better else value < other

    # Metrics --------------------------------------------------------------------------------------
    def metric(self, name: str) -> Metric:
        """How a metric is shown; of one that the task does not describe, the defaults.

        What an ONNX file reaches is shown as what its student does.
        """
        if name in OF_FILES:
            return OF_FILES[name]
        name = name.removeprefix("onnx_")
        fits = (
            metric for pattern, metric in self.metrics.items() if fnmatch.fnmatch(name, pattern)
        )
        return next(fits, Metric())

    def unit(self, name: str) -> str:
        """What stands behind a number: ``' %'``; empty without a unit."""
        unit = self.metric(name).unit
        return f" {unit}" if unit else ""

    def axis(self, name: str) -> str:
        """What an axis of a figure says: ``'accuracy, %'``."""
        unit = self.metric(name).unit
        return f"{name}, {unit}" if unit else name

    def label(self, name: str) -> str:
        """What a sentence calls a metric."""
        return self.metric(name).label or name.replace("_", " ")

    def decimals(self, name: str, least: int = 2) -> int:
        """How many decimals a number of this metric is shown with; none of a count."""
        decimals = self.metric(name).decimals
        return max(decimals, least) if decimals else 0


OPTIONAL = (
    "HUB_TASK",
    "OWN_NAMES",
    "UNSEEN_CLASSES",
    "BACKBONE",
    "METRICS",
    "training_set",
    "equip",
    "summary",
    "deciding",
    "doubts",
    "corrupted",
    "is_comparable",
    "onnx_form",
    "predict_arguments",
    "predict",
)


def load_task(path: str) -> Task:
    """The task whose trainer module has this dotted path.

    Raises:
        ConfigError: it cannot be imported (the nearest one that can is named), or is no trainer
            module.
    """
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        ours = error.name and (path == error.name or path.startswith(f"{error.name}."))
        modules = _siblings(path) if ours else []
        hint = f"; {did_you_mean(path, modules)}" if modules else ""
        raise ConfigError(f"task={path!r} cannot be imported: {error}{hint}") from error
    return Task(module)


def _check(module: ModuleType) -> None:
    """It has what a trainer module must have, and nothing that looks like a slip of the pen."""
    public = [name for name in vars(module) if not name.startswith("_")]
    missing = [name for name in REQUIRED if name not in public]
    if missing:
        near = _near(missing[0], public)
        if hasattr(module, "__path__") and importlib.util.find_spec(f"{module.__name__}.trainer"):
            near = f"{module.__name__}.trainer"
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(
            f"task={module.__name__!r} is no trainer module: it lacks {', '.join(missing)}{hint}"
        )
    if "predict_arguments" in public and "predict" not in public:
        raise ConfigError(f"task={module.__name__!r} has predict_arguments, so it needs predict")
    for name in OPTIONAL:
        near = None if name in public else _near(name, _own(module, public))
        if near is not None:
            raise ConfigError(
                f"task={module.__name__!r} has {near!r}, which nothing asks for; did you mean "
                f"{name!r}?"
            )


def _near(name: str, names: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.8)), None)


def _own(module: ModuleType, public: Sequence[str]) -> list[str]:
    """What a module defines itself, not what it imports."""
    home = module.__name__
    return [name for name in public if getattr(vars(module)[name], "__module__", home) == home]


def _siblings(path: str) -> list[str]:
    """Modules of the same name in other packages: what could have been meant by a path that is not
    there.
    """
    root, _, rest = path.partition(".")
    package = importlib.util.find_spec(root)
    if not rest or package is None or package.submodule_search_locations is None:
        return []
    last = rest.rpartition(".")[2]
    paths = []
    for part in pkgutil.iter_modules(package.submodule_search_locations):
        if part.ispkg:
            folders = [f"{folder}/{part.name}" for folder in package.submodule_search_locations]
            inner = [module.name for module in pkgutil.iter_modules(folders)]
            near = difflib.get_close_matches(last, inner, n=1)
            paths += [f"{root}.{part.name}.{name}" for name in near]
    return paths
