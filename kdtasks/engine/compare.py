"""What a teacher brings: each config over several seeds, every run paired with its control of the same seed.

A comparison is a list of jobs, each one run in a folder of its own. What several configs or seeds have in common (a
teacher, the control "alone" with the stages that lead to it) is one job in ``shared/<stage>_<hash>/seed<N>``: the hash is of
all that matters to these stages, so equal ones meet in one folder. A config's own job, ``<config>_<hash>/seed<N>``, takes
them over and trains the rest; it is an ordinary run. Jobs that have finished are not repeated, and one that was stopped goes
on.
"""

import argparse
import hashlib
import json
import math
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kdtasks.core.stages import Stage, final_stage
from kdtasks.engine import checkpoint
from kdtasks.engine import config as configurations
from kdtasks.engine.builder import ConfigError
from kdtasks.engine.check import check
from kdtasks.engine.cli import common_arguments, config_names, pipe_may_close, plain_errors
from kdtasks.engine.run import Run
from kdtasks.engine.show import print_table

CONFIDENCE = 0.95
MIN_SEEDS = 3                                                # for a verdict: two differences say too little of their spread
TEACHER_SEED = 0                                             # of the one teacher that all seeds share
OWN_KEYS = ("name", "model", "arguments", "student", "losses", "train", "keep")  # of a stage that stands alone in its config


