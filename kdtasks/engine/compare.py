"""What a teacher brings: each config over several seeds, every run paired with its control of the same seed.

A comparison is a list of jobs, each one run in a folder of its own. What several configs or seeds have in common (a
teacher, the control "alone") is one job in ``shared/<stage>_<hash>/seed<N>``: the hash is of all that matters to the
stage, so equal stages meet in one folder. A config's own job, ``<config>_<hash>/seed<N>``, takes these stages over and
trains the rest; it is an ordinary run. Jobs that have finished are not repeated, and one that was stopped goes on.
"""

import argparse
import hashlib
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kdtasks.core.stages import Stage, control, stage_reference
from kdtasks.engine import checkpoint
from kdtasks.engine import config as configurations
from kdtasks.engine.builder import ConfigError
from kdtasks.engine.cli import _plain_errors, common_arguments, config_name
from kdtasks.engine.run import Run

CONFIDENCE = 0.95
MIN_SEEDS = 3                                                # for a verdict: two differences say too little of their spread
TEACHER_SEED = 0                                             # of the one teacher that all seeds share
OWN_KEYS = ("name", "model", "student", "losses", "train", "keep")       # of a stage that stands alone in its config


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
    from scipy.stats import t                                           # slow to import

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
@dataclass
class Job:
    """One run in a folder of its own.

    Args:
        title: what the screen and the run's results call it.
        config, folder, seed: of the run.
        stages: the names of all its stages.
        given: stages that are taken over from another job.
        used_by: names of the configs that it counts for.
    """

    title: str
    config: dict
    folder: Path
    seed: int
    stages: list[str]
    given: dict[str, "Job"] = field(default_factory=dict)
    used_by: list[str] = field(default_factory=list)

    @property
    def results(self) -> dict | None:
        """The content of results.json; None when the run has not finished."""
        path = self.folder / "results.json"
        results = json.loads(path.read_text()) if path.exists() else {"stages": {}}
        complete = all(stage in results["stages"] for stage in self.stages)
        return results if complete and (not self.given or (self.folder / "student.pth").exists()) else None

    def run(self, device: str | None, quiet: bool) -> Run:
        return Run(self.config, self.folder, self.seed, device, self.title, quiet)

    def finish(self, device: str | None, quiet: bool) -> None:
        """Train what is not trained yet."""
        run = self.run(device, quiet)
        for stage, other in self.given.items():
            if stage not in run.done:
                run.adopt(stage, other.folder / "stages" / f"0_{stage}")
        run.train(resume=True)


@dataclass
class Arm:
    """One config of a comparison.

    Args:
        name: of the config.
        final: the stage whose student is compared.
        teachers: the stages that train a teacher; ``{}`` where checkpoints are given.
        jobs: ``{seed: the config's own run}``.
        controls: ``{seed: the run with its stage "alone"}``, the own run where it cannot be shared.
    """

    name: str
    run: Run
    final: str
    teachers: list[str] = field(default_factory=list)
    jobs: dict[int, Job] = field(default_factory=dict)
    controls: dict[int, Job] = field(default_factory=dict)


def on_its_own(run: Run, stage: Stage) -> dict:
    """A config of this stage alone, without all that cannot matter to it: equal ones train equal weights.

    A stage without teachers sees neither their settings, nor other models, nor unlabelled samples.
    """
    config = run.config
    models = {"student": config["student"], **config["models"], **config["teachers"]}
    spec = models[stage.model]
    if stage.model != "student":                                        # how it teaches later does not matter here
        spec = {k: v for k, v in spec.items() if k not in configurations.TEACHER_KEYS}
    settings = {key: run.setting(stage, key) for key in configurations.TRAINING_KEYS}
    settings["data"] = {**settings["data"], "unlabelled_per_batch": 0}
    return {**config, **settings, "student": spec, "teachers": {} if stage.model == "student" else {stage.model: spec},
            "models": {}, "peers": [], "teacher_training": {}, "cache": None, "losses": stage.losses,
            "stages": [{key: getattr(stage, key) for key in OWN_KEYS}]}


