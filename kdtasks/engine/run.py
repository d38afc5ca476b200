"""A whole run: every stage of a config, its files, its results."""

import copy
import hashlib
import importlib
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

import kdtasks
from kdtasks.core import Distiller, Stage, Teacher
from kdtasks.core.cache import TeacherCache, model_hash
from kdtasks.core.names import did_you_mean
from kdtasks.core.stages import check_stages, stage_reference, standard_stages
from kdtasks.core.weights import load_weights
from kdtasks.engine import builder, checkpoint
from kdtasks.engine.config import MODEL_KEYS, TEACHER_KEYS, TRAINING_KEYS, ConfigError, difference, iterations, plain
from kdtasks.engine.loader import Loader
from kdtasks.engine.show import Bar

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
        self.config, self.work_dir, self.seed, self.name = copy.deepcopy(dict(config)), Path(work_dir), seed, name
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device(_device(device))
        self.quiet = quiet or self.rank > 0
        self.task = _task(self.config["task"])
        if self.config["amp"] == "float16" and self.device.type != "cuda":
            raise ConfigError("amp='float16' needs a CUDA device (its gradients need a scaler); use amp='bfloat16' here")
        if self.config["threads"]:
            torch.set_num_threads(self.config["threads"])
        self.stages = self._stages()
        check_stages(self.stages, [*self._specs()])
        self._sets: dict[str, object] = {}

    # Files -------------------------------------------------------------------------------------------------------
    def folder(self, stage: Stage) -> Path:
        """``stages/<k>_<name>`` of a stage."""
        return self.work_dir / "stages" / f"{[s.name for s in self.stages].index(stage.name)}_{stage.name}"

    @property
    def done(self) -> dict[str, dict]:
        """``{stage: results}`` of the finished stages."""
        path = self.work_dir / "stages" / "done.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def results(self) -> dict:
        """What results.json holds."""
        return {"config": self.name, "seed": self.seed, "device": _device_name(self.device), "primary": self.task.PRIMARY,
                "higher_is_better": self.task.HIGHER_IS_BETTER, "stages": self.done}

    def _open_work_dir(self, resume: bool) -> None:
        """Start in an empty folder, or go on in one of the same config; a former run is moved aside, never overwritten.

        Raises:
            ConfigError: ``resume`` where another config (or seed) has run; the message lists the differences.
        """
        stamp = self.work_dir / "stages" / "config.json"
        now = plain({**self.config, "seed": self.seed})
        if resume and stamp.exists():
            differences = difference(json.loads(stamp.read_text()), now)
            if differences:
                raise ConfigError(f"--resume: {str(self.work_dir)!r} holds a run of another configuration:\n  "
                                  + "\n  ".join(differences) + "\nUse that configuration, or another --work-dir")
            return
        if self.work_dir.exists() and any(self.work_dir.iterdir()):
            if resume:
                raise ConfigError(f"--resume: {str(self.work_dir)!r} is not empty, and holds no run of ours")
            aside = next(p for p in (self.work_dir.with_name(f"{self.work_dir.name}.{k}") for k in range(1, 10**6)) if not p.exists())
            self.work_dir.rename(aside)
            if not self.quiet:
                print(f"the former run is now in {aside}")
        self.work_dir.mkdir(parents=True, exist_ok=True)
        from mmengine.config import Config
        dumped = {k: v for k, v in self.config.items() if v is not None}
        checkpoint.write_atomically(self.work_dir / "config.py", lambda p: p.write_text(Config(dumped).pretty_text))
        checkpoint.save_json(now, stamp)

    def adopt(self, name: str, folder: Path) -> None:
        """Take a stage that another run has finished for this run's own: its results and its files (hard links, if the disk can).

        Args:
            name: the stage, called the same in both runs.
            folder: the other run's :meth:`folder` of it.
        """
        self._open_work_dir(resume=True)
        own = self.folder(next(s for s in self.stages if s.name == name))
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(folder, own, copy_function=_link)
        results = json.loads((folder.parent / "done.json").read_text())[name]
        checkpoint.save_json({**self.done, name: results}, self.work_dir / "stages" / "done.json")

    # What a config describes -----------------------------------------------------------------------------------------
    def _specs(self) -> dict[str, dict]:
        return {"student": self.config["student"], **self.config["teachers"], **self.config["models"]}

    def _stages(self) -> list[Stage]:
        if self.config["stages"]:
            return [Stage(**stage) for stage in self.config["stages"]]
        teachers = {name: spec.get("checkpoint") for name, spec in self.config["teachers"].items()}
        extra: set[str] = set()
        if builder.resolve(self.config["distiller"]["type"], "distiller") is not Distiller:
            probe = self.distiller(Stage("probe", teachers=dict.fromkeys(teachers), losses=self.config["losses"]), weights=False)
            extra = {name for teacher in teachers for name in probe.names(teacher)}
        try:
            return standard_stages(self.config["losses"], teachers, self.config["teacher_training"], extra.__contains__)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def setting(self, stage: Stage, key: str):
        """``optimizer``, ``schedule``, ``length`` or ``data`` of a stage: the config's, with the stage's changes."""
        assert key in TRAINING_KEYS
        own, common = getattr(stage, key), self.config[key]
        if own is None:
            return common
        if isinstance(own, Mapping) and isinstance(common, Mapping) and "type" not in own and key != "length":
            return {**common, **own}
        return own

    def model(self, name: str, spec: Mapping | None = None, reserved=MODEL_KEYS) -> nn.Module:
        """A freshly initialised model of the config on the device; its weights depend on the seed and its name only."""
        spec = {k: v for k, v in (spec or self._specs()[name]).items() if k not in reserved}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(f"{self.seed}:{name}".encode()))
            model = builder.build(spec, name)
        model.to(self.device, memory_format=torch.channels_last if self.config["channels_last"] else torch.preserve_format)
        return model

    def source(self, text: str) -> Path:
        """The file that a stage reference or a path means."""
        reference = stage_reference(text, [s.name for s in self.stages])
        if reference is None:
            return Path(text)
        stage = next(s for s in self.stages if s.name == reference[0])
        return self.folder(stage) / f"{reference[1]}.pth"

    def distiller(self, stage: Stage, weights: bool = True) -> Distiller:
        """The stage's student, teachers and losses; ``weights`` loads what the stage starts from (else only files)."""
        student = self.model(stage.model, reserved=TEACHER_KEYS)
        self._start(stage, student, weights)
        teachers = {name: self._teacher(name, origin, weights) for name, origin in stage.teachers.items()}
        peers = []
        if any(name.startswith("peer") for e in stage.losses.values() for name in ([e["of"]] if isinstance(e["of"], str) else e["of"])):
            peers = [self.model(f"peer{k + 1}", spec) for k, spec in enumerate(self.config["peers"])]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            losses = {name: self._loss(f"{stage.name}.losses.{name}", entry) for name, entry in stage.losses.items()}
        return builder.build(self.config["distiller"], "distiller", student=student, teachers=teachers, losses=losses,
                             peers=peers, compile=self.config["compile"]).to(self.device)

    def _start(self, stage: Stage, student: nn.Module, weights: bool) -> None:
        """Load what the student begins with: its own checkpoint, a file, or another stage's weights."""
        names = [s.name for s in getattr(self, "stages", [])]
        origin = stage.student
        if origin == "keep":
            earlier = [s for s in self.stages[:names.index(stage.name)] if s.model == stage.model]
            origin = earlier[-1].name
        if origin == "fresh":
            origin = self._specs()[stage.model].get("checkpoint") if stage.model == "student" else None
        if origin and (stage_reference(origin, names) is None or weights):
            load_weights(student, self.source(origin))

    def _teacher(self, name: str, origin: str | None, weights: bool) -> Teacher:
        spec = self._specs().get(name)
        if spec is None:                                                    # named after the stage or model it comes from
            stage = next((s for s in self.stages if origin and stage_reference(origin, [s.name])), None)
            if stage is None:
                raise ConfigError(f"no model is called {name!r}; {did_you_mean(name, self._specs())}")
            spec = self._specs()[stage.model]
        model = self.model(name, spec, TEACHER_KEYS)
        origin = origin or spec.get("checkpoint")
        if origin and (stage_reference(origin, [s.name for s in getattr(self, "stages", [])]) is None or weights):
            meta = load_weights(model, self.source(origin))
            self._check_classes(meta.get("classes"), origin)
        return builder._call(Teacher, {"model": model, **{k: spec[k] for k in TEACHER_KEYS[1:] if k in spec}}, name)

    def _check_classes(self, known: list[str] | None, origin: str) -> None:
        classes = getattr(self._sets.get("train"), "classes", None)
        if known and classes and list(known) != list(classes):
            missing, extra = [c for c in known if c not in classes], [c for c in classes if c not in known]
            what = f"it lacks {missing[:5]} and adds {extra[:5]}" if missing or extra else "they stand in another order"
            raise ConfigError(f"the teacher {origin!r} knows {len(known)} classes, the data has {len(classes)} others: {what}")

    @staticmethod
    def _loss(where: str, entry: Mapping) -> tuple:
        loss = builder.bind({k: v for k, v in entry.items() if k not in ("of", "weight", "alone")}, where) if "type" in entry else None
        weight = entry.get("weight", 1.0)
        return loss, entry["of"], builder.build(weight, f"{where}.weight") if isinstance(weight, Mapping) else weight

    # Data ------------------------------------------------------------------------------------------------------------
    def data_set(self, data: Mapping, part: str):
        """The train or test set of a data setting; the same description is read once."""
        key = json.dumps(plain(data[part]), sort_keys=True, default=str)
        if key not in self._sets:
            made = builder.build(data[part], f"data.{part}")
            self._sets[key] = made.to(self.device) if hasattr(made, "to") else made
        self._sets[part] = self._sets[key]
        return self._sets[key]

    def loaders(self, stage: Stage) -> tuple[Loader, Loader]:
        """The training and the test batches of a stage. Without teachers, labelled samples only, in the same order."""
        data = self.setting(stage, "data")
        train, test = self.data_set(data, "train"), self.data_set(data, "test")
        labelled = "target" if hasattr(train, "target") else None
        share = data["unlabelled_per_batch"] if stage.taught else 0
        views = self.config["cache"]["views"] if self._cached(stage) else 0
        common = {"seed": self.seed, "workers": data["workers"], "device": self.device, "collate": _collate(data),
                  "channels_last": self.config["channels_last"]}
        return (Loader(train, data["batch_size"] + share, labelled=labelled, unlabelled_per_batch=share, views=views,
                       length=data["iterations_per_epoch"], rank=self.rank, world=self.world, skip_bad=data["skip_bad"], **common),
                Loader(test, data["test_batch_size"], shuffle=False, drop_last=False, **common))

    def _cached(self, stage: Stage) -> bool:
        return bool(self.config["cache"] and stage.taught)

    def _cache(self, stage: Stage, distiller: Distiller, loader: Loader):
        """What adds the teachers' outputs to a batch: filled once for every sample and view, kept in ``cache/``."""
        views, data = self.config["cache"]["views"], self.setting(stage, "data")
        wanted = {role: distiller._wanted[role] for role in distiller.teachers if distiller._wanted[role]}
        options = {name: {k: v for k, v in self._specs().get(name, {}).items() if k in TEACHER_KEYS[1:]} for name in wanted}
        key = {"teachers": {role: model_hash(distiller.model(role), json.dumps(plain(options[role]))) for role in wanted},
               "data": plain(data["train"]), "samples": len(loader.dataset), "seed": self.seed, "views": views,
               "names": plain(wanted), "amp": self.config["amp"]}
        sweep = Loader(loader.dataset, data["test_batch_size"], seed=self.seed, shuffle=False, drop_last=False, views=views,
                       workers=data["workers"], device=self.device, collate=_collate(data), channels_last=self.config["channels_last"])
        first = next(iter(sweep.epoch(0)))
        key["first_batch"] = hashlib.sha256(first["input"].float().cpu().contiguous().numpy().tobytes()).hexdigest()
        folder = self.work_dir / "cache" / f"{stage.name}_{hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]}"

        def outputs(batch: dict) -> dict[str, torch.Tensor]:
            with torch.autocast(self.device.type, getattr(torch, self.config["amp"] or "float32"), enabled=bool(self.config["amp"])):
                found = {}
                for role, names in wanted.items():
                    given = distiller.outputs(role, batch, names)
                    found |= {name: given[name] for name in names}
            return found

        cache = TeacherCache.open(folder, key)
        if cache is None and self.rank == 0:
            distiller.eval()
            with torch.no_grad():
                cache = TeacherCache.write(folder, key, len(loader.dataset), views, (b for v in range(views) for b in sweep.epoch(v)), outputs)
        if self.world > 1:
            torch.distributed.barrier()
        cache = cache or TeacherCache.open(folder, key)
        cache.to(self.device)
        return lambda batch: {**batch, **cache.fetch(batch["index"], batch["view"], self.device)}

    # Running ---------------------------------------------------------------------------------------------------------
    def check(self) -> None:
        """Build every stage on one real batch, so that what is wrong is said before the first step.

        Raises:
            ConfigError, ValueError, FileNotFoundError, RuntimeError: what is wrong, and where.
        """
        for stage in sorted(self.stages, key=lambda s: not s.taught):            # where all names are known, first
            loader, _ = self.loaders(stage)
            distiller = self.distiller(stage, weights=False)
            batch = next(iter(loader.epoch(0)))
            try:
                distiller.build(batch)
            except ValueError as error:
                raise ConfigError(f"stage {stage.name!r}: {error}") from error
            _check_schedule(self.setting(stage, "schedule"))

    def train(self, resume: bool = False, only: list[str] | None = None) -> dict:
        """Run the stages that are not done yet, and write results.json, student.pth and report.html.

        Args:
            resume: go on in a work_dir of the same config; in an empty one, start.
            only: names of the stages to run; others are left.

        Returns:
            The content of results.json.
        """
        unknown = [name for name in only or [] if name not in [s.name for s in self.stages]]
        if unknown:
            raise ConfigError(f"no stage is called {unknown[0]!r}; {did_you_mean(unknown[0], [s.name for s in self.stages])}")
        self.check()
        if self.rank == 0:
            self._open_work_dir(resume)
        if self.world > 1:
            torch.distributed.barrier()
        for stage in self.stages:
            if stage.name not in self.done and (only is None or stage.name in only):
                self._train_stage(stage, resume)
        if self.rank == 0:
            self._finish()
        return self.results

    def _train_stage(self, stage: Stage, resume: bool) -> None:
        from kdtasks.engine.runner import StageRunner

        loader, test_loader = self.loaders(stage)
        distiller = self.distiller(stage)
        distiller.build(next(iter(loader.epoch(0))))
        prepare = self._cache(stage, distiller, loader) if self._cached(stage) else None
        per_epoch, config = len(loader), self.config
        length = iterations(self.setting(stage, "length"), per_epoch, f"{stage.name}.length")
        schedule = self.setting(stage, "schedule")
        spec = self._specs()[stage.model]
        meta = {"kdtasks": kdtasks.__version__, "config": self.name, "stage": stage.name, "seed": self.seed, "model": spec["type"],
                "spec": plain({k: v for k, v in spec.items() if k not in TEACHER_KEYS}),
                "classes": plain(getattr(loader.dataset, "classes", None))}
        with Bar(stage.name, length, self.quiet) as bar:
            runner = StageRunner(
                name=stage.name, folder=self.folder(stage), log_file=self.work_dir / "train.log", distiller=distiller, loader=loader,
                test_loader=test_loader, task=self.task, schedule=schedule if isinstance(schedule, list) else [schedule],
                optimizer=lambda parameters: builder.build(self.setting(stage, "optimizer"), "optimizer", params=parameters),
                train=stage.train, length=length, log_interval=config["log_interval"], keep=stage.keep, prepare=prepare, seed=self.seed,
                val_interval=iterations(config["val_interval"], per_epoch, "val_interval"),
                checkpoint_interval=iterations(config["checkpoint_interval"], per_epoch, "checkpoint_interval"),
                meta=meta, show=bar, options=config, custom_hooks=copy.deepcopy(config["custom_hooks"]),
                tensorboard=self.work_dir / "tensorboard" / stage.name if config["tensorboard"] and self.rank == 0 else None)
            last = self.folder(stage) / "last.pth"
            if resume and last.exists():
                runner.resume_from(last)
            runner.train()
        if self.rank == 0:
            checkpoint.save_json({**self.done, stage.name: {**runner.metrics, "seconds": round(runner.seconds, 3)}},
                                 self.work_dir / "stages" / "done.json")
            checkpoint.save_json(self.results, self.work_dir / "results.json")
        if self.world > 1:
            torch.distributed.barrier()

    def _finish(self) -> None:
        from kdtasks.engine.report import write_report

        finished = [s for s in self.stages if s.name in self.done]
        students = [s for s in finished if s.model == "student" and s.name != "alone"]
        if students:
            state = checkpoint.load(self.folder(students[-1]) / "last.pth")
            checkpoint.save({"meta": state["meta"], "state_dict": state["state_dict"]}, self.work_dir / "student.pth")
        checkpoint.save_json(self.results, self.work_dir / "results.json")
        write_report(self)

    def named_model(self, name: str) -> nn.Module:
        """A fresh model of the config by its name.

        Raises:
            ConfigError: the config has no such model.
        """
        if name not in self._specs():
            raise ConfigError(f"the config has no model {name!r}; {did_you_mean(name, self._specs())}")
        return self.model(name, reserved=TEACHER_KEYS)

    def trained(self, stage_name: str) -> nn.Module:
        """The model that a finished stage trained, in eval, on the device."""
        stage = next(s for s in self.stages if s.name == stage_name)
        model = self.model(stage.model, reserved=TEACHER_KEYS)
        load_weights(model, self.folder(stage) / "last.pth")
        return model.eval().requires_grad_(False)

    def dry_run(self, steps: int = 2) -> list[dict]:
        """Two steps of every stage on random tensors of the right shape.

        Returns:
            A row a stage: ``stage``, ``parameters`` that train, ``teacher_parameters``, ``step_ms`` of the last step,
            ``memory_mb`` (the peak on a GPU; None on a CPU), ``loss``.
        """
        rows = []
        for stage in self.stages:
            data = self.setting(stage, "data")
            share = data["unlabelled_per_batch"] if stage.taught else 0
            batch = self.task.example(self.config, data["batch_size"] + share)
            if share:
                batch["labelled"] = torch.arange(data["batch_size"] + share) < data["batch_size"]
            batch = {k: v.to(self.device) if isinstance(v, torch.Tensor) and k != "labelled" else v for k, v in batch.items()}
            distiller = self.distiller(stage, weights=False)
            shapes = distiller.build(batch)
            optimizer = builder.build(self.setting(stage, "optimizer"), "optimizer", params=[p for p in distiller.parameters() if p.requires_grad])
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            for step in range(steps):
                started = time.perf_counter()
                distiller.progress = (step, steps)
                with torch.autocast(self.device.type, getattr(torch, self.config["amp"] or "float32"), enabled=bool(self.config["amp"])):
                    losses = distiller(batch)
                total = sum(v for k, v in losses.items() if "loss" in k)
                total.backward()
                optimizer.step()
                optimizer.zero_grad()
                value = float(total.detach())
            if not math.isfinite(value):
                raise ConfigError(f"stage {stage.name!r}: the loss is {value} after {steps} steps on random tensors")
            rows.append({"stage": stage.name, "parameters": sum(p.numel() for p in distiller.parameters() if p.requires_grad),
                         "teacher_parameters": sum(p.numel() for t in distiller.teachers.values() for p in t.model.parameters()),
                         "step_ms": 1000 * (time.perf_counter() - started), "loss": value, "shapes": shapes,
                         "memory_mb": torch.cuda.max_memory_allocated() / 2**20 if self.device.type == "cuda" else None})
        return rows