# Numbers ---------------------------------------------------------------------------------------------------------------
def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float | None, float | None]:
    r"""Mean and Student's interval: :math:`\bar d \pm t_{n-1}\, s / \sqrt n`.

    Args:
        values: n independent numbers, here the paired differences.
        confidence: of the interval, in (0, 1).

    Returns:
        ``(mean, low, high)``; low and high are None for fewer than two values.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None, None
    from scipy.stats import t  # slow to import

    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def verdict(differences: Sequence[float], higher_is_better: bool) -> tuple[str | None, str]:
    """``('better' | 'worse' | 'no difference shown' | None, why)``: whether the interval of the differences excludes 0."""
    if len(differences) < MIN_SEEDS:
        return None, f"no verdict: {len(differences)} of at least {MIN_SEEDS} seeds"
    if not all(map(math.isfinite, differences)):
        return None, "no verdict: a difference is not finite"
    _, low, high = interval(differences)
    where = f"the {CONFIDENCE:.0%} interval [{low:+.3g}, {high:+.3g}]"
    if low <= 0 <= high:
        return "no difference shown", f"{where} contains 0"
    return ("better" if (low > 0) == higher_is_better else "worse"), f"{where} excludes 0"


# Jobs ------------------------------------------------------------------------------------------------------------------
@dataclass(eq=False)
class Job:
    """One run in a folder of its own.

    Args:
        name: what the screen and the results call it: a config, or a stage that configs share.
        config, folder, seed: of the run.
        stages: the names of all its stages.
        given: stages that are taken over from other jobs.
        used_by: the configs that it counts for.
        shared: whether it is one stage on its own, with those that lead to it, which several configs or seeds may use.
    """

    name: str
    config: dict
    folder: Path
    seed: int
    stages: list[str]
    given: dict[str, "Job"] = field(default_factory=dict)
    used_by: list[str] = field(default_factory=list)
    shared: bool = False

    @property
    def results(self) -> dict | None:
        """The content of results.json; None while the run has not finished."""
        path = self.folder / "results.json"
        if not path.exists() or not (self.shared or (self.folder / "student.pth").exists()):
            return None
        results = json.loads(path.read_text())
        return results if all(stage in results["stages"] for stage in self.stages) else None

    def finish(self, device: str | None, quiet: bool) -> None:
        """Train what is not trained yet."""
        run = Run(self.config, self.folder, self.seed, device, self.name, quiet)
        run.open(resume=True)
        for stage, other in self.given.items():
            if stage not in run.done:
                run.files.adopt(stage, other.folder / "stages" / f"{other.stages.index(stage)}_{stage}")
        run.train(resume=True)


class Arm:
    """One config of a comparison.

    Attributes:
        final: the stage whose student is compared.
        teachers: the stages that train a teacher; none where checkpoints are given.
        shared: ``{stage: (its config on its own, the stages that lead to it and itself)}`` of those that no teacher led to:
            teachers, the control, and what else trains a student from fresh weights and is gone on with by none (``joint``).
        jobs: ``{seed: the config's own run}``.
        controls: ``{seed: the run that has the stage "alone"}``.
    """

    def __init__(self, name: str, config: Mapping, device: str | None):
        self.name, self.run = name, Run(config, "unused", 0, device, name, quiet=True)
        stages = {stage.name: stage for stage in self.run.stages}
        final = final_stage(self.run.stages)
        if final is None or "alone" not in stages:
            raise ConfigError(f"{name}: there must be a stage 'alone' and another that trains the student, to compare them; "
                              f"there are {list(stages)}")
        self.final = final.name
        chains = {name: self.run.chain(stage) for name, stage in stages.items()}
        chains = {name: chain for name, chain in chains.items()
                  if not any(s.taught or self.run.unlabelled(s) for s in chain)}
        self.teachers = [name for name, chain in chains.items() if stages[name].model != "student" and len(chain) == 1]
        ends = {name for name, chain in chains.items() if len(chain) == 1} - {self.run.source(s) for s in stages.values()}
        self.shared = {name: (on_its_own(self.run, chain), [stage.name for stage in chain]) for name, chain in chains.items()
                       if name in self.teachers or name == "alone" or name in ends}
        self.jobs: dict[int, Job] = {}
        self.controls: dict[int, Job] = {}

    def plan(self, seed: int, work_dir: Path, teacher_per_seed: bool, jobs: dict[Path, Job]) -> None:
        """Add the jobs of one seed that are not planned yet."""
        needs = {}
        for stage, (config, chain) in self.shared.items():
            its_seed = TEACHER_SEED if stage in self.teachers and not teacher_per_seed else seed
            folder = work_dir / "shared" / f"{stage}_{_hash(config)}" / f"seed{its_seed}"
            needs[stage] = jobs.setdefault(folder, Job(stage, config, folder, its_seed, chain, shared=True))
            if self.name not in needs[stage].used_by:
                needs[stage].used_by.append(self.name)
        names, config = [stage.name for stage in self.run.stages], self.run.config
        folder = work_dir / f"{self.name}_{_hash([config, bool(self.teachers) and teacher_per_seed])}" / f"seed{seed}"
        given = {stage: job for job in needs.values() for stage in job.stages if stage in names}
        self.jobs[seed] = jobs[folder] = Job(self.name, config, folder, seed, names, given, [self.name])
        self.controls[seed] = needs.get("alone", self.jobs[seed])


def on_its_own(run: Run, chain: Sequence[Stage]) -> dict:
    """A config of the last of these stages and of those that lead to it, without all that cannot matter to them.

    Equal ones train equal weights. Without teachers, neither these matter, nor other models, nor unlabelled samples.
    """
    config, stage = run.config, chain[-1]
    if len(chain) > 1:
        own = [{**{key: getattr(s, key) for key in OWN_KEYS}, "student": run.source(s) or s.student,
                "optimizer_state": s.optimizer_state, **_settings(run, s)} for s in chain]
        return {**config, **_settings(run, stage), "teachers": {}, "models": {}, "peers": [], "teacher_training": {},
                "cache": None, "losses": stage.losses, "stages": own}
    spec = {"student": config["student"], **config["teachers"], **config["models"]}[stage.model]
    if stage.name == "alone" and stage.model == "student":
        spec = {**spec, **config["control"]}
    if stage.model != "student":                                        # how it teaches later does not matter here
        spec = {k: v for k, v in spec.items() if k not in configurations.TEACHER_KEYS}
    teachers = {} if stage.model == "student" else {stage.model: spec}
    return {**config, **_settings(run, stage), "student": spec, "teachers": teachers, "control": {},
            "models": {}, "peers": [], "teacher_training": {}, "cache": None, "losses": stage.losses,
            "stages": [{key: getattr(stage, key) for key in OWN_KEYS}]}


def _settings(run: Run, stage: Stage) -> dict:
    settings = {key: run.setting(stage, key) for key in configurations.TRAINING_KEYS}
    return {**settings, "data": {**settings["data"], "unlabelled_per_batch": 0}}


def plan(configs: Mapping[str, Mapping], seeds: Sequence[int], work_dir: Path, device: str | None = None,
         teacher_per_seed: bool = False) -> tuple[list[Arm], list[Job]]:
    """The arms, and all jobs in the order in which they run: seed by seed, what is shared before those that share it.

    Raises:
        ConfigError: seeds or configs that cannot be compared.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"expected different seeds, got {list(seeds)}")
    arms = [Arm(name, config, device) for name, config in configs.items()]
    metrics = {arm.run.task.PRIMARY: arm.name for arm in arms}
    if len(metrics) > 1:
        raise ConfigError("the configs measure different things: " + ", ".join(f"{n} {m}" for m, n in metrics.items()))
    jobs: dict[Path, Job] = {}
    for seed in seeds:
        for arm in arms:
            arm.plan(seed, work_dir, teacher_per_seed, jobs)
    return arms, list(jobs.values())


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(configurations.plain(value), sort_keys=True, default=str).encode()).hexdigest()[:10]


