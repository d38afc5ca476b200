"""What a run's data is, in a few numbers, so that data which changes between a stop and going on is
noticed: how many samples, which classes, labels and files, and what some of the samples hold.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdtasks.core.stages import Stage
from kdtasks.engine import checkpoint, data_sets
from kdtasks.engine.config import difference, jsonable
from kdtasks.engine.data_contents import add_bytes
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.notices import Notices
from kdtasks.engine.reader import read_rows
from kdtasks.engine.work_dir import WorkDir

if TYPE_CHECKING:
    from kdtasks.engine.experiment import Experiment

# evenly spaced
SAMPLES = 4
# of the data's description: what the sets are made of
_MADE_OF = ("train", "test", "unknown_classes", "skip_bad")

Facts = dict[str, dict[str, dict[str, Any]]]


def facts_of(dataset: Any) -> dict[str, Any]:
    """What can be known of a data set of either kind; plain values, for JSON.

    Args:
        dataset: as a :class:`~kdtasks.engine.loader.Loader` takes it.
    """
    classes, targets = data_sets.class_names(dataset), data_sets.targets(dataset)
    files = _files(dataset)
    return {
        "samples": len(dataset),
        **({} if classes is None else {"classes": len(classes), "names of classes": _sum(classes)}),
        **({} if targets is None else {"labels": _sum(targets)}),
        **({} if files is None else {"files": _sum(files)}),
        "content": _content(dataset),
    }


def stage_facts(experiment: "Experiment", stage: Stage) -> Facts:
    """``{sum of the description: {'train' or 'test': facts}}`` of a stage's data, as it is now.

    Facts of one description are the same for all seeds, unless the data draws random numbers, which
    they say (``drawn``).
    """
    data = experiment.setting(stage, "data")
    spec = {name: data[name] for name in _MADE_OF}
    place = _sum(json.dumps(jsonable(spec), sort_keys=True, default=str))
    facts = {part: facts_of(experiment.data_set(data, part)) for part in ("train", "test")}
    drawn = {"drawn": True} if experiment.data.is_drawn else {}
    return {place: {part: {**entries, **drawn} for part, entries in facts.items()}}


def noted_facts(files: WorkDir) -> Facts:
    """What :func:`check_data` has noted of a run's data."""
    path = _path(files)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def weighty_differences(noted: Facts, now: Facts) -> list[str]:
    """In what the data of the same description differs: samples, classes, labels and files."""
    places = [place for place in now if place in noted]
    return [
        line
        for place in places
        for line in difference(_without_content(noted[place]), _without_content(now[place]))
    ]


def check_data(experiment: "Experiment", stage: Stage, files: WorkDir, notices: Notices) -> None:
    """Compare a stage's data with what the run has seen under the same description, and note it in
    ``stages/data.json``.

    Raises:
        ConfigError: other samples, classes, labels or files, so that neither the order of the
            samples nor the arms of the run would belong together.
    """
    noted, now = noted_facts(files), stage_facts(experiment, stage)
    ((place, facts),) = now.items()
    if place not in noted:
        checkpoint.save_json({**noted, **now}, _path(files))
        return
    weighty = weighty_differences(noted, now)
    if weighty:
        raise ConfigError(
            f"the data is not what it was when the run in {str(files.path)!r} began:\n  "
            + "\n  ".join(weighty)
            + "\nPut it back, or use another --work-dir: what has been trained has seen other data"
        )
    contents = {p: {noted[place][p]["content"], facts[p]["content"]} for p in facts}
    other = [part for part, both in contents.items() if len(both - {""}) > 1]
    if other:
        notices.warn(
            f"samples of the {' and '.join(other)} data do not hold what they did when the run "
            "began (other pixels, or another version of what decodes or augments them): what was "
            "trained before and what is trained now have not seen the same"
        )


def _path(files: WorkDir) -> Path:
    return files.path / "stages" / "data.json"


def _without_content(facts: Mapping[str, Mapping]) -> dict:
    return {
        part: {name: value for name, value in entries.items() if name not in ("content", "drawn")}
        for part, entries in facts.items()
    }


def _content(dataset: Any) -> str:
    """Of a few samples, each in its first view; '' where one of them cannot be read, or is never
    the same.
    """
    index = torch.arange(SAMPLES) * (len(dataset) - 1) // (SAMPLES - 1)
    before = checkpoint.random_state()
    try:
        once, again = (
            _sum(read_rows(dataset, index, torch.zeros_like(index), 0)) for _ in range(2)
        )
    # whoever reads it in earnest says so
    except Exception:
        return ""
    finally:
        checkpoint.set_random_state(before)
    return once if once == again else ""


def _files(dataset: Any) -> list[str] | None:
    """The names of all files without the folder that they share, where the data set lists them."""
    listed = getattr(dataset, "paths", None) or getattr(dataset, "samples", None)
    if not isinstance(listed, list | tuple) or not listed:
        return None
    names = [str(entry[0] if isinstance(entry, list | tuple) else entry) for entry in listed]
    first, last = min(names), max(names)
    shared = next((k for k, (a, b) in enumerate(zip(first, last)) if a != b), 0)
    return [name[first.rfind("/", 0, shared) + 1 :] for name in names]


def _sum(value: object) -> str:
    digest = hashlib.blake2b(digest_size=8)
    _add(value, digest)
    return digest.hexdigest()


def _add(value: object, digest: Any) -> None:
    if isinstance(value, Tensor):
        add_bytes(value, digest)
    elif isinstance(value, Mapping):
        for name in sorted(value, key=str):
            digest.update(f"{name}:".encode())
            _add(value[name], digest)
    elif isinstance(value, list | tuple):
        for part in value:
            _add(part, digest)
    else:
        digest.update(f"{value!r};".encode(errors="surrogateescape"))
