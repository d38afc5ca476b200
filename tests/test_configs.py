"""Every config builds and takes two steps, without its data; its header says how to run it."""

from pathlib import Path

import pytest
import torch

from kdtasks.core.stages import taught_names
from kdtasks.engine import config as configs
from kdtasks.engine.config_files import library_of
from kdtasks.engine.dry_run import dry_run
from kdtasks.engine.run import Run

ROOT = Path(__file__).parents[1]
ALL = sorted(p for p in (ROOT / "configs").rglob("*.py") if "_base_" not in p.parts)
# for another library's own tools, with which its tests run them
FOREIGN = [path for path in ALL if library_of(path)]
CONFIGS = [path for path in ALL if path not in FOREIGN]

# Detectors of full size, on images that two cores step in seconds and without the weights that
# would be fetched.
TINY = {
    "student.weights": None,
    "teacher.weights": None,
    "student.min_size": 64,
    "student.max_size": 96,
    "teacher.min_size": 64,
    "teacher.max_size": 96,
    "data.batch_size": 1,
}
LARGE = {"teacher.min_size": 128, "teacher.max_size": 192}
EMBEDDERS = {
    "student.weights": None,
    "teacher.weights": None,
    "data.train.size": 64,
    "data.batch_size": 10,
}
# of RepDistiller's table
PAIRS = (
    *("resnet56_resnet20", "resnet32x4_resnet8x4", "wrn_40_2_wrn_16_2", "vgg13_vgg8"),
    "resnet32x4_shufflenet_v2",
)
SMALLER = {
    **{
        f"{method}_{pair}_cifar100": {"data.batch_size": 4}
        for method in ("kd", "at", "sp", "crd", "dkd", "dist", "review_kd")
        for pair in PAIRS
    },
    **{
        f"{run}_cifar100{size}": {"data.batch_size": 8}
        for size in ("_short", "_10k_short")
        for run in (
            *(
                f"{method}_resnet8x2_resnet8"
                for method in (
                    *("kd", "rkd", "rkd_kd", "ab", "rco", "takd", "bss", "bss_weight0"),
                    *(
                        "kd_weight9",
                        "dkd",
                        "dist",
                        "standardized_kd",
                        "at",
                        "sp",
                        "srd",
                        "crd",
                        "review_kd",
                        "hint",
                        "patient",
                        "bct",
                        "absolute",
                    ),
                )
            ),
            "ban_resnet8",
            "dml_resnet8",
            "qad_resnet8",
            "qd_resnet8x2_resnet8",
        )
    },
    **{
        f"{run}_cifar100": {"data.batch_size": 4}
        for run in (
            "ab_wrn_22_4_wrn_16_2",
            "ban_wrn_28_2",
            "bss_resnet26_resnet8",
            "dml_resnet32",
            "qd_resnet56_resnet20",
            "rco_resnet56_resnet20",
            "rkd_resnet56_resnet20",
            "takd_resnet110_resnet20_resnet8",
        )
    },
    **{
        f"{method}_retinanet_bccd_small": {"data.batch_size": 2} for method in ("adl", "pkd", "cwd")
    },
    "adl_retinanet_r101_r50_coco": TINY,
    "adl_retinanet_r101_r50_coco_unlabelled": TINY
    | {"data.unlabelled_per_batch": 1, "teacher_training.data.batch_size": 1},
    "adl_retinanet_r50_r18_bccd": TINY,
    "chen2017_faster_rcnn_r50_r18_bccd": TINY,
    "chen2017_faster_rcnn_r101_r18_coco": TINY,
    "chen2017_faster_rcnn_r101_r18_voc0712": TINY,
    "chen2017_faster_rcnn_688_to_334_voc0712": TINY | LARGE,
    **{
        f"{method}_resnet50_resnet18_{data}": EMBEDDERS
        for method in ("rkd", "darkrank_hard")
        for data in ("cub200", "cars196", "sop")
    },
    "ail_edsr_edsr16_div2k_x2": {"data.train.patch": 12, "data.batch_size": 1},
    **{f"ail_vdsr64_vdsr13_{data}_x2": {"data.batch_size": 1} for data in ("291", "bsds")},
    "ail_vdsr32_vdsr13_bsds_x2_short": {"data.batch_size": 2},
    **{
        f"{run}_cifar100_{stream}": {"student.sizes": (3, 2, 2), "data.batch_size": 2}
        for run in ("lwf_resnet32", "lwm_resnet32", "lwf_heads_resnet32", "lwf_mc_resnet32")
        for stream in ("10x10", "5x20")
    },
    **{
        f"gd_wrn_16_2_cifar100_{stream}": {
            "student.sizes": (3, 2, 2),
            "data.batch_size": 2,
            "data.unlabelled_per_batch": 2,
        }
        for stream in ("10x10", "5x20")
    },
    **{
        f"{run}_resnet8_cifar100_5x10_short": {"student.sizes": (3, 2, 2), "data.batch_size": 4}
        for run in (
            *("lwf", "lwm", "lwf_heads", "lwm_no_attention", "lwf_mc", "gd", "gd_no_pool"),
            *("icarl", "wa", "bic", "derpp"),
        )
    },
    **{
        f"{method}_lite0_resnet8_cifar100_10k": {"data.batch_size": 4}
        for method in ("feature", "queue_kl")
    },
    "darkrank_soft_released_resnet50_resnet18_cub200": EMBEDDERS
    | {"data.batch_size": 8, "teacher_training.data.batch_size": 10},
}

# The same networks and losses as a config beside them, on other data.
SIBLINGS = {
    "adl_retinanet_r101_r50_coco",
    "chen2017_faster_rcnn_r101_r18_coco",
    *(f"{m}_resnet50_resnet18_{d}" for m in ("rkd", "darkrank_hard") for d in ("cars196", "sop")),
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
        run = Run(configs.load(path, SMALLER.get(path.stem)), tmp_path, device="cpu")
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
    elif "_to_" not in path.stem and "no_teacher" not in path.stem:
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