# A comparison ----------------------------------------------------------------------------------------------------------
def compare(configs: Mapping[str, Mapping], seeds: Sequence[int], work_dir: str | Path = "work_dirs",
            device: str | None = None, teacher_per_seed: bool = False, quiet: bool = False) -> dict:
    """Train every config for every seed beside its control, and write ``compare.json`` and ``compare.png``.

    Args:
        configs: ``{name: config}``, each from :func:`kdtasks.engine.config.load`.
        seeds: of students, order and views; at least three for a verdict.
        work_dir: where the runs are; one comparison at a time may use it.
        device: ``'cpu'``, ``'cuda'``; None: CUDA where there is one.
        teacher_per_seed: train a teacher for each seed; else the teacher of seed 0 serves all.
        quiet: no progress.

    Returns:
        The content of ``compare.json``.

    Raises:
        ConfigError: what cannot be compared, or what is wrong in a config; before the first step of any.
    """
    work_dir = Path(work_dir)
    arms, jobs = plan(configs, seeds, work_dir, device, teacher_per_seed)
    todo = [job for job in jobs if job.results is None]
    for arm in arms:
        if any(job in todo for job in arm.jobs.values()):
            check(arm.run)
            arm.run._sets.clear()                                       # the data is read again by the runs that need it
    for k, job in enumerate(todo):
        if not quiet:
            users = f" for {', '.join(job.used_by)}" if job.shared else ""
            print(f"[{k + 1}/{len(todo)}] {job.name}{users}, seed {job.seed}: {job.folder}", file=sys.stderr, flush=True)
        job.finish(device, quiet)
    result = _collect(arms, jobs, list(seeds), work_dir, teacher_per_seed)
    checkpoint.save_json(result, work_dir / "compare.json")
    checkpoint.write_atomically(work_dir / "compare.png", lambda path: plot(result, path))
    return result


def _collect(arms: Sequence[Arm], jobs: Sequence[Job], seeds: list[int], work_dir: Path, teacher_per_seed: bool) -> dict:
    task, shared = arms[0].run.task, {}
    for job in jobs:
        if job.shared:
            folder = str(job.folder.parent.relative_to(work_dir))
            new = {"folder": folder, "stage": job.name, "configs": job.used_by, "seeds": [], "seconds": []}
            entry = shared.setdefault(folder, new)
            entry["seeds"].append(job.seed)
            entry["seconds"].append(sum(job.results["stages"][stage]["seconds"] for stage in job.stages))
    return {"primary": task.PRIMARY, "higher_is_better": task.HIGHER_IS_BETTER, "confidence": CONFIDENCE, "seeds": seeds,
            "devices": sorted({job.results["device"] for job in jobs}),
            "configs": {arm.name: _row(arm, seeds, task, work_dir, teacher_per_seed) for arm in arms},
            "shared": list(shared.values()), "notes": _notes(arms, list(shared.values()), seeds, teacher_per_seed)}


