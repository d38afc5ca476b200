"""The hooks of a config: mmengine's that make sense here, and people's own. The others are refused
by name.
"""

from collections.abc import Mapping, Sequence

from kdtasks.core.names import did_you_mean
from kdtasks.engine.builder import check_arguments
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.from_mmengine import HOOKS, Hook

ALLOWED = ("EarlyStoppingHook", "EmptyCacheHook", "ProfilerHook")
REFUSED = {
    "CheckpointHook": "a run keeps its own checkpoints: checkpoint_interval, and keep of a stage",
    "DistSamplerSeedHook": "the order of the samples comes from the run's seed",
    "EMAHook": "the moving average of the student is a key of the config: ema=0.999",
    "IterTimerHook": "the bar shows the time that is left, and results.json has the seconds of "
    "each stage",
    "LoggerHook": "train.log and history.json have the losses at each log_interval, and "
    "vis_backends draw them",
    "NaiveVisualizationHook": "it draws in a test loop, which there is none here; report.html has "
    "the pictures of the task",
    "NPUProfilerHook": "it ends the process in the middle of a run",
    "ParamSchedulerHook": "the loop steps the schedule already; a second one would step it twice",
    "PrepareTTAHook": "it acts in a test loop, which there is none here",
    "RuntimeInfoHook": "it reads every loss in every step, for which the device must wait; "
    "train.log has them",
    "SyncBuffersHook": "processes share BatchNorm's statistics by sync_bn=True",
}


def check_hooks(entries: Sequence) -> list[type]:
    """The classes of the hooks, without building them.

    Raises:
        ConfigError: no list of dicts; no such hook, or an argument that it has not; a hook of
            mmengine's that cannot work here.
    """
    if isinstance(entries, Mapping) or not isinstance(entries, list | tuple):
        raise ConfigError(f"custom_hooks must be a list of dict(type=…), got {entries!r}")
    return [_class_of(entry, f"custom_hooks[{k}]") for k, entry in enumerate(entries)]


def build_hooks(entries: Sequence) -> list[Hook]:
    """The hooks, built.

    Raises:
        ConfigError: as :func:`check_hooks`; or one cannot be built (its message is kept).
    """
    built = []
    for k, (kind, entry) in enumerate(zip(check_hooks(entries), entries)):
        if isinstance(entry, Hook):
            built.append(entry)
            continue
        try:
            hook = kind(
                **{name: value for name, value in entry.items() if name not in ("type", "priority")}
            )
        except Exception as error:
            raise ConfigError(f"custom_hooks[{k}] ({kind.__name__}): {error}") from error
        hook.priority = entry.get("priority", hook.priority)
        built.append(hook)
    return built


def _class_of(entry: object, where: str) -> type:
    if isinstance(entry, Hook):
        kind = type(entry)
    elif isinstance(entry, Mapping) and "type" in entry:
        kind = HOOKS.get(entry["type"]) if isinstance(entry["type"], str) else entry["type"]
        if not (isinstance(kind, type) and issubclass(kind, Hook)):
            hint = ", of mmengine's " + did_you_mean(str(entry["type"]), ALLOWED)
            raise ConfigError(
                f"{where}: {entry['type']!r} is no hook: expected the dotted path of a subclass of "
                f"mmengine.hooks.Hook, or{hint}"
            )
        check_arguments(
            kind, {k: v for k, v in entry.items() if k not in ("type", "priority")}, where
        )
    else:
        raise ConfigError(f"{where} must be a dict(type=…) of a hook, got {entry!r}")
    for base in kind.__mro__:
        if base.__name__ in REFUSED and base.__module__.startswith("mmengine."):
            raise ConfigError(
                f"{where}: mmengine's {base.__name__} cannot work here: {REFUSED[base.__name__]}"
            )
    return kind
