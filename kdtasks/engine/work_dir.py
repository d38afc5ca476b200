"""The folder of a run: what is in it, what is done, and that nothing in it is ever lost."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from kdtasks.core.files import write_atomically, write_text
from kdtasks.engine import checkpoint, lock
from kdtasks.engine.config import IMPORT_FROM, difference, jsonable, renewed
from kdtasks.engine.config_keys import DATA_KEYS, KEYS, NEEDED
from kdtasks.engine.errors import ConfigError

# a file of a process, or a cache half written
_TEMPORARY = re.compile(r"\..+\.(?:(\d{1,10})|[0-9a-f]{32}(?:\.old)?)\.tmp")


class WorkDir:
    """What a run leaves: ``config.py results.json student.pth student.json report.html train.log``,
    ``stages/<k>_<name>/``, ``stages/done.json``, ``stages/timings.json``,
    ``stages/data.json``, ``stages/deployment.json`` and ``stages/robustness.json``.

    Args:
        path: the folder.
        stages: names of the stages, in order.
    """

    def __init__(self, path: str | Path, stages: list[str]):
        self.path, self.stages = Path(path), stages
        self._done = self.path / "stages" / "done.json"
        self._timings = self.path / "stages" / "timings.json"
        self._deployment = self.path / "stages" / "deployment.json"
        self._robustness = self.path / "stages" / "robustness.json"

    def folder(self, stage: str) -> Path:
        """Where a stage keeps ``last.pth``, ``best.pth``, kept epochs and ``history.json``."""
        return self.path / "stages" / f"{self.stages.index(stage)}_{stage}"

    def weights(self, stage: str, which: str = "last") -> Path:
        """The file of a stage's weights: ``'last'``, ``'best'`` or ``'epoch_<e>'``."""
        return self.folder(stage) / f"{which}.pth"

    @property
    def done(self) -> dict[str, dict]:
        """``{stage: {metric: value, 'seconds': …}}`` of the finished stages, in their order."""
        return self._read(self._done)

    @property
    def timings(self) -> dict[str, dict[str, float]]:
        """What the training of finished stages took: ``{stage: {'iterations': …,
        'training_seconds': …, 'preparation_seconds': …}}``.

        Seconds of training are those of the steps, without evaluations and checkpoints; those of
        the preparation, of a cache of the teachers' outputs; both without the time in which another
        process had the processor. A stage of which they are not known is left out.
        """
        return self._read(self._timings)

    @property
    def deployment(self) -> dict:
        """What :func:`kdtasks.engine.deployment.measure` found; empty: nothing yet."""
        return _read_json(self._deployment)

    @deployment.setter
    def deployment(self, measured: Mapping) -> None:
        checkpoint.save_json(dict(measured), self._deployment)

    @property
    def robustness(self) -> dict:
        """What :func:`kdtasks.engine.robustness.measure` found; empty: nothing yet."""
        return _read_json(self._robustness)

    @robustness.setter
    def robustness(self, measured: Mapping) -> None:
        checkpoint.save_json(dict(measured), self._robustness)

    def _read(self, path: Path) -> dict[str, dict]:
        entries = json.loads(path.read_text()) if path.exists() else {}
        return {name: entries[name] for name in self.stages if name in entries}

    def finish(
        self, stage: str, results: Mapping, timing: Mapping[str, float] | None = None
    ) -> None:
        """Note a stage as finished.

        Args:
            stage: which.
            results: of results.json.
            timing: as in :attr:`timings`; None: not known.
        """
        if timing:
            checkpoint.save_json({**self.timings, stage: dict(timing)}, self._timings)
        checkpoint.save_json({**self.done, stage: dict(results)}, self._done)

    def open(self, config: Mapping, seed: int, resume: bool) -> Path | None:
        """Start in an empty folder, or go on in one of the same config; nobody else works in it
        until :meth:`close`.

        What holds nothing but temporary files of a run that was killed before it had begun is
        empty.

        Returns:
            Where a former run has been moved, if one was there and ``resume`` was not asked for.

        Raises:
            ConfigError: another process works there; or ``resume`` where another config or seed has
                run (the message lists the differences); or something that is no run lies there.
        """
        aside = None
        lock.acquire(self.path)
        try:
            if not self._goes_on(config, seed, resume):
                if not self._is_empty():
                    if not self._stamp.exists():
                        raise ConfigError(
                            f"--work-dir {str(self.path)!r} is not empty, and what is in it is no "
                            "run; use another"
                        )
                    aside = _free_name(self.path)
                    lock.move(self.path, aside)
                self._remove_temporaries()
                checkpoint.save_json(_facts(config, seed), self._stamp)
            if not (self.path / "config.py").exists():  # a kill between the two
                self._write_config(config)
        except BaseException:
            self.close()
            raise
        return aside

    def close(self) -> None:
        """Let others work in the folder."""
        lock.release(self.path)

    @property
    def _stamp(self) -> Path:
        return self.path / "stages" / "config.json"

    def _goes_on(self, config: Mapping, seed: int, resume: bool) -> bool:
        if not (resume and self._stamp.exists()):
            return False
        # keys that are new since the run have their defaults
        defaults = {key: default for key, (_, default) in KEYS.items() if key not in NEEDED}
        stamp = renewed(json.loads(self._stamp.read_text(encoding="utf-8")))
        former = {**jsonable(defaults), **stamp}
        former["data"] = {
            **{key: default for key, (_, default) in DATA_KEYS.items()},
            **former["data"],
            "timeout": config["data"]["timeout"],
        }  # it changes no weight
        differences = difference(former, _facts(config, seed))
        if differences:
            raise ConfigError(
                f"--resume: {str(self.path)!r} holds a run of another configuration:\n  "
                + "\n  ".join(differences)
                + "\nUse that configuration, or another --work-dir"
            )
        self._remove_temporaries()
        return True

    def _is_empty(self) -> bool:
        return all(
            entry.is_dir() or entry.name == lock.NAME or _is_temporary(entry)
            for entry in self.path.rglob("*")
        )

    def _remove_temporaries(self) -> None:
        """What a process that is gone had begun to write; a living one, which exports a student
        say, keeps its own.
        """
        for left in [entry for entry in self.path.rglob(".*.tmp") if _is_temporary(entry)]:
            match = _TEMPORARY.fullmatch(left.name)
            writer = match and match[1]
            if writer and int(writer) != os.getpid() and lock.alive(int(writer)):
                continue
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)

    def _write_config(self, config: Mapping) -> None:
        from mmengine.config import Config

        text = Config(
            {
                **{k: v for k, v in config.items() if v is not None},
                "_import_from": list(IMPORT_FROM),
            }
        ).pretty_text
        write_atomically(self.path / "config.py", lambda file: write_text(file, text))

    def link_stage(self, stage: str, folder: Path) -> None:
        """Take over a stage that another run has finished: its results and its files (hard links
        where the disk can).

        Args:
            stage: called the same in both runs.
            folder: the other run's folder of it.
        """
        target = self.folder(stage)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target, copy_function=_link)
        other = WorkDir(folder.parents[1], [stage])
        self.finish(stage, other.done[stage], other.timings.get(stage))


def _facts(config: Mapping, seed: int) -> dict:
    return jsonable({**config, "seed": seed})


def _is_temporary(path: Path) -> bool:
    return _TEMPORARY.fullmatch(path.name) is not None


def _free_name(path: Path) -> Path:
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    return path.with_name(f"{path.name}.{number}")


def _link(source: str, target: str) -> None:
    try:
        # checkpoints are replaced, never written into
        os.link(source, target)
    # another disk, or one without links
    except OSError:
        shutil.copyfile(source, target)


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