def _row(arm: Arm, seeds: list[int], task, work_dir: Path, teacher_per_seed: bool) -> dict:
    own = [arm.jobs[seed].results["stages"] for seed in seeds]
    alone_results, taught = [arm.controls[s].results["stages"]["alone"] for s in seeds], [stages[arm.final] for stages in own]
    alone, distilled = [values[task.PRIMARY] for values in alone_results], [values[task.PRIMARY] for values in taught]
    differences = [b - a for a, b in zip(alone, distilled)]
    mean, low, high = interval(differences)
    word, why = verdict(differences, task.HIGHER_IS_BETTER)
    teachers = {name: [stages[name][task.PRIMARY] for stages in own[:None if teacher_per_seed else 1]] for name in arm.teachers}
    given = {name: spec["checkpoint"] for name, spec in arm.run.config["teachers"].items() if spec.get("checkpoint")}
    seconds = [sum(values["seconds"] for stage, values in stages.items() if stage not in arm.jobs[seed].given)
               for seed, stages in zip(seeds, own)]
    return {"stage": arm.final, "teachers": {**given, **teachers}, "alone": alone, "distilled": distilled,
            "differences": differences, "mean": mean, "low": low, "high": high, "verdict": word, "why": why,
            "metrics": _metrics(alone_results, taught), "seconds": seconds,
            "folders": [str(arm.jobs[seed].folder.relative_to(work_dir)) for seed in seeds],
            "controls": [str(arm.controls[seed].folder.relative_to(work_dir)) for seed in seeds]}


def _metrics(alone: Sequence[Mapping], distilled: Sequence[Mapping]) -> dict[str, dict]:
    """``{metric: alone, distilled, mean difference and its interval}`` of every number that all of these results have."""
    found = {}
    for name in alone[0]:
        a, b = ([values.get(name) for values in results] for results in (alone, distilled))
        if name not in ("seconds", "cost") and all(isinstance(value, int | float) for value in [*a, *b]):
            mean, low, high = interval([y - x for x, y in zip(a, b)])
            found[name] = {"alone": a, "distilled": b, "mean": mean, "low": low, "high": high}
    return found


def _notes(arms: Sequence[Arm], shared: list[dict], seeds: list[int], teacher_per_seed: bool) -> list[str]:
    notes = [f"difference = distilled - alone of the same seed; its {CONFIDENCE:.0%} interval is Student's t on the "
             f"{len(seeds)} paired differences" + (", not corrected for the number of configs" if len(arms) > 1 else "")]
    if any(entry["stage"] == "alone" and len(entry["configs"]) > 1 for entry in shared):
        notes.append("configs that share their control are not independent: a control that was unlucky in one seed raises "
                     "all of them, so two such configs are not ranked by their intervals here")
    if any(arm.teachers for arm in arms) and not teacher_per_seed and len(seeds) > 1:
        notes.append(f"one teacher (seed {TEACHER_SEED}) serves all seeds: the intervals hold for this teacher, and say "
                     "nothing of another (--teacher-per-seed does)")
    return notes


# Showing ---------------------------------------------------------------------------------------------------------------
def show(result: Mapping, console: Console | None = None) -> None:
    """One row a config; then what was shared, and every number."""
    out = Table(title=f"{result['primary']}, {'higher' if result['higher_is_better'] else 'lower'} is better; "
                      f"{', '.join(result['devices'])}")
    out.add_column("config")
    for title in ("seeds", "teacher", "alone", "distilled", f"difference [{result['confidence']:.0%}]", "verdict", "s per run"):
        out.add_column(title, justify="right")
    for name, row in result["configs"].items():
        out.add_row(name, str(len(result["seeds"])), _teachers(row), _spread(row["alone"]), _spread(row["distilled"]),
                    _difference(row), row["verdict"] or row["why"], f"{statistics.fmean(row['seconds']):.3g}")
    print_table(out, 1, console)
    every = Table(title="every number")
    for title in ("config", "seed", "alone", "distilled", "difference"):
        every.add_column(title, justify="left" if title == "config" else "right")
    for name, row in result["configs"].items():
        for seed, a, b, d in zip(result["seeds"], row["alone"], row["distilled"], row["differences"]):
            every.add_row(name, str(seed), f"{a:.3f}", f"{b:.3f}", f"{d:+.3f}")
    print_table(every, 2, console)
    further = Table(title="further metrics")
    for title in ("config", "metric", "alone", "distilled", f"difference [{result['confidence']:.0%}]"):
        further.add_column(title, justify="left" if title in ("config", "metric") else "right")
    for name, row in result["configs"].items():
        for metric, found in row["metrics"].items():
            if metric != result["primary"] and not re.search(r"_on_\d+$", metric):         # those are in the JSON
                further.add_row(name, metric, _spread(found["alone"]), _spread(found["distilled"]), _difference(found))
    if further.row_count:
        print_table(further, 2, console)
    file = console.file if console else sys.stdout
    for entry in result["shared"]:
        seeds, users = " ".join(map(str, entry["seeds"])), ", ".join(entry["configs"])
        print(f"{entry['stage']}, seed {seeds}: trained once, for {users} ({entry['folder']})", file=file)
    for note in result["notes"]:
        print(f"note: {note}", file=file)


