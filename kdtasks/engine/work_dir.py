"""The folder of a run: what is in it, what is done, and that nothing in it is ever lost."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from kdtasks.core.files import write_atomically
from kdtasks.engine import checkpoint
from kdtasks.engine.builder import ConfigError
from kdtasks.engine.config import IMPORT_FROM, difference, plain


class WorkDir:
    """What a run leaves: ``config.py results.json student.pth student.json report.html train.log``, ``stages/<k>_<name>/``,
    and ``stages/done.json``.

    Args:
        path: the folder.
        stages: names of the stages, in order.
    """

    def __init__(self, path: str | Path, stages: list[str]):
        self.path, self.stages = Path(path), stages
        self._done = self.path / "stages" / "done.json"

    def folder(self, stage: str) -> Path:
        """Where a stage keeps ``last.pth``, ``best.pth``, ``epoch_<e>.pth`` and ``history.json``."""
        return self.path / "stages" / f"{self.stages.index(stage)}_{stage}"

    @property
    def done(self) -> dict[str, dict]:
        """``{stage: {metric: value, 'seconds': …}}`` of the finished stages, in their order."""
        found = json.loads(self._done.read_text()) if self._done.exists() else {}
        return {name: found[name] for name in self.stages if name in found}

    def finish(self, stage: str, results: Mapping) -> None:
        """Note a stage as finished."""
        checkpoint.save_json({**self.done, stage: dict(results)}, self._done)

    def open(self, config: Mapping, seed: int, resume: bool) -> Path | None:
        """Start in an empty folder, or go on in one of the same config.

        Returns:
            Where a former run has been moved, if one was there and ``resume`` was not asked for.

        Raises:
            ConfigError: ``resume`` where another config or seed has run (the message lists the differences); or something
                that is no run lies there.
        """
        stamp, now, aside = self.path / "stages" / "config.json", plain({**config, "seed": seed}), None
        if resume and stamp.exists():
            for left in self.path.rglob(".*.tmp"):                        # of a run that was killed while it wrote
                left.unlink()
            differences = difference(json.loads(stamp.read_text()), now)
            if differences:
                raise ConfigError(f"--resume: {str(self.path)!r} holds a run of another configuration:\n  "
                                  + "\n  ".join(differences) + "\nUse that configuration, or another --work-dir")
            return None
        if self.path.exists() and any(self.path.iterdir()):
            if not stamp.exists():
                raise ConfigError(f"--work-dir {str(self.path)!r} is not empty, and what is in it is no run; use another")
            aside = _free_name(self.path)
            self.path.rename(aside)
        checkpoint.save_json(now, stamp)
        self._write_config(config)
        return aside

    def _write_config(self, config: Mapping) -> None:
        from mmengine.config import Config
        text = Config({**{k: v for k, v in config.items() if v is not None}, "_import_from": list(IMPORT_FROM)}).pretty_text
        write_atomically(self.path / "config.py", lambda file: file.write_text(text))

    def adopt(self, stage: str, folder: Path) -> None:
        """Take over a stage that another run has finished: its results and its files (hard links where the disk can).

        Args:
            stage: called the same in both runs.
            folder: the other run's folder of it.
        """
        own = self.folder(stage)
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(folder, own, copy_function=_link)
        self.finish(stage, json.loads((folder.parent / "done.json").read_text())[stage])


def _free_name(path: Path) -> Path:
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    return path.with_name(f"{path.name}.{number}")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)                                           # checkpoints are replaced, never written into
    except OSError:                                                       # another disk, or one without links
        shutil.copyfile(source, target)