def plan(configs: Mapping[str, Mapping], seeds: Sequence[int], work_dir: Path, device: str | None = None,
         teacher_per_seed: bool = False) -> tuple[list[Arm], list[Job]]:
    """The arms, and all jobs in the order in which they run: seed by seed, what is shared before those that share it.

    Raises:
        ConfigError: seeds or configs that cannot be compared.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"want different seeds, got {list(seeds)}")
    jobs: dict[Path, Job] = {}
    arms = []
    for name, config in configs.items():
        run = Run(config, "unused", 0, device, name, quiet=True)
        final = _final(run)
        arms.append(Arm(name, run, final.name))
    metrics = {arm.run.task.PRIMARY: arm.name for arm in arms}
    if len(metrics) > 1:
        raise ConfigError("the configs measure different things: " + ", ".join(f"{n} {m}" for m, n in metrics.items()))
    for seed in seeds:
        for arm in arms:
            _plan_arm(arm, seed, work_dir, teacher_per_seed, jobs)
    return arms, list(jobs.values())


def _plan_arm(arm: Arm, seed: int, work_dir: Path, teacher_per_seed: bool, jobs: dict[Path, Job]) -> None:
    run = arm.run
    names = [stage.name for stage in run.stages]
    alone = next((s for s in run.stages if s.name == "alone"), None) or _control(run, arm.final)
    arm.teachers = [s.name for s in run.stages if s.model != "student" and _independent(s, names)]
    given = {}
    for stage in [s for s in (*run.stages, *([alone] if "alone" not in names else []))
                  if s.name in arm.teachers or (s.name == "alone" and _independent(s, names))]:
        own, its_seed = on_its_own(run, stage), TEACHER_SEED if stage.name in arm.teachers and not teacher_per_seed else seed
        folder = work_dir / "shared" / f"{stage.name}_{_hash(own)}" / f"seed{its_seed}"
        job = jobs.setdefault(folder, Job(stage.name, own, folder, its_seed, [stage.name]))
        job.used_by += [arm.name] if arm.name not in job.used_by else []
        given[stage.name] = job
    arm.controls[seed] = given["alone"] if "alone" not in names else given.get("alone")
    folder = work_dir / f"{arm.name}_{_hash([run.config, bool(arm.teachers) and teacher_per_seed])}" / f"seed{seed}"
    given = {stage: job for stage, job in given.items() if stage in names}
    arm.jobs[seed] = jobs[folder] = Job(arm.name, run.config, folder, seed, names, given, [arm.name])
    arm.controls[seed] = arm.controls[seed] or arm.jobs[seed]


def _final(run: Run) -> Stage:
    """The stage whose student a run is about: ``distilled``, else the last one that trains the student with help."""
    students = [s for s in run.stages if s.model == "student" and s.name != "alone"]
    if not students:
        raise ConfigError(f"{run.name}: no stage but 'alone' trains the student, so there is nothing to compare with it")
    return next((s for s in students if s.name == "distilled"), students[-1])


def _control(run: Run, final: str) -> Stage:
    """The stage "alone" of a list of stages that has none: the last stage's budget, without its teachers."""
    final = next(s for s in run.stages if s.name == final)
    probe = run.distiller(final, weights=False)
    supplied = {name for teacher in probe.teachers for name in probe.names(teacher)}
    try:
        losses = control(final.losses, {**run.config["teachers"], **final.teachers}, supplied.__contains__)
    except ValueError as error:
        raise ConfigError(f"{run.name}: {error}") from error
    return Stage("alone", losses=losses, **{key: getattr(final, key) for key in configurations.TRAINING_KEYS})


def _independent(stage: Stage, names: Sequence[str]) -> bool:
    """Whether a stage needs no other: nobody teaches it, and it starts from fresh weights or a file."""
    return not stage.taught and stage.student != "keep" and stage_reference(stage.student, names) is None


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(configurations.plain(value), sort_keys=True, default=str).encode()).hexdigest()[:10]


