"""Where else a run writes its curves and its report's pictures: mmengine's visualizer back ends
(TensorBoard, Weights & Biases, MLflow …), each with the run's and the stage's name.
"""

import base64
import copy
import importlib.util
import io
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from mmengine.config import Config

from kdtasks.core.names import did_you_mean
from kdtasks.engine.builder import check_arguments
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.from_mmengine import VISBACKENDS, BaseVisBackend, Visualizer
from kdtasks.engine.hooks import check_hooks
from kdtasks.engine.work_dir import WorkDir

if TYPE_CHECKING:
    from kdtasks.engine.experiment import Experiment

# what the report's pictures are written as, beside the stages
REPORT = "report"
# the back ends of mmengine, and the package that each needs
PACKAGES = {
    "LocalVisBackend": "cv2",
    "TensorboardVisBackend": "tensorboard",
    "WandbVisBackend": "wandb",
    "MLflowVisBackend": "mlflow",
    "ClearMLVisBackend": "clearml",
    "NeptuneVisBackend": "neptune",
    "DVCLiveVisBackend": "dvclive",
    "AimVisBackend": "aim",
}
_numbers = itertools.count()


def check_plugins(hooks: Sequence, backends: Sequence) -> None:
    """``custom_hooks`` and ``vis_backends`` of a config, without building them.

    Raises:
        ConfigError: as :func:`~kdtasks.engine.hooks.check_hooks` and :func:`check_trackers`.
    """
    check_hooks(hooks)
    check_trackers(backends)


def check_trackers(entries: Sequence) -> None:
    """Every entry is a back end, with arguments that it has, and its package is installed.

    Raises:
        ConfigError: naming the entry.
    """
    for k, entry in enumerate(entries):
        kind, where = _class_of(entry, f"vis_backends[{k}]"), f"vis_backends[{k}]"
        given = {name: value for name, value in entry.items() if name not in ("type", "name")}
        check_arguments(kind, given, where, supplied=("save_dir",))
        package = PACKAGES.get(kind.__name__) if kind.__module__.startswith("mmengine.") else None
        if package and importlib.util.find_spec(package) is None:
            raise ConfigError(f"{where}: {kind.__name__} needs a package: pip install {package}")


def _class_of(entry: object, where: str) -> type:
    if not isinstance(entry, Mapping) or "type" not in entry:
        raise ConfigError(f"{where} must be a dict(type=…) of a back end, got {entry!r}")
    kind = entry["type"]
    kind = VISBACKENDS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(kind, type) and issubclass(kind, BaseVisBackend)):
        raise ConfigError(
            f"{where}: {entry['type']!r} is no back end: expected the dotted path of a subclass of "
            "mmengine.visualization.BaseVisBackend, or of mmengine's "
            + did_you_mean(str(entry["type"]), PACKAGES)
        )
    return kind


def open_tracker(experiment: "Experiment", files: WorkDir, part: str) -> "Tracker":
    """A visualizer as mmengine's Runner has one; without entries it writes nothing.

    Args:
        experiment: its ``vis_backends``, of rank 0 only; its name is the project or experiment,
            where a service has such.
        files: of the run: a back end writes to a folder there, unless it has a ``save_dir``.
        part: the stage, or :data:`REPORT`; ``'<config> seed <seed> <part>'`` is the run's name.
    """
    entries = experiment.config["vis_backends"] if experiment.rank == 0 else []
    # whose .json files MLflow keeps at the end
    kept = files.path / "stages" if part == REPORT else files.folder(part)
    backends = []
    for k, entry in enumerate(entries):
        kind = _class_of(entry, f"vis_backends[{k}]")
        given = {
            name: value for name, value in copy.deepcopy(dict(entry)).items() if name != "type"
        }
        given.pop("name", None)
        usual = _usual(kind, files.path, experiment.name, experiment.seed, part)
        inner = usual.get("init_kwargs")
        if inner is not None:
            usual["init_kwargs"] = {**inner, **(given.pop("init_kwargs", None) or {})}
        if "run_name" in usual and "tracking_uri" not in given:
            # MLflow 3 wants to be told that files will do
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        backend = kind(**{**usual, **given})
        # mmengine's asks for it when it closes, also after a stage that failed in its first step
        if kind.__name__ == "MLflowVisBackend":
            kept.mkdir(parents=True, exist_ok=True)
            backend.cfg = Config({"work_dir": str(kept)})
        backends.append(backend)
    # it keeps visualizers by name
    return Tracker(f"{part}_{next(_numbers)}", backends)


