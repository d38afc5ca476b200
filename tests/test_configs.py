"""Every config builds and takes two steps, without its data; its header says how to run it."""

import inspect
import pkgutil
from pathlib import Path

import pytest
import torch

from kdtasks.core.control import taught_names
from kdtasks.engine import config as configs
from kdtasks.engine.config_files import library_of
from kdtasks.engine.dry_run import dry_run
from kdtasks.engine.run import Run

ROOT = Path(__file__).parents[1]
ALL = sorted(p for p in (ROOT / "configs").rglob("*.py") if "_base_" not in p.parts)
# for another library's own tools, with which its tests run them
FOREIGN = [path for path in ALL if library_of(path)]
CONFIGS = [path for path in ALL if path not in FOREIGN]

# of RepDistiller's table
PAIRS = (
    *("resnet56_resnet20", "resnet32x4_resnet8x4", "wrn_40_2_wrn_16_2", "vgg13_vgg8"),
    "resnet32x4_shufflenet_v2",
)


def made_small(config: dict) -> dict:
    """What two cores step in a second: few and small images, no weights that would be fetched."""
    changes: dict = fewer_images(config, config["data"], "data.")
    training = config["teacher_training"].get("data") or {}
    if "batch_size" in training:
        changes |= fewer_images(config, training, "teacher_training.data.")
    for key, most in (("size", 64), ("patch", 12)):
        size = argument(config["data"]["train"], key)
        if isinstance(size, int):
            changes[f"data.train.{key}"] = min(size, most)
    student = config["student"]
    # a stream of experiences is long
    if sum(student.get("sizes", ())) > 10:
        changes["student.sizes"] = (3, 2, 2)
    # a quantized student holds its network
    own = {"student.model": student["model"]} if "model" in student else {"student": student}
    (network,) = own.values()
    models = {**own, **config["teachers"]}
    for role, model in models.items():
        if "min_size" in model:
            size = 64 * model["min_size"] // network["min_size"]
            changes |= {f"{role}.min_size": size, f"{role}.max_size": size * 3 // 2}
        # of another run
        if model.get("checkpoint", "own") != "own":
            changes[f"{role}.checkpoint"] = None
        if model.get("weights"):
            changes[f"{role}.weights"] = None
    return changes


def argument(described: dict, name: str):
    """What is given, or the default."""
    parameter = inspect.signature(pkgutil.resolve_name(described["type"])).parameters.get(name)
    return described.get(name, parameter and parameter.default)


def fewer_images(config: dict, data: dict, prefix: str) -> dict:
    """Batches of four; of one where no batch's statistics are taken, of two classes for relations."""
    task = config["task"].split(".")[1]
    least = 1 if task in ("detection", "super_resolution") else 4
    least = 2 * data.get("per_class", 2) if task == "metric_learning" else least
    sizes = {f"{prefix}batch_size": min(data["batch_size"], least)}
    if data.get("unlabelled_per_batch"):
        sizes[f"{prefix}unlabelled_per_batch"] = min(data["unlabelled_per_batch"], 2)
    return sizes


# The same networks and losses as a config beside them, on other data or in another size.
SIBLINGS = {
    *(f"adl_retinanet_{run}" for run in ("r101_r50_coco", "r101_r50_coco_unlabelled")),
    *(
        f"chen2017_faster_rcnn_{run}"
        for run in ("r101_r18_coco", "r101_r18_voc0712", "r50_r18_bccd")
    ),
    *(f"{m}_resnet50_resnet18_{d}" for m in ("rkd", "darkrank_hard") for d in ("cars196", "sop")),
    "darkrank_hard_resnet50_resnet18_cub200",
    "qad_resnet56_resnet20_cifar100",
    *(f"{m}_resnet32_cifar100_5x20" for m in ("lwf", "lwm", "lwf_heads", "lwf_mc")),
    "gd_wrn_16_2_cifar100_5x20",
    *(
        f"{method}_{pair}_cifar100"
        for method in ("at", "sp", "crd", "dkd", "dist", "review_kd")
        for pair in PAIRS[1:]
    ),
    *(f"kd_{pair}_cifar100" for pair in PAIRS if "resnet32x4" in pair),
}


def by_speed(paths: list[Path]) -> list:
    """The siblings run with ``-m slow`` only."""
    return [
        pytest.param(path, marks=pytest.mark.slow, id=path.stem)
        if path.stem in SIBLINGS
        else pytest.param(path, id=path.stem)
        for path in paths
    ]


class Marked:
    """What a teacher has said, put into the batches of an untaught stage: whoever is called with it
    is taught.
    """


def watch_untaught(run) -> dict[str, list]:
    """Have the stages without teachers note what their losses are called with, on batches that also
    hold a teacher's words.
    """
    called, build = {}, run.experiment.distiller
    untaught = {
        name
        for stage in run.experiment.stages
        for entry in stage.losses.values()
        for name in taught_names(entry["of"], stage.own)
    }

    def noting(loss, seen):
        return lambda *tensors: (seen.append(tensors), loss(*tensors))[1]

    def watched(stage, files=None, load=True):
        distiller = build(stage, files, load)
        if not stage.taught:
            seen, known = called.setdefault(stage.name, []), distiller.supply
            names = {"teacher", *run.experiment.config["teachers"], *untaught} - {"peers"}
            distiller.supply = lambda batch, *args, **kwargs: known(
                {**batch, **{n: Marked() for n in names}}, *args, **kwargs
            )
            for name, term in distiller.terms.items():
                distiller._terms[name] = term._replace(loss=noting(term.loss, seen))
        return distiller

    run.experiment.distiller = watched
    return called


@pytest.mark.parametrize("path", by_speed(CONFIGS))
def test_config_builds_and_steps(path, tmp_path):
    threads = torch.get_num_threads()
    try:
        small = made_small(configs.load(path))
        run = Run(configs.load(path, small), tmp_path, device="cpu")
        called = watch_untaught(run)
        rows = dry_run(run.experiment)
    finally:
        torch.set_num_threads(threads)
    assert [row["stage"] for row in rows] == [stage.name for stage in run.experiment.stages]
    assert called[run.experiment.arms.control.name] and not any(
        isinstance(t, Marked) for calls in called.values() for call in calls for t in call
    )
    assert all(row["parameters"] > 0 for row in rows)
    # the student of the experience before; of dark experience replay, stored logits
    if path.parent.name == "incremental":
        assert rows[-1]["stage"] == "distilled"
        assert (rows[-1]["teacher_parameters"] == 0) == path.stem.startswith("derpp_")
    # a generation is of its teacher's size, so is a student in eight bits; peers have none
    elif path.stem.startswith(("ban_", "dml_", "qad_")):
        assert rows[-1]["teacher_parameters"] in (0, rows[-1]["parameters"])
    # the same network at another size; or none
    elif not any(part in path.stem for part in ("_to_", "no_teacher", "taught_backbone_resnet")):
        assert rows[-1]["teacher_parameters"] > rows[-1]["parameters"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_config_opens_with_its_purpose_and_its_command(path):
    lines, library = path.read_text().splitlines(), library_of(path)
    tool = f"{library.upper()}/tools/train.py" if library else "tools/train.py"
    run = lines.index(f"# Run:     python {tool} {path.relative_to(ROOT)}")
    title = " ".join(line.removeprefix("# ") for line in lines[:run])
    assert 1 <= run <= 2 and ("arXiv " in title or "no arXiv id" in title)
    assert lines[run + 1].startswith("# Expect:  ")


@pytest.mark.parametrize("path", FOREIGN, ids=lambda p: p.stem)
def test_a_config_of_another_librarys_tools_says_whose_it_is(path):
    library = library_of(path)
    assert path.parent.name == library
    with pytest.raises(configs.ConfigError, match=f"it is for {library}'s own tools"):
        configs.load(path)