# A comparison ----------------------------------------------------------------------------------------------------------
def compare(configs: Mapping[str, Mapping], seeds: Sequence[int], work_dir: str | Path = "work_dirs/compare",
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
            arm.run.check()
            arm.run._sets.clear()                                       # the data is read again by the runs that need it
    for k, job in enumerate(todo):
        if not quiet:
            users = f" (for {', '.join(job.used_by)})" if job.title not in job.used_by else ""
            print(f"[{k + 1}/{len(todo)}] {job.title}, seed {job.seed}{users}: {job.folder}", file=sys.stderr, flush=True)
        job.finish(device, quiet)
    result = _collect(arms, jobs, list(seeds), work_dir, teacher_per_seed)
    checkpoint.save_json(result, work_dir / "compare.json")
    checkpoint.write_atomically(work_dir / "compare.png", lambda path: plot(result, path))
    return result


def _collect(arms: Sequence[Arm], jobs: Sequence[Job], seeds: list[int], work_dir: Path, teacher_per_seed: bool) -> dict:
    task = arms[0].run.task
    shared = {}
    for job in jobs:
        if job.stages != [job.title] or job.folder.parent.parent.name != "shared":
            continue
        folder = str(job.folder.parent.relative_to(work_dir))
        entry = shared.setdefault(folder, {"folder": folder, "stage": job.title, "seeds": [], "configs": job.used_by})
        entry["seeds"].append(job.seed)
    return {"primary": task.PRIMARY, "higher_is_better": task.HIGHER_IS_BETTER, "confidence": CONFIDENCE, "seeds": seeds,
            "devices": sorted({job.results["device"] for job in jobs}),
            "configs": {arm.name: _row(arm, seeds, task, work_dir) for arm in arms},
            "shared": list(shared.values()), "notes": _notes(arms, list(shared.values()), seeds, teacher_per_seed)}


def _row(arm: Arm, seeds: list[int], task, work_dir: Path) -> dict:
    own = [arm.jobs[seed].results["stages"] for seed in seeds]
    alone = [arm.controls[seed].results["stages"]["alone"][task.PRIMARY] for seed in seeds]
    distilled = [stages[arm.final][task.PRIMARY] for stages in own]
    differences = [b - a for a, b in zip(alone, distilled)]
    mean, low, high = interval(differences)
    word, why = verdict(differences, task.HIGHER_IS_BETTER)
    teachers = {name: [stages[name][task.PRIMARY] for stages in own] for name in arm.teachers}
    given = {name: spec["checkpoint"] for name, spec in arm.run.config["teachers"].items() if spec.get("checkpoint")}
    seconds = [sum(values["seconds"] for stage, values in stages.items() if stage not in arm.jobs[seed].given)
               for seed, stages in zip(seeds, own)]
    return {"stage": arm.final, "teachers": {**given, **teachers}, "alone": alone, "distilled": distilled,
            "differences": differences, "mean": mean, "low": low, "high": high, "verdict": word, "why": why,
            "seconds": seconds, "folders": [str(arm.jobs[seed].folder.relative_to(work_dir)) for seed in seeds],
            "controls": [str(arm.controls[seed].folder.relative_to(work_dir)) for seed in seeds]}


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
    console = console or Console(width=None if sys.stdout.isatty() else 160)
    out = Table(title=f"{result['primary']}, {'higher' if result['higher_is_better'] else 'lower'} is better; "
                      f"{', '.join(result['devices'])}")
    out.add_column("config")
    for title in ("seeds", "teacher", "alone", "distilled", f"difference [{result['confidence']:.0%}]", "verdict", "s per run"):
        out.add_column(title, justify="right")
    for name, row in result["configs"].items():
        out.add_row(name, str(len(result["seeds"])), _teachers(row), _spread(row["alone"]), _spread(row["distilled"]),
                    _difference(row), row["verdict"] or row["why"], f"{statistics.fmean(row['seconds']):.0f}")
    console.print(out)
    every = Table(title="every number")
    for title in ("config", "seed", "alone", "distilled", "difference"):
        every.add_column(title, justify="left" if title == "config" else "right")
    for name, row in result["configs"].items():
        for seed, a, b, d in zip(result["seeds"], row["alone"], row["distilled"], row["differences"]):
            every.add_row(name, str(seed), f"{a:.3f}", f"{b:.3f}", f"{d:+.3f}")
    console.print(every)
    for entry in result["shared"]:
        seeds = " ".join(map(str, entry["seeds"]))
        print(f"{entry['stage']}, seed {seeds}: trained once for {', '.join(entry['configs'])} ({entry['folder']})", file=console.file)
    for note in result["notes"]:
        print(f"note: {note}", file=console.file)


def _teachers(row: Mapping) -> str:
    return ", ".join(Path(v).name if isinstance(v, str) else _spread(sorted(set(v))) for v in row["teachers"].values()) or "none"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def _difference(row: Mapping) -> str:
    return f"{row['mean']:+.2f}" + (f" [{row['low']:+.2f}, {row['high']:+.2f}]" if row["low"] is not None else "")


def plot(result: Mapping, path: str | Path) -> None:
    """A PNG: for each config a line a seed from alone to distilled; below them the means, with the interval of the difference."""
    import matplotlib.style                                             # slow to import; pyplot's global state is not touched
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
                          solid_capstyle="butt", label=None if k else f"mean difference and its {result['confidence']:.0%} interval")
            axes.plot([control + row["mean"]], [bottom], "D", color=DISTILLED, markersize=7)
            axes.annotate(f"{_difference(row)}\n{row['verdict'] or row['why']}", (1.01, bottom - 0.5), va="center", fontsize=9,
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


def main(arguments: Sequence[str] | None = None) -> None:
    """tools/compare.py."""
    parser = argparse.ArgumentParser(prog="compare.py", description="Train configs over seeds, each beside its control (the "
                                     "same student without the teacher), and say what the teacher brought.")
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="N", help="default: 0 1 2 3 4")
    parser.add_argument("--teacher-per-seed", action="store_true", help="train a teacher for each seed; default: seed 0's for all")
    parser.add_argument("--work-dir", default="work_dirs/compare", help="where the runs, compare.json and compare.png go; runs "
                        "that are there already are used (default: %(default)s)")
    common_arguments(parser)
    args = parser.parse_args(arguments)
    with _plain_errors():
        names = [config_name(path) for path in args.configs]
        if len(set(names)) < len(names):
            names = [str(Path(path).with_suffix("")).strip("./").replace("/", "_") for path in args.configs]
        if len(set(names)) < len(names):
            raise ConfigError(f"a config is given twice: {' '.join(args.configs)}")
        configs = {name: configurations.load(path, dict(args.cfg_options)) for name, path in zip(names, args.configs)}
        show(compare(configs, args.seeds, args.work_dir, args.device, args.teacher_per_seed))
        print(f"{args.work_dir}: compare.json compare.png")