def _usual(kind: type, work_dir: Path, config: str, seed: int, part: str) -> dict[str, Any]:
    """The arguments of a back end that an entry need not say: where it writes, and its names."""
    title, group = f"{config} seed {seed} {part}", f"{config} seed {seed}"
    name = kind.__name__
    folder = work_dir / name.removesuffix("VisBackend").lower()
    if not kind.__module__.startswith("mmengine."):
        return {"save_dir": str(folder / part)}
    if name == "WandbVisBackend":  # which makes a folder wandb in it
        project = re.sub(r"[/\\#?%:]", "_", config)
        names = {"project": project, "group": group, "name": title, "job_type": part}
        return {"save_dir": str(work_dir), "init_kwargs": names}
    if name == "MLflowVisBackend":  # one store of all stages
        return {"save_dir": str(folder), "exp_name": config, "run_name": title}
    further = {
        "ClearMLVisBackend": {"project_name": config, "task_name": title},
        "NeptuneVisBackend": {"name": title},
        "DVCLiveVisBackend": {},
        "AimVisBackend": {"experiment": config},
    }
    usual: dict[str, Any] = {"save_dir": str(folder / part)}
    return {**usual, "init_kwargs": further[name]} if further.get(name) else usual


class Tracker(Visualizer):
    """A visualizer that knows its back ends, and is forgotten when it is closed.

    Args:
        name: mmengine keeps visualizers by it.
        backends: what it writes to.
    """

    def __init__(self, name: str, backends: Sequence[BaseVisBackend]):
        super().__init__(name, vis_backends=cast(Any, list(backends)))
        self.backends = list(backends)

    def _initialize_fig(self, fig_cfg: Any) -> tuple:
        """mmengine's figure is made when an image is drawn on: matplotlib is slow to import."""
        return None, SimpleNamespace(get_dpi=lambda: None), None

    def set_image(self, image: np.ndarray) -> None:
        """Draw on an image, as mmengine has it."""
        if self.ax_save is None:
            figure = super()._initialize_fig(self.fig_save_cfg)
            self.fig_save_canvas, self.fig_save, self.ax_save = figure
            self.dpi = self.fig_save.get_dpi()
        super().set_image(image)

    def close(self) -> None:
        """Close the back ends."""
        for backend in self.backends:
            wandb = getattr(backend, "_wandb", None)
            # mmengine 0.10 closes it by join(), which it has no more
            if wandb is not None:
                wandb.finish()
            else:
                backend.close()
        type(self)._instance_dict.pop(self.instance_name, None)


def send_report(
    experiment: "Experiment", files: WorkDir, pictures: Sequence[tuple[str, str]]
) -> None:
    """Write the report's pictures, and the primary metric of each stage, as a part of its own.

    Args:
        experiment, files: as in :func:`open_tracker`.
        pictures: ``(title, data URI of a PNG)``.
    """
    from PIL import Image

    primary, tracker = experiment.task.primary, open_tracker(experiment, files, REPORT)
    # MLflow takes a picture's name as that of a file
    ending = ".png" if any(type(b).__name__.startswith("ML") for b in tracker.backends) else ""
    try:
        tracker.add_scalars({f"{stage}/{primary}": v[primary] for stage, v in files.done.items()})
        for title, uri in pictures:
            png = base64.b64decode(uri.partition(",")[2])
            with Image.open(io.BytesIO(png)) as image:
                name = re.sub(r"[^\w ,()-]", "_", title)
                tracker.add_image(name + ending, np.asarray(image.convert("RGB")))
    finally:
        tracker.close()
