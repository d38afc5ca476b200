"""A whole run: every stage of a config, one after the other, and its results."""

import copy
import gc
import importlib
import json
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import nn

import kdtasks
from kdtasks.core import Distiller, Stage, Teacher
from kdtasks.core.names import did_you_mean
from kdtasks.core.stages import OWN, check_stages, final_stage, stage_reference, standard_stages, with_control
from kdtasks.core.weights import load_weights
from kdtasks.engine import builder, checkpoint, data_sets
from kdtasks.engine.builder import ConfigError
from kdtasks.engine.caching import cached_outputs
from kdtasks.engine.check import check
from kdtasks.engine.config import LOSS_KEYS, MODEL_KEYS, TEACHER_KEYS, iterations, plain, stages_of
from kdtasks.engine.loader import Loader
from kdtasks.engine.processes import device_name, device_type, led
from kdtasks.engine.show import Bar
from kdtasks.engine.work_dir import WorkDir

TASK_NAMES = ("PRIMARY", "HIGHER_IS_BETTER", "evaluate", "example", "pictures")


class Run:
    """Everything that one config and one seed make.

    Args:
        config: from :func:`kdtasks.engine.config.load` or :func:`~kdtasks.engine.config.complete`.
        work_dir: where the files go.
        seed: of the weights, the order and the views.
        device: ``'cpu'``, ``'cuda'``; None: CUDA where there is one.
        name: what the results call the config.
        quiet: no progress bar.

    Raises:
        ConfigError: something in the config that can be known before any data or weights are read.
    """

    def __init__(self, config: Mapping, work_dir: str | Path, seed: int = 0, device: str | None = None,
                 name: str = "config", quiet: bool = False):
        self.config, self.seed, self.name = copy.deepcopy(dict(config)), seed, name
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank, self.world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if grouped else (0, 1)
        if not grouped and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ConfigError(f"this is one of {os.environ['WORLD_SIZE']} processes: add --launcher pytorch")
        self.device, self.quiet = torch.device(device_type(device)), quiet or self.rank > 0
        self.task = task_module(self.config["task"])
        if self.config["amp"] == "float16" and self.device.type != "cuda":
            raise ConfigError("amp='float16' needs a CUDA device (its gradients need a scaler); use amp='bfloat16' here")
        if self.config["sync_bn"] and self.device.type != "cuda":
            raise ConfigError("sync_bn=True needs CUDA devices: torch shares BatchNorm statistics on no other")
        if self.config["threads"]:
            torch.set_num_threads(self.config["threads"])
        self._sets: dict[str, object] = {}
        self._told: set[str] = set()                                 # unreadable files that the screen has named
        self._said: set[str] = set()
        self.data_is_drawn = False                                        # whether a data set that was read has drawn numbers
        self.specs = {"student": self.config["student"], **self.config["teachers"], **self.config["models"]}
        self.stages: list[Stage] = []
        self.stages = self._stages()
        self._check_stages()
        if self.config["custom_hooks"]:
            from kdtasks.engine.hooks import check_hooks  # slow to import
            check_hooks(self.config["custom_hooks"])
        self.files = WorkDir(work_dir, [stage.name for stage in self.stages])

    @property
    def work_dir(self) -> Path:
        """Where the files go."""
        return self.files.path

    @property
    def done(self) -> dict[str, dict]:
        """``{stage: results}`` of the finished stages."""
        return self.files.done

    def folder(self, stage: Stage) -> Path:
        """Where a stage keeps its checkpoints."""
        return self.files.folder(stage.name)

    # What the config describes ------------------------------------------------------------------------------------
    def _stages(self) -> list[Stage]:
        teachers = {name: spec.get("checkpoint") for name, spec in self.config["teachers"].items()}
        data = [part["own"] for part in self._settings("data") if part.get("own")]
        own = {*getattr(self.task, "OWN_NAMES", ()), *(name for names in data for name in names)}    # that are no teacher's
        own_losses = False                                           # whether the student has losses of its own
        if builder.resolve(self.config["distiller"]["type"], "distiller") is not Distiller:
            probe = Stage("probe", teachers=dict.fromkeys(teachers), losses=self.config["losses"])
            distiller = self.distiller(probe, "nothing")
            own |= set(distiller.names("student"))
            own_losses = any(name.startswith("student.loss_") for name in distiller.names("student"))
        try:
            stages = [Stage(**stage) for stage in stages_of(self.config)]
            if stages:
                return with_control(stages, self.config["losses"], teachers, own, own_losses)
            return standard_stages(self.config["losses"], teachers, self.config["teacher_training"], own, own_losses)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _settings(self, key: str) -> list[Mapping]:
        """What the config says of ``key`` at its top, for teachers, and in stages."""
        parts = [self.config, self.config["teacher_training"], *stages_of(self.config)]
        return [part[key] for part in parts if part.get(key)]

    @property
    def final(self) -> Stage | None:
        """The stage whose student counts: it is exported, compared with "alone" and reported."""
        return final_stage(self.stages)

    def _check_stages(self) -> None:
        try:
            check_stages(self.stages, list(self.specs))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        for stage in self.stages:
            if stage.optimizer_state == "keep" and self.config["ema"]:
                raise ConfigError(f"stage {stage.name!r} keeps an optimizer's state, which is that of the weights, but with "
                                  "ema a stage hands on their average: ema=None, or optimizer_state='fresh'")
            for name, origin in stage.teachers.items():
                if origin is None and not self.specs.get(name, {}).get("checkpoint"):
                    raise ConfigError(f"stage {stage.name!r}: the teacher {name!r} has no weights: expected a stage, "
                                      "a file, or "
                                      f"a checkpoint of the model {name!r}")

    def setting(self, stage: Stage, key: str):
        """``optimizer``, ``schedule``, ``length`` or ``data`` of a stage: the config's, with the stage's changes."""
        own, common = getattr(stage, key), self.config[key]
        if own is None:
            return common
        merge = key in ("data", "optimizer") and "type" not in own
        return {**common, **own} if merge else own

    def precision(self) -> AbstractContextManager:
        """The autocast context of a step."""
        amp = self.config["amp"]
        return torch.autocast(self.device.type, getattr(torch, amp or "bfloat16"), enabled=bool(amp))

    # Models -------------------------------------------------------------------------------------------------------
    def model(self, name: str, like: str | None = None, **arguments) -> nn.Module:
        """A fresh model of the config on the device, built as ``like`` says but for ``arguments``.

        Its weights depend on the seed and its name.

        Raises:
            ConfigError: the config has no such model, or it cannot be built.
        """
        owner = like or name
        if owner not in self.specs:
            raise ConfigError(f"the config has no model {owner!r}; {did_you_mean(owner, self.specs)}")
        reserved = TEACHER_KEYS if owner in self.config["teachers"] else MODEL_KEYS
        return self._built(name, {k: v for k, v in {**self.specs[owner], **arguments}.items() if k not in reserved})

    def learner(self, stage: Stage) -> nn.Module:
        """The model that a stage trains, with fresh weights; in "alone", with the config's ``control``."""
        return self.model(stage.model, **self._arguments(stage))

    def _arguments(self, stage: Stage) -> dict:
        """In what the model of a stage differs from the config's."""
        control = self.config["control"] if stage.name == "alone" and stage.model == "student" else {}
        return {**control, **stage.arguments}

    def _built(self, name: str, spec: Mapping) -> nn.Module:
        with self.seeded(name):
            model = builder.build(spec, name)
        layout = torch.channels_last if self.config["channels_last"] else torch.preserve_format
        return model.to(self.device, memory_format=layout)

    @contextmanager
    def seeded(self, what: str):
        """Random numbers that depend on the run's seed and ``what`` only; the stream around it does not move."""
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(zlib.crc32(f"{self.seed}:{what}".encode()))
            yield

    def distiller(self, stage: Stage, load: str = "everything") -> Distiller:
        """The stage's student, teachers and losses, with the weights that they start from.

        Args:
            stage: which.
            load: ``'everything'``; ``'files'``, those that the config names, but nothing that an earlier stage leaves; or
                ``'nothing'``.
        """
        student = self.learner(stage)
        self._load(student, self._origin(stage), load, grown=True)
        if load != "nothing":
            self._check_source(stage)
        teachers = {name: self._teacher(name, origin, load) for name, origin in stage.teachers.items()}
        self._check_classes(stage, teachers)
        peers = []
        if any(n.startswith("peer") for entry in stage.losses.values() for n in _tuple(entry["of"])):
            for k, spec in enumerate(self.config["peers"]):
                peers.append(self._built(f"peer{k + 1}", {key: v for key, v in spec.items() if key not in MODEL_KEYS}))
                self._load(peers[-1], spec.get("checkpoint"), load)
        with self.seeded(f"{stage.name}:losses"):
            losses = {name: _loss(f"losses.{name}", entry) for name, entry in stage.losses.items()}
        distiller = builder.build(self.config["distiller"], "distiller", student=student, teachers=teachers, losses=losses,
                                  peers=peers, compile=self.config["compile"])
        if load != "nothing" and hasattr(distiller, "classes"):
            distiller.classes = self._classes(stage)
        return distiller.to(self.device)

    def _origin(self, stage: Stage) -> str | None:
        if stage.student == "fresh":
            return self.specs[stage.model].get("checkpoint") if stage.model not in self.config["teachers"] else None
        if stage.student != "keep":
            return stage.student
        earlier = self.stages[:self.stages.index(stage)]
        return next(s.name for s in reversed(earlier) if s.model == stage.model)

    def _teacher(self, name: str, origin: str | Sequence[str] | None, load: str) -> Teacher:
        origin = origin if isinstance(origin, str | None) else origin[0]
        source = next((s for s in self.stages if origin and stage_reference(origin, [s.name])), None)
        owner = source.model if source else name
        model = self.model(name, like=owner, **(self._arguments(source) if source else {}))
        spec = self.specs[owner]
        meta = self._load(model, origin or spec.get("checkpoint"), load)
        options = {}
        if owner in self.config["teachers"]:
            options = {key: spec[key] for key in TEACHER_KEYS if key in spec and key not in MODEL_KEYS}
        try:
            teacher = Teacher(model, **options)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
        teacher.classes = meta.get("classes") or (self._classes(source) if source and load != "nothing" else None)
        return teacher

    def _classes(self, stage: Stage) -> list[str] | None:
        return data_sets.class_names(self.data_set(self.setting(stage, "data"), "train"))

    def _check_source(self, stage: Stage) -> None:
        """A stage that goes on with another one's student gives its outputs the same classes; new ones come behind."""
        source = next((s for s in self.stages if s.name == self.source(stage)), None)
        if source is None or self._unseen:
            return
        known, classes = self._classes(source) or [], self._classes(stage) or []
        number = next((k for k, (before, now) in enumerate(zip(known, classes)) if before != now), None)
        if number is not None:
            raise ConfigError(f"stage {stage.name!r} goes on with the student of stage {source.name!r}, where class {number} "
                              f"is {known[number]!r}, and here {classes[number]!r}: expected the same classes in the same "
                              f"order, new ones behind. There are {len(known)}: {known[:12]}; here {len(classes)}: "
                              f"{classes[:12]}")

    def _check_classes(self, stage: Stage, teachers: Mapping[str, Teacher]) -> None:
        """A teacher whose output is compared knows the classes of the data, in their order."""
        wanted = {name for entry in stage.losses.values() for name in _tuple(entry["of"])}
        plain_distiller = builder.resolve(self.config["distiller"]["type"], "distiller") is Distiller
        for name, teacher in teachers.items():
            known = teacher.classes
            classes = self._classes(stage) if known and plain_distiller and name in wanted else None
            if classes and list(known) != classes:
                lacks, adds = [c for c in known if c not in classes], [c for c in classes if c not in known]
                what = f"it lacks {lacks[:5]} and adds {adds[:5]}" if lacks or adds else "they stand in another order"
                raise ConfigError(f"the teacher {name!r} knows {len(known)} classes, the data has {len(classes)} others: "
                                  + what)

    def _load(self, model: nn.Module, origin: str | None, load: str = "everything", grown: bool = False) -> dict:
        if origin in (None, OWN) or load == "nothing":
            return {}
        reference = stage_reference(origin, [stage.name for stage in self.stages])
        if reference is None:
            return load_weights(model, origin, grown)
        file = self.files.folder(reference[0]) / f"{reference[1]}.pth"
        return load_weights(model, file, grown) if load == "everything" else {}

    def anchors(self, stage: Stage, distiller: Distiller):
        """What loads a teacher's next anchor into the same module when its share of the stage begins; None without anchors."""
        routes = {name: list(origin) for name, origin in stage.teachers.items() if not isinstance(origin, str | None)}
        loaded: dict[str, int] = {}

        def follow(batch: dict) -> dict:
            iteration, total = distiller.progress
            for name, route in routes.items():
                now = iteration * len(route) // total
                if loaded.get(name) != now:
                    self._load(distiller.model(name), route[now])
                    loaded[name] = now
            return batch

        return follow if routes else None

    def trained(self, stage_name: str) -> nn.Module:
        """The model that a finished stage trained, in eval."""
        stage = next(s for s in self.stages if s.name == stage_name)
        model = self.learner(stage)
        load_weights(model, self.files.folder(stage_name) / "last.pth")
        model.eval()
        model.requires_grad_(False)
        return model

    # Data ---------------------------------------------------------------------------------------------------------
    def data_set(self, data: Mapping, part: str):
        """The train or test set of a data setting; the same description, inside another one too, is read once.

        Its classes are numbered as in the data that the final student trains on (another stage's training data: where the
        classes are the same), those of a test set as in the training data of the same setting. A test set is told that it does
        not train. What a set draws from torch's random stream depends on the run's seed alone.

        Raises:
            ConfigError: a test set has samples of a class that the training data lacks, or augments.
        """
        if part == "test":
            return self._test_set(data, self._class_names(data))
        made, names = self._read(data, "train"), self._final_names()
        own = data_sets.class_names(made)
        same = names is not None and own is not None and sorted(own) == sorted(names)
        return self._with_classes(made, names if same else None, False, "data.train")

    def _read(self, data: Mapping, part: str):
        return self._read_once(data_sets.told(data[part], part == "train", data["skip_bad"]), f"data.{part}")

    def _test_set(self, data: Mapping, names: Sequence[str] | None):
        made = self._read(data, "test")
        data_sets.check_plain(made, "data.test")
        return self._with_classes(made, names, data["unknown_classes"] == "drop", "data.test")

    def _class_names(self, data: Mapping) -> list[str] | None:
        """The classes that the training data of a setting brings; None where the test is of classes never seen."""
        return None if self._unseen else data_sets.class_names(self.data_set(data, "train"))

    @property
    def _unseen(self) -> bool:
        """Whether the test is of classes that nobody trained on, as the task says."""
        return getattr(self.task, "UNSEEN_CLASSES", False)

    def _final_names(self) -> list[str] | None:
        if self.final is None or self._unseen:
            return None
        return data_sets.class_names(self._read(self.setting(self.final, "data"), "train"))

    def _with_classes(self, made, names: Sequence[str] | None, drop: bool, where: str):
        key = ("classes", id(made), tuple(names or ()), drop)
        if key not in self._sets:
            self._sets[key] = data_sets.with_classes(made, names, drop, where)
        return self._sets[key]

    def _read_once(self, spec: Mapping, where: str):
        key = json.dumps(plain(spec), sort_keys=True, default=str)
        if key not in self._sets:
            inner = {name: self._read_inner(value, f"{where}.{name}") for name, value in spec.items()}
            with self.seeded("data"):
                before = torch.get_rng_state()
                made = builder.build(inner, where)
                self.data_is_drawn |= not torch.equal(before, torch.get_rng_state())
            self._sets[key] = made.to(self.device) if hasattr(made, "to") else made
        return self._sets[key]

    def _read_inner(self, value, where: str):
        if isinstance(value, Mapping) and "type" in value:
            return self._read_once(value, where)
        if isinstance(value, list):
            return [self._read_inner(item, f"{where}[{k}]") for k, item in enumerate(value)]
        return value

    def _training_set(self, stage: Stage, load: str = "everything"):
        """The data that a stage learns from: what the config describes, and what the task makes of it after earlier stages."""
        made = self.data_set(self.setting(stage, "data"), "train")
        return self.task.training_set(self, stage, made, load) if hasattr(self.task, "training_set") else made

    def unlabelled(self, stage: Stage) -> int:
        """Unlabelled samples in a batch of a stage: only teachers say something of them, or the stage asks for them itself."""
        own = "unlabelled_per_batch" in (stage.data or {})
        return self.setting(stage, "data")["unlabelled_per_batch"] if own or stage.taught else 0

    def train_loader(self, stage: Stage, load: str = "everything", **changes) -> Loader:
        """The training batches of a stage. Without teachers: the labelled samples only (see :meth:`unlabelled`).

        Args:
            stage: which.
            load: as in :meth:`distiller`: what earlier stages have left may decide on the samples.
            changes: of the stage's ``data``.
        """
        data, train, share = {**self.setting(stage, "data"), **changes}, self._training_set(stage, load), self.unlabelled(stage)
        return Loader(train, data["batch_size"] + share, labelled="target" if _marks_unlabelled(train) else None,
                      unlabelled_per_batch=share, views=self.config["cache"]["views"] if self._cached(stage) else 0,
                      per_class=data["per_class"], length=data["iterations_per_epoch"], rank=self.rank, world=self.world,
                      **self._reading(data))

    def source(self, stage: Stage) -> str | None:
        """The name of the stage whose student this one goes on with."""
        reference = stage_reference(self._origin(stage) or "", [s.name for s in self.stages])
        return reference and reference[0]

    def chain(self, stage: Stage) -> list[Stage]:
        """The stages that, one after the other, trained what this one ends with; itself last."""
        source = self.source(stage)
        return [*(self.chain(next(s for s in self.stages if s.name == source)) if source else []), stage]

    def _first_epoch(self, stage: Stage) -> int:
        """A stage that goes on with an earlier one's student goes on in the data's order and views, with the next epoch."""
        source = self.source(stage)
        if source is None:
            return 0
        earlier = next(s for s in self.stages if s.name == source)
        per_epoch = len(self.train_loader(earlier, workers=0))
        length = iterations(self.setting(earlier, "length"), per_epoch, f"{earlier.name}.length")
        return self._first_epoch(earlier) + -(-length // per_epoch)

    def test_loader(self, stage: Stage, classes: Sequence[str] | str | None = "train", **changes) -> Loader:
        """All test samples, in order.

        Args:
            stage: which.
            classes: whose numbers count: ``'train'``, the training data's; a list, as a model knows them, and the training
                data is not read; None: the test set's own.
            changes: of the stage's ``data``.
        """
        data = {**self.setting(stage, "data"), **changes}
        names = self._class_names(data) if classes == "train" else None if self._unseen else classes
        tested = self._test_set(data, None if names is None else [str(name) for name in names])
        return Loader(tested, data["test_batch_size"], shuffle=False, **self._reading(data))

    def _reading(self, data: Mapping) -> dict:
        return {"seed": self.seed, "workers": data["workers"], "timeout": data["timeout"], "device": self.device,
                "skip_bad": data["skip_bad"],
                "collate": builder.resolve(data["collate"], "data.collate") if data["collate"] else None,
                "channels_last": self.config["channels_last"]}

    def _cached(self, stage: Stage) -> bool:
        """Whether teacher outputs are kept; not those of a route of anchors, which change on the way."""
        origins = stage.teachers.values()
        return bool(self.config["cache"] and origins) and all(isinstance(origin, str | None) for origin in origins)

    def cache(self, stage: Stage, distiller: Distiller):
        """What adds the teachers' outputs to a batch, where the config has a cache; else None."""
        if not self._cached(stage):
            return None
        data, views = self.setting(stage, "data"), self.config["cache"]["views"]
        sweep = Loader(self._training_set(stage), data["test_batch_size"], shuffle=False, views=views, **self._reading(data))
        facts = {"options": plain({name: self.specs.get(name) for name in stage.teachers}), "data": plain(data["train"]),
                 "seed": self.seed, "amp": self.config["amp"], "channels_last": self.config["channels_last"]}
        probe = next(iter(self.train_loader(stage, workers=0).epoch(0)))
        return cached_outputs(distiller, sweep, views, self.work_dir / "cache", facts, self.precision, probe)

    # Running ------------------------------------------------------------------------------------------------------
    @property
    def results(self) -> dict:
        """What results.json holds."""
        return {"config": self.name, "seed": self.seed, "device": device_name(self.device), "primary": self.task.PRIMARY,
                "higher_is_better": self.task.HIGHER_IS_BETTER, "stages": self.done}

    def schedule(self, stage: Stage) -> list[dict]:
        """The parameter schedulers of a stage."""
        schedule = self.setting(stage, "schedule") or []
        return schedule if isinstance(schedule, list) else [schedule]

    def open(self, resume: bool = False) -> None:
        """Make the work_dir ready, for this run alone; see :meth:`WorkDir.open`. Other ranks wait for the first."""
        led(lambda beat: self._open(resume))

    def _open(self, resume: bool) -> None:
        aside = self.files.open(self.config, self.seed, resume)
        if aside and not self.quiet:
            print(f"the former run is now in {aside}")

    def close(self) -> None:
        """Let others work in the work_dir; :meth:`train` does so when it ends."""
        if self.rank == 0:
            self.files.close()

    def train(self, resume: bool = False, only: list[str] | None = None) -> dict:
        """Run the stages that are not done yet, and write results.json, student.pth with student.json, and report.html.

        Args:
            resume: go on in a work_dir of the same config; in an empty one, start.
            only: names of the stages to run; others are left.

        Returns:
            The content of results.json.
        """
        for name in only or []:
            if name not in self.files.stages:
                raise ConfigError(f"no stage is called {name!r}; {did_you_mean(name, self.files.stages)}")
        check(self)
        gc.freeze()                              # what is there now need not be gone through after each stage
        try:
            self.open(resume)
            for stage in self.stages:
                if stage.name not in self.done and (only is None or stage.name in only):
                    self._train_stage(stage, resume)
                    gc.collect()                 # runners, hooks and loops hold each other, and with them a whole stage
            led(lambda beat: self._finish())
            return self.results
        finally:
            gc.unfreeze()
            self.close()

    def _train_stage(self, stage: Stage, resume: bool) -> None:
        from kdtasks.engine.runner import StageRunner, leaves_parameters_out  # mmengine's Runner is slow to import

        loader, distiller = self.train_loader(stage), self.distiller(stage)
        first = next(iter(self.train_loader(stage, workers=0).epoch(0)))
        with self.seeded(f"{stage.name}:build"):
            distiller.build(first)
        unused = self.world > 1 and leaves_parameters_out(distiller, first)
        differs = self._ranks_differ(distiller)
        prepare = self.cache(stage, distiller) or self.anchors(stage, distiller)
        length = iterations(self.setting(stage, "length"), len(loader), f"{stage.name}.length")
        config = self.config
        with Bar(stage.name, length, self.quiet) as bar:
            runner = StageRunner(
                name=stage.name, folder=self.folder(stage), log_file=self.work_dir / "train.log", seed=self.seed,
                distiller=distiller, loader=loader, test_loader=self.test_loader(stage), task=self.task, prepare=prepare,
                optimizer=lambda parameters: builder.build(self.setting(stage, "optimizer"), "optimizer", params=parameters),
                schedule=self.schedule(stage), train=stage.train, length=length, find_unused_parameters=unused,
                log_interval=config["log_interval"], keep=stage.keep,
                val_interval=iterations(config["val_interval"], len(loader), "val_interval"),
                checkpoint_interval=iterations(config["checkpoint_interval"], len(loader), "checkpoint_interval"),
                first_epoch=self._first_epoch(stage), meta=self._meta(stage), show=bar, options=config,
                custom_hooks=copy.deepcopy(config["custom_hooks"]),
                tensorboard=self.work_dir / "tensorboard" / stage.name if config["tensorboard"] and self.rank == 0 else None)
            if differs:
                runner.logger.warning(differs)
            last = self.folder(stage) / "last.pth"
            if resume and last.exists():
                runner.resume_from(last)
            elif stage.optimizer_state == "keep":
                runner.take_optimizer_state(self.files.folder(self.source(stage)) / "last.pth")
            runner.train()
        unreadable = {part: paths for part, paths in runner.unreadable.items() if paths}
        steps = runner.train_loop.iter
        ended = {"ended_early": {"iterations": steps, "of": length}} if steps < length else {}
        led(lambda beat: self._note(stage, {**runner.metrics, "seconds": round(runner.seconds, 3)}, unreadable, ended))

    def _ranks_differ(self, distiller: Distiller) -> str:
        """Why several processes do not give what one would; said once on the screen."""
        normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for role in distiller.learners
                     for module in distiller.model(role).modules())
        if self.world == 1 or self.config["sync_bn"] or not normed:
            return ""
        why = (f"BatchNorm sees the rows of its own process only: {self.world} processes do not train as one would, and what "
               "is saved has the statistics of the first; sync_bn=True shares them (on CUDA)")
        if not self.quiet and why not in self._said:
            print(f"note: {why}")
            self._said.add(why)
        return why

    def _note(self, stage: Stage, found: dict, unreadable: dict, ended: dict) -> None:
        further = self.task.summary(self, stage, found) if hasattr(self.task, "summary") else {}
        self._say_unreadable(unreadable)
        self.files.finish(stage.name, {**found, **further, **ended, **({"unreadable": unreadable} if unreadable else {})})
        checkpoint.save_json(self.results, self.work_dir / "results.json")

    @property
    def ended_early(self) -> dict[str, str]:
        """``{stage: 'after 8 of 36 iterations'}`` where a hook's end makes the budgets of "alone" and of its rival differ."""
        alone = next((stage for stage in self.stages if stage.name == "alone"), None)
        if alone is None or self.final is None:
            return {}
        names = {stage.name for end in (alone, self.final) for stage in self.chain(end)}
        found = {name: values["ended_early"] for name, values in self.done.items()
                 if name in names and "ended_early" in values}
        if found.keys() == {"alone", self.final.name} and found["alone"] == found[self.final.name]:
            return {}
        return {name: f"after {end['iterations']} of {end['of']} iterations" for name, end in found.items()}

    def _say_ended_early(self) -> None:
        ended = ", ".join(f"{name} {where}" for name, where in self.ended_early.items())
        if ended and not self.quiet:
            print(f"warning: a hook has ended {ended}: alone and {self.final.name} have not had the same budget, so their "
                  "difference is not the teacher's alone", file=sys.stderr)

    def _say_unreadable(self, unreadable: Mapping[str, Mapping[str, str]]) -> None:
        """Once a run, on the screen: how many samples could not be read."""
        for part, paths in unreadable.items():
            new = [path for path in paths if path not in self._told]
            self._told.update(new)
            if new and not self.quiet:
                more = f" and {len(new) - 1} more (results.json names them)" if len(new) > 1 else ""
                print(f"warning: left out of the {part} data: {new[0]}: {paths[new[0]]}{more}", file=sys.stderr)

    def _meta(self, stage: Stage) -> dict:
        spec = {**self.specs[stage.model], **self._arguments(stage)}
        return {"kdtasks": kdtasks.__version__, "config": self.name, "stage": stage.name, "seed": self.seed,
                "model": str(spec["type"]), "spec": plain({k: v for k, v in spec.items() if k != "checkpoint"}),
                "classes": self._classes(stage)}

    def _finish(self) -> None:
        from kdtasks.engine.report import write_report

        final = self.final
        if final and final.name in self.done:
            state = checkpoint.load(self.folder(final) / "last.pth")
            checkpoint.save_weights(state["state_dict"], state["meta"], self.work_dir / "student.pth")
            self._say_ended_early()
        checkpoint.save_json(self.results, self.work_dir / "results.json")
        write_report(self)


def _tuple(of) -> tuple[str, ...]:
    return (of,) if isinstance(of, str) else tuple(of)


def _loss(where: str, entry: Mapping) -> tuple:
    loss = builder.bind({k: v for k, v in entry.items() if k not in LOSS_KEYS}, where) if "type" in entry else None
    weight = entry.get("weight", 1.0)
    return loss, entry["of"], builder.build(weight, f"{where}.weight") if isinstance(weight, Mapping) else weight


def task_module(path: str):
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise ConfigError(f"task={path!r} cannot be imported: {error}") from error
    missing = [name for name in TASK_NAMES if not hasattr(module, name)]
    if missing:
        raise ConfigError(f"task={path!r} is no trainer module: it lacks {missing}")
    return module


def _marks_unlabelled(dataset) -> bool:
    """Whether ``target`` is one whole number a sample, of which -100 means unlabelled."""
    try:
        target = torch.as_tensor(dataset.target)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return False
    return target.ndim == 1 and not target.is_floating_point()
