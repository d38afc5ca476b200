"""A stage's teacher outputs, computed once for every sample and fixed view, and put into each
batch.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from kdtasks.core import Distiller
from kdtasks.core.cache import TeacherCache
from kdtasks.core.model_hash import model_hash
from kdtasks.engine.data_contents import contents_sum
from kdtasks.engine.errors import ConfigError
from kdtasks.engine.loader import Loader
from kdtasks.engine.processes import beating, led, told_by_first
from kdtasks.engine.show import Bar

# before anything is said of the filling
SILENT_SECONDS = 5.0


def cached_outputs(
    distiller: Distiller,
    sweep: Loader,
    views: int,
    folder: Path,
    facts: dict,
    precision: Callable[[], AbstractContextManager],
    probe: Mapping,
    bar: Bar,
) -> Callable[[dict], dict]:
    """What adds the teachers' tensors to a batch; rank 0 fills the cache first where it is missing
    or of something else.

    Args:
        distiller: a built Distiller; every tensor that its losses want of a teacher is kept.
        sweep: all samples in order, once an epoch; epoch v gives view v.
        views: how many views.
        folder: below it each cache has a folder named by what it depends on.
        facts: whatever else the outputs depend on: teachers' options, the description of the data,
            the seed.
        precision: the autocast context of the run's steps.
        probe: a training batch; what is kept of its samples must be what the teachers say about it.
        bar: shows how far the filling is, where it takes more than a few seconds.

    Returns:
        ``batch -> batch`` with the tensors added, which has the same effect on a step as running
        the teachers.

    Raises:
        ConfigError: the outputs depend on more than the sample and its view (a collate that mixes a
            batch, say).
    """
    device = sweep.device
    wanted = {
        role: names
        for role, names in distiller.wanted.items()
        if role in distiller.teachers and names
    }

    def outputs(batch: Mapping) -> dict[str, torch.Tensor]:
        values = {}
        for role, names in wanted.items():
            with precision():
                given = distiller.outputs(role, batch, names)
            values |= {name: given[name] for name in names}
        return values

    def fill(beat: Callable[[], None]) -> dict:
        key = _key(distiller, sweep, wanted, {**facts, "views": views}, beat)
        place = _place(folder, key)
        if TeacherCache.open(place, key) is None:
            distiller.eval()
            batches = (batch for view in range(views) for batch in beating(beat, sweep.epoch(view)))
            with torch.no_grad(), bar:
                shown = _shown(batches, bar)
                TeacherCache.write(place, key, len(sweep.dataset), views, shown, outputs)
        return key

    # files have other times on other machines
    key = told_by_first(led(fill))
    cache = TeacherCache.open(_place(folder, key), key)
    if cache is None:
        raise RuntimeError(f"the cache that was written to {str(folder)!r} cannot be opened")
    cache.to(device)
    distiller.eval()
    with torch.no_grad():
        _check_kept(cache.fetch(probe["index"], probe["view"], device), outputs(probe))
    return lambda batch: {**batch, **cache.fetch(batch["index"], batch["view"], device)}


def _shown(batches: Iterable[dict], bar: Bar) -> Iterator[dict]:
    begun = time.monotonic()
    for done, batch in enumerate(batches):
        if time.monotonic() - begun > SILENT_SECONDS:
            bar(done, bar.total, {})
        yield batch


def _place(folder: Path, key: dict) -> Path:
    return folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _key(
    distiller: Distiller, sweep: Loader, wanted: Mapping, facts: Mapping, beat: Callable[[], None]
) -> dict:
    """What kept outputs depend on, as it comes back from JSON."""
    key = {
        **facts,
        "teachers": {role: model_hash(distiller.model(role)) for role in wanted},
        "names": wanted,
        "samples": len(sweep.dataset),
        "contents": contents_sum(sweep.dataset, beat),
        "first_batch": _first_batch_hash(sweep),
    }
    return json.loads(json.dumps(key, default=str))


def _first_batch_hash(sweep: Loader) -> str:
    images = next(iter(sweep.epoch(0)))["input"]
    if not isinstance(images, torch.Tensor):
        raise ConfigError(
            "cache: the inputs are a list, of images of many sizes; only what is said of a tensor "
            "is kept: use cache=None"
        )
    return hashlib.sha256(images.float().cpu().contiguous().numpy().tobytes()).hexdigest()


def _check_kept(kept: Mapping[str, torch.Tensor], live: Mapping[str, torch.Tensor]) -> None:
    """What is kept of a training batch is what the teachers say about it now."""
    for name, values in kept.items():
        difference = (values.float() - live[name].float()).abs().max()
        scale = live[name].float().abs().max()
        # float16 and another batch size come to far less
        if difference > 2e-2 * scale + 1e-6:
            raise ConfigError(
                f"cache: {name!r} of a training batch differs by {float(difference):.3g} from what "
                f"is kept (values up to {float(scale):.3g}): more than sample and view decide; use "
                "cache=None"
            )