def start_processes(launcher: str, device: str | None) -> None:
    """Join the process group that torchrun describes: nccl on CUDA, gloo on a CPU."""
    if launcher == "none":
        return
    if "RANK" not in os.environ:
        raise ConfigError("--launcher pytorch is for torchrun: torchrun --nproc-per-node 2 tools/train.py CONFIG --launcher pytorch")
    if _device(device) == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if _device(device) == "cuda" else "gloo")


def _device(device: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.split(":")[0] == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda, but torch sees no CUDA device here; use --device cpu")
    return device


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)                                           # checkpoints are replaced, never written into
    except OSError:                                                       # another disk, or one without links
        shutil.copyfile(source, target)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"


def _task(path: str):
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise ConfigError(f"task={path!r} cannot be imported: {error}") from error
    missing = [name for name in TASK_NAMES if not hasattr(module, name)]
    if missing:
        raise ConfigError(f"task={path!r} is no trainer module: it lacks {missing}")
    return module


def _collate(data: Mapping):
    return builder.resolve(data["collate"], "data.collate") if data["collate"] else None


def _check_schedule(schedule) -> None:
    import mmengine.optim  # noqa: F401  (registers the schedulers)
    from mmengine.registry import PARAM_SCHEDULERS

    for entry in schedule if isinstance(schedule, list) else [schedule]:
        if not isinstance(entry, Mapping) or "type" not in entry:
            raise ConfigError(f"schedule must be a dict(type='MultiStepLR', …) or a list of them, got {entry!r}")
        kind = PARAM_SCHEDULERS.get(entry["type"]) if isinstance(entry["type"], str) else entry["type"]
        if kind is None:
            raise ConfigError(f"schedule.type={entry['type']!r}: {did_you_mean(entry['type'], PARAM_SCHEDULERS.module_dict)}")