def _teachers(row: Mapping) -> str:
    return ", ".join(Path(t).name if isinstance(t, str) else _spread(t) for t in row["teachers"].values()) or "none"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def _difference(row: Mapping) -> str:
    return f"{row['mean']:+.2f}" + (f" [{row['low']:+.2f}, {row['high']:+.2f}]" if row["low"] is not None else "")


def plot(result: Mapping, path: str | Path) -> None:
    """A PNG: for each config a line a seed from alone to distilled; below them the mean difference and its interval."""
    import matplotlib.style  # slow to import; pyplot's global state is not touched
    from matplotlib.figure import Figure

    from kdtasks.engine.report import ALONE, DISTILLED, STYLE

    seeds, configs = result["seeds"], result["configs"]
    block = len(seeds) + 2
    with matplotlib.style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(9, 1.1 + 0.24 * block * len(configs)))
        axes = figure.add_subplot()
        labels = {}
        for k, (name, row) in enumerate(configs.items()):
            rows = [k * block + i for i in range(len(seeds))]
            bottom, control = k * block + len(seeds) + 0.2, statistics.fmean(row["alone"])
            axes.hlines(rows, row["alone"], row["distilled"], color="#AEB7C4", linewidth=1.2, zorder=1)
            axes.plot(row["alone"], rows, "o", color=ALONE, markerfacecolor="white", markersize=5, label=None if k else "alone")
            axes.plot(row["distilled"], rows, "o", color=DISTILLED, markersize=5, label=None if k else "distilled")
            axes.vlines(control, k * block - 0.4, bottom + 0.5, color=ALONE, linestyle=(0, (3, 2)), linewidth=1.2,
                        label=None if k else "mean of alone")
            if row["low"] is not None:
                axes.plot([control + row["low"], control + row["high"]], [bottom] * 2, color=DISTILLED, linewidth=4, alpha=0.35,
                          solid_capstyle="butt", label=None if k else f"mean difference, {result['confidence']:.0%} interval")
            axes.plot([control + row["mean"]], [bottom], "D", color=DISTILLED, markersize=7)
            axes.annotate(f"{_difference(row)}\n{row['verdict'] or row['why']}", (1.01, bottom), va="center", fontsize=9,
                          xycoords=("axes fraction", "data"), annotation_clip=False)
            labels |= {y: f"seed {seed}" for y, seed in zip(rows, seeds)} | {bottom: name}
        axes.set_yticks(list(labels), labels.values())
        for label in axes.get_yticklabels():
            label.set(**{"fontsize": 8} if label.get_text().startswith("seed ") else {"fontweight": "bold"})
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(block * len(configs) - 0.6, -1)
        axes.set_xlabel(f"{result['primary']} ({'higher' if result['higher_is_better'] else 'lower'} is better)")
        figure.legend(loc="outside upper center", ncols=4)
        figure.savefig(path, format="png", dpi=150)


@pipe_may_close()
def main(arguments: Sequence[str] | None = None) -> None:
    """tools/compare.py."""
    parser = argparse.ArgumentParser(prog="compare.py", description="Train configs over seeds, each beside its control (the "
                                     "same student without the teacher), and say what the teacher brought.")
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="N", help="default: 0 1 2 3 4")
    parser.add_argument("--teacher-per-seed", action="store_true", help="a teacher for each seed; default: seed 0's for all")
    parser.add_argument("--work-dir", default="work_dirs", help="where the runs, compare.json and compare.png go; runs "
                        "that are there already are used (default: %(default)s)")
    common_arguments(parser)
    args = parser.parse_args(arguments)
    with plain_errors():
        names = config_names(args.configs)
        configs = {name: configurations.load(path, dict(args.cfg_options)) for name, path in zip(names, args.configs)}
        show(compare(configs, args.seeds, args.work_dir, args.device, args.teacher_per_seed))
        print(f"{args.work_dir}: compare.json compare.png")
