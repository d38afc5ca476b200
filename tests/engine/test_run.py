"""A run does what its config says, goes on exactly where it stopped, and refuses what cannot work before it starts."""

import copy
import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdtasks.engine import builder, checkpoint
from kdtasks.engine import config as configs
from kdtasks.engine.builder import ConfigError
from kdtasks.engine.run import Run
from kdtasks.engine.runner import NotFiniteError

ROOT = Path(__file__).parents[2]
SMALL = Path(__file__).parent / "small" / "small.py"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = Run(small(), tmp_path_factory.mktemp("runs") / "undisturbed", quiet=True)
    run.train()
    return run


def small(**options):
    """The small config with some keys changed, as --cfg-options would."""
    return configs.load(SMALL, {key.replace("__", "."): value for key, value in options.items()})


def weights(run, stage, file="last.pth"):
    folder = run.folder(next(s for s in run.stages if s.name == stage))
    return torch.load(folder / file, weights_only=True)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_leaves_its_files(undisturbed):
    names = {p.name for p in undisturbed.work_dir.iterdir()}
    assert {"config.py", "results.json", "student.pth", "report.html", "train.log", "stages"} <= names
    assert [p.name for p in sorted((undisturbed.work_dir / "stages").iterdir()) if p.is_dir()] == ["0_teacher", "1_alone", "2_distilled"]
    results = json.loads((undisturbed.work_dir / "results.json").read_text())
    assert list(results) == ["config", "seed", "device", "primary", "higher_is_better", "stages"]
    assert list(results["stages"]) == ["teacher", "alone", "distilled"]
    assert all({"accuracy", "seconds"} <= set(stage) for stage in results["stages"].values())
    assert not list(undisturbed.work_dir.rglob("*.tmp"))


def test_results_are_what_an_evaluation_by_hand_gives(undisturbed):
    model = undisturbed.trained("distilled")
    test = undisturbed.data_set(undisturbed.config["data"], "test")
    with torch.no_grad():
        right = sum(int(model(test.images[i:i + 1]).argmax()) == int(test.target[i]) for i in range(len(test)))
    assert undisturbed.results["stages"]["distilled"]["accuracy"] == pytest.approx(100 * right / len(test))


def test_student_file_loads_strictly_and_holds_no_teacher(undisturbed):
    file = torch.load(undisturbed.work_dir / "student.pth", weights_only=True)
    assert set(file) == {"meta", "state_dict"}
    student = undisturbed.model("student")
    student.load_state_dict(file["state_dict"], strict=True)
    assert same(file["state_dict"], weights(undisturbed, "distilled")["state_dict"])
    assert len(file["state_dict"]) == len(student.state_dict())
    text = str({**weights(undisturbed, "distilled"), "state_dict": 0})
    teacher_shape = undisturbed.model("teacher")[-1].weight.shape
    assert "teacher." not in text and str(tuple(teacher_shape)) not in text
    sizes = {t.shape for t in walk(weights(undisturbed, "distilled")) if t.dim() == 2}
    assert teacher_shape not in sizes


def walk(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from walk(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from walk(item)


def test_teacher_is_bit_for_bit_what_its_stage_left(undisturbed):
    """The teacher has BatchNorm and dropout; its stage's file was written before the student learned from it."""
    stage = undisturbed.stages[2]
    distiller = undisturbed.distiller(stage)
    before = copy.deepcopy(distiller.model("teacher").state_dict())
    assert same(before, weights(undisturbed, "teacher")["state_dict"])
    loader = undisturbed.train_loader(stage)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    distiller.train()
    for batch in loader.epoch(0):
        sum(distiller(batch).values()).backward()
        optimizer.step()
    assert same(before, distiller.model("teacher").state_dict())


@pytest.mark.parametrize(("stage", "iteration"), [("teacher", 10), ("alone", 1), ("distilled", 7)])
def test_resume_in_the_middle_equals_no_stop(undisturbed, tmp_path, stage, iteration):
    hook = [{"type": "small_parts.StopAt", "stage": stage, "iteration": iteration}]
    with pytest.raises(KeyboardInterrupt):
        Run({**small(), "custom_hooks": hook}, tmp_path / "run", quiet=True).train()
    forget_hooks(tmp_path / "run")
    random.seed(99), np.random.seed(98), torch.manual_seed(97)
    run = Run(small(), tmp_path / "run", quiet=True)
    run.train(resume=True)
    for name in ("teacher", "alone", "distilled"):
        ours, theirs = weights(run, name), weights(undisturbed, name)
        assert same(ours["state_dict"], theirs["state_dict"])
        assert ours["resume"]["history"] == theirs["resume"]["history"]
        assert all(torch.equal(a, b) for a, b in zip(walk(ours["resume"]["optimizer"]), walk(theirs["resume"]["optimizer"]), strict=True))


def forget_hooks(work_dir):
    stamp = work_dir / "stages" / "config.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "custom_hooks": []}))


def test_resume_keeps_average_accumulation_and_scheduled_weights(tmp_path):
    options = {"ema": 0.9, "accumulate": 2, "clip_grad": 0.5, "amp": "bfloat16", "checkpoint_interval": {"iterations": 4},
               "losses.loss_kd.weight": {"type": "kdtasks.core.Linear", "start": 0.9, "end": 0.1}}
    whole = Run(small(**options), tmp_path / "whole", quiet=True)
    whole.train()
    hook = [{"type": "small_parts.StopAt", "stage": "distilled", "iteration": 10}]
    with pytest.raises(KeyboardInterrupt):
        Run({**small(**options), "custom_hooks": hook}, tmp_path / "cut", quiet=True).train()
    forget_hooks(tmp_path / "cut")
    cut = Run(small(**options), tmp_path / "cut", quiet=True)
    cut.train(resume=True)
    a, b = weights(whole, "distilled"), weights(cut, "distilled")
    assert same(a["state_dict"], b["state_dict"])
    assert same(a["resume"]["learners"][0], b["resume"]["learners"][0])
    assert not same(a["state_dict"], a["resume"]["learners"][0])          # the average is another thing than the weights


def kill_and_resume(tmp_path, moment):
    """Kill a run of its own process -9 after ``moment`` seconds of training, then resume it; its final weights."""
    command = [sys.executable, str(ROOT / "tools" / "train.py"), str(SMALL), "--work-dir", str(tmp_path / "run"),
               "--cfg-options", "checkpoint_interval={'iterations': 1}", "custom_hooks=[{'type': 'small_parts.Slow'}]"]
    env = {**__import__("os").environ, "SLOW": "0.02"}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list((tmp_path / "run").glob("stages/0_teacher/last.pth")) and time.time() < deadline:
        time.sleep(0.005)
    time.sleep(moment)
    process.kill()
    assert process.wait() == -9
    subprocess.run([*command, "--resume"], cwd=tmp_path, env={**env, "SLOW": "0"}, check=True, capture_output=True)
    return tmp_path / "run"


def assert_killed_run_equals(undisturbed, work_dir):
    run = Run(small(checkpoint_interval={"iterations": 1}), work_dir, quiet=True)
    for name in ("teacher", "alone", "distilled"):
        assert same(weights(run, name)["state_dict"], weights(undisturbed, name)["state_dict"])
    assert same(torch.load(work_dir / "student.pth", weights_only=True)["state_dict"], weights(undisturbed, "distilled")["state_dict"])


def test_kill_9_and_resume_gives_the_same_bits(undisturbed, tmp_path):
    """A checkpoint is written at every step, so that the kill falls into the writing of one as likely as not."""
    assert_killed_run_equals(undisturbed, kill_and_resume(tmp_path, random.Random().uniform(0, 1.5)))


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(5))
def test_kill_9_at_random_moments(undisturbed, tmp_path, attempt):
    assert_killed_run_equals(undisturbed, kill_and_resume(tmp_path, random.Random().uniform(0, 1.8)))


def test_alone_is_plain_cross_entropy_on_the_same_labelled_samples(tmp_path):
    """The control against a loop written here: weight 1, the labelled rows of the distilled run's batches, no teacher."""
    config = small(data__train={"type": "small_parts.Digits", "first": 0, "count": 200, "labelled": 60, "noise": 0.1},
                   data__batch_size=16, data__unlabelled_per_batch=8, data__iterations_per_epoch=5, schedule=[])
    run = Run(config, tmp_path / "run", quiet=True)
    run.train()
    distilled_loader = run.train_loader(run.stages[2])
    student = run.model("student").train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(0)                                                   # dropout's stream, as the run seeds it
    for epoch in range(3):
        for batch in distilled_loader.epoch(epoch):
            rows = batch["labelled"]
            assert rows.sum() == 16 and (batch["target"][rows] >= 0).all() and (batch["target"][~rows] == -100).all()
            optimizer.zero_grad()
            F.cross_entropy(student(batch["input"][rows]), batch["target"][rows]).backward()
            optimizer.step()
    assert same(student.state_dict(), weights(run, "alone")["state_dict"])
    assert not same(student.state_dict(), weights(run, "distilled")["state_dict"])


def test_alone_and_distilled_start_from_the_same_weights(undisturbed):
    alone, distilled = (undisturbed.distiller(s).student.state_dict() for s in undisturbed.stages[1:])
    assert same(alone, distilled)
    other = Run(small(), "unused", seed=1, quiet=True).model("student").state_dict()
    assert not same(alone, other)


def test_a_users_own_loss_trains_through_one_line(tmp_path):
    run = Run(small(losses__loss_mine={"type": "small_parts.AgreeLoss", "of": ("student", "teacher")}), tmp_path / "run", quiet=True)
    run.train(only=["teacher", "distilled"])
    history = weights(run, "distilled")["resume"]["history"]
    mine = [entry["loss_mine"] for entry in history if "loss_mine" in entry]
    assert len(mine) > 2 and mine[-1] < mine[0]


def test_a_function_is_a_loss_too(tmp_path):
    entry = {"type": "kdtasks.general.kd_loss", "temperature": 2.0, "of": ("student", "teacher")}
    run = Run(small(losses__loss_kd=entry), tmp_path / "run", quiet=True)
    distiller = run.distiller(run.stages[2], stage_weights=False).eval()
    batch = next(iter(run.train_loader(run.stages[2])))
    s, t = distiller.student(batch["input"]), distiller.teachers["teacher"](batch["input"])
    expected = 4 * F.kl_div(F.log_softmax(s / 2, 1), F.log_softmax(t / 2, 1), reduction="batchmean", log_target=True)
    assert torch.allclose(distiller(batch)["loss_kd"], expected)


def test_cached_teacher_trains_to_the_same_student(tmp_path):
    """With fixed views, outputs from the cache are the outputs: teacher precision kept by a check of the range."""
    live, cached = (Run(small(**options), tmp_path / name, quiet=True) for name, options in (
        ("live", {"data__train__noise": 0.0}), ("cached", {"data__train__noise": 0.0, "cache": {"views": 1}})))
    live.train()
    cached.train()
    assert (tmp_path / "cached" / "cache").is_dir()
    a, b = weights(live, "distilled")["state_dict"], weights(cached, "distilled")["state_dict"]
    assert all(torch.allclose(a[k].double(), b[k].double(), atol=2e-3) for k in a) and not same(a, weights(live, "alone")["state_dict"])


def test_a_cached_step_never_runs_the_teacher(tmp_path, monkeypatch):
    run = Run(small(cache={"views": 2}), tmp_path / "run", quiet=True)
    run.train(only=["teacher"])
    stage = run.stages[2]
    loader = run.train_loader(stage)
    distiller = run.distiller(stage)
    prepare = run.cache(stage, distiller)
    expected = {}
    for view in range(2):
        index = torch.arange(200)
        rows = distiller.teachers["teacher"](loader.dataset.batch(index, torch.full_like(index, view), 0)["input"])
        expected |= {(int(i), view): row for i, row in zip(index, rows)}
    monkeypatch.setattr(distiller.teachers["teacher"], "forward", None)
    batch = prepare(next(iter(loader.epoch(3))))
    assert set(batch["view"].tolist()) <= {0, 1}
    for i, v, row in zip(batch["index"], batch["view"], batch["teacher"]):
        assert torch.allclose(row.float(), expected[int(i), int(v)], rtol=1e-3, atol=1e-3)
    assert "loss_kd" in distiller(batch)


def test_two_gloo_processes_equal_one(tmp_path):
    """Losses, gradients (through the weights they lead to), metrics: one process against two on the same global batch."""
    options = ["student.norm=False", "teacher.norm=False", "student.width=4", "schedule=[]", "length={'iterations': 8}"]
    script = [str(ROOT / "tools" / "train.py"), str(SMALL), "--cfg-options", *options]
    subprocess.run([sys.executable, *script, "--work-dir", str(tmp_path / "one")], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend",
                           "c10d", "--rdzv-endpoint", "localhost:0", *script, "--work-dir", str(tmp_path / "two"), "--launcher", "pytorch"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("0_teacher", "1_alone", "2_distilled"):
        one, two = (torch.load(tmp_path / n / "stages" / stage / "last.pth", weights_only=True) for n in ("one", "two"))
        for name, value in one["state_dict"].items():
            assert torch.allclose(value, two["state_dict"][name], rtol=1e-4, atol=1e-6), (stage, name)


def test_config_key_that_does_not_exist():
    with pytest.raises(ConfigError, match=r"no key 'optimzer'; did you mean 'optimizer'"):
        small(optimzer={})
    with pytest.raises(ConfigError, match=r"KDLoss has no argument 'temprature'; did you mean 'temperature'"):
        small(losses__loss_kd__temprature=3.0)
    with pytest.raises(ConfigError, match=r"data has no key 'batchsize'; did you mean 'batch_size'"):
        small(data__batchsize=3)
    with pytest.raises(ConfigError, match=r"kdtasks.general has no 'KDLos'; did you mean 'KDLoss'"):
        small(losses__loss_kd__type="kdtasks.general.KDLos")
    with pytest.raises(ConfigError, match=r"SGD has no argument 'momentun'; did you mean 'momentum'"):
        small(optimizer__momentun=0.9)
    with pytest.raises(ConfigError, match=r"loss_kd must be a dict with 'of'"):
        small(losses__loss_kd={"type": "kdtasks.general.KDLoss"})


def test_wrong_names_and_sizes_are_said_before_the_first_step(tmp_path):
    for options, message in (
        ({"losses__loss_kd__of": ("student", "teacher.fcc")}, r"no model supplies 'teacher.fcc'"),
        ({"losses__loss_kd__of": ("student", "techer")}, r"neither a model nor the batch supplies 'techer'; did you mean 'teacher'"),
        ({"teacher__num_classes": 7}, r"loss_kd cannot be computed from student \(32, 10\), teacher \(32, 7\)"),
        ({"losses__loss_x": {"type": "torch.nn.MSELoss", "of": ("student.0", "teacher.0")}}, r"loss_x cannot be computed from student.0"),
        ({"schedule": [{"type": "MultiStepLRR"}]}, r"MultiStepLRR.*did you mean 'MultiStepLR'"),
        ({"teacher__checkpoint": "nowhere.pth"}, r"no checkpoint 'nowhere.pth'"),
    ):
        with pytest.raises((ConfigError, ValueError, FileNotFoundError), match=message):
            Run(small(**options), tmp_path / "run", quiet=True).train()
        assert not (tmp_path / "run").exists()


def test_a_teacher_that_knows_other_classes(undisturbed, tmp_path):
    file = str(undisturbed.folder(undisturbed.stages[0]) / "last.pth")
    names = [str(k) for k in range(9)] + ["ten"]
    with pytest.raises(ConfigError, match=r"lacks \['9'\] and adds \['ten'\]"):
        Run(small(teacher__checkpoint=file, data__train__classes=names), tmp_path / "run", quiet=True).train()


def test_infinite_loss_names_term_and_step_and_saves(tmp_path):
    hooks = [{"type": "small_parts.BreakWeights", "stage": "distilled", "iteration": 9}]
    run = Run({**small(), "custom_hooks": hooks}, tmp_path / "run", quiet=True)
    with pytest.raises(NotFiniteError, match=r"loss_\w+ is (nan|inf) at iteration 9 of stage 'distilled'.*failed.pth.*last.pth"):
        run.train()
    state = weights(run, "distilled")
    assert state["resume"]["iteration"] == 9                               # written after 9 good steps, before the bad one
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    assert "state_dict" in torch.load(run.folder(run.stages[2]) / "failed.pth", weights_only=True)


def test_full_disk_leaves_the_former_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    checkpoint.save({"resume": {"x": torch.ones(3)}}, path)

    def full(state, file):
        Path(file).write_bytes(b"PK half of it")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"No space left.*the former one there still loads"):
        checkpoint.save({"resume": {"x": torch.zeros(3)}}, path)
    monkeypatch.undo()
    assert torch.equal(checkpoint.load(path)["resume"]["x"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def test_a_really_full_disk(tmp_path):
    """A small file system of its own, filled up: the checkpoint that was there still loads."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("may not mount a file system here")
    try:
        checkpoint.save({"resume": {"x": torch.ones(1000)}}, mount / "last.pth")
        with pytest.raises(OSError, match="still loads"):
            checkpoint.save({"resume": {"x": torch.ones(10**6)}}, mount / "last.pth")
        assert len(checkpoint.load(mount / "last.pth")["resume"]["x"]) == 1000
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_resume_refuses_another_config_and_says_in_what(undisturbed):
    run = Run(small(losses__loss_kd__weight=0.5), undisturbed.work_dir, quiet=True)
    with pytest.raises(ConfigError, match=r"another configuration:\s+losses.loss_kd.weight: 0.9 -> 0.5"):
        run.train(resume=True)
    with pytest.raises(ConfigError, match=r"seed: 0 -> 3"):
        Run(small(), undisturbed.work_dir, seed=3, quiet=True).train(resume=True)


def test_a_former_run_is_moved_aside(tmp_path):
    for _ in range(2):
        Run(small(), tmp_path / "run", quiet=True).train(only=["alone"])
    assert {p.name for p in tmp_path.iterdir()} == {"run", "run.1"}
    assert (tmp_path / "run.1" / "results.json").exists()


def test_resume_in_an_empty_folder_starts(tmp_path):
    assert "alone" in Run(small(), tmp_path / "run", quiet=True).train(resume=True, only=["alone"])["stages"]


def test_the_written_config_trains_again(undisturbed):
    again = configs.load(undisturbed.work_dir / "config.py")
    assert configs.difference(configs.plain(undisturbed.config), configs.plain(again)) == []


def test_epochs_to_keep_and_best(tmp_path):
    stages = [{"name": "teacher", "model": "teacher", "losses": {"loss_cls": {"type": "torch.nn.CrossEntropyLoss", "of": ("student", "target")}},
               "keep": [1, 2], "length": 3},
              {"name": "distilled", "teachers": {"teacher": "teacher.1"}, "losses": small()["losses"], "length": 1}]
    run = Run({**small(), "stages": stages}, tmp_path / "run", quiet=True)
    run.train()
    files = {p.name for p in run.folder(run.stages[0]).iterdir()}
    assert {"epoch_1.pth", "epoch_2.pth", "last.pth", "best.pth", "history.json"} == files
    assert same(run.distiller(run.stages[1]).model("teacher").state_dict(), weights(run, "teacher", "epoch_1.pth")["state_dict"])
    accuracies = [e["accuracy"] for e in weights(run, "teacher")["resume"]["history"] if "accuracy" in e]
    assert weights(run, "teacher", "best.pth")["meta"]["metrics"]["accuracy"] == max(accuracies)


def test_parts_of_the_student_train(tmp_path):
    stage = {"name": "distilled", "teachers": {"teacher": None}, "losses": small()["losses"], "train": ["student.10"], "length": 1}
    run = Run({**small(), "stages": [stage]}, tmp_path / "run", quiet=True)
    run.train()
    before, after = run.model("student").state_dict(), weights(run, "distilled")["state_dict"]
    moved = {k for k in before if not torch.equal(before[k], after[k]) and "running" not in k and "num_batches" not in k}
    assert moved == {k for k in before if k.startswith("10.")} and moved
    with pytest.raises(ValueError, match=r"nothing that can train is called 'student.100'"):
        Run({**small(), "stages": [{**stage, "train": ["student.100"]}]}, tmp_path / "other", quiet=True).train()


def test_accumulation_equals_a_larger_batch(tmp_path):
    """Two batches of 16 whose gradients are averaged against one of 32 of the same rows; no BatchNorm, no dropout."""
    common = {"student.norm": False, "teacher.norm": False, "data.train.noise": 0.0, "schedule": []}
    half = Run(small(**common, **{"data.batch_size": 16, "accumulate": 2, "length": {"iterations": 12},
                                  "checkpoint_interval": {"iterations": 12}}), tmp_path / "half", quiet=True)
    full = Run(small(**common, **{"length": {"iterations": 6}}), tmp_path / "full", quiet=True)
    half.train(only=["alone"])
    full.train(only=["alone"])
    a, b = weights(half, "alone")["state_dict"], weights(full, "alone")["state_dict"]
    assert all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)


def test_clipping_bounds_the_step(tmp_path):
    options = {"clip_grad": 1e-4, "schedule": [], "length": {"iterations": 1}, "optimizer": {"type": "torch.optim.SGD", "lr": 1.0}}
    run = Run(small(**options), tmp_path / "run", quiet=True)
    run.train(only=["alone"])
    before, after = run.model("student"), weights(run, "alone")["state_dict"]
    moved = math.sqrt(sum(float((after[n] - p).square().sum()) for n, p in before.named_parameters()))
    assert 0.5e-4 < moved < 1.01e-4


def test_average_is_what_the_formula_says(tmp_path):
    run = Run(small(ema=0.5, length={"iterations": 3}, checkpoint_interval={"iterations": 1}, schedule=[], val_interval={"iterations": 1}),
              tmp_path / "run", quiet=True)
    seen = []

    from kdtasks.engine.runner import StageRunner
    original = StageRunner.save_now

    def spy(self, last=False):
        seen.append({k: v.clone() for k, v in self.distiller.student.named_parameters()})
        original(self, last)
    StageRunner.save_now = spy
    try:
        run.train(only=["alone"])
    finally:
        StageRunner.save_now = original
    average = {k: v.clone() for k, v in run.model("student").named_parameters()}
    for step in seen:
        average = {k: 0.5 * average[k] + 0.5 * step[k] for k in average}
    exported = weights(run, "alone")["state_dict"]
    assert all(torch.allclose(exported[k], average[k], atol=1e-6) for k in average)


def test_bfloat16_on_a_cpu(tmp_path):
    """Convolutions run in bfloat16 in a step; weights and evaluation stay in float32."""
    run = Run(small(amp="bfloat16"), tmp_path / "run", quiet=True)
    kinds = set()
    from kdtasks.engine.runner import StageRunner
    original = StageRunner.train

    def spy(self):
        self.distiller.student[0].register_forward_hook(lambda m, a, out: kinds.add((out.dtype, torch.is_grad_enabled())))
        return original(self)
    StageRunner.train = spy
    try:
        run.train(only=["alone"])
    finally:
        StageRunner.train = original
    assert kinds == {(torch.bfloat16, True), (torch.float32, False)}
    assert all(v.dtype in (torch.float32, torch.int64) for v in weights(run, "alone")["state_dict"].values())
    with pytest.raises(ConfigError, match="float16.*CUDA"):
        Run(small(amp="float16"), tmp_path / "other", device="cpu")


def test_validation_then_taps_compiled(tmp_path):
    """A run that evaluates first and trains compiled with taps gets the taps, and the weights of the eager run."""
    loss = {"type": "torch.nn.MSELoss", "of": ("student.2", "teacher.2"), "weight": 1.0}
    options = {"teacher.width": 4, "losses.loss_hint": loss, "length": {"iterations": 4}, "val_interval": {"iterations": 1},
               "student.norm": False, "teacher.norm": False}
    eager = Run(small(**options), tmp_path / "eager", quiet=True)
    compiled = Run(small(**options, compile={"backend": "aot_eager"}), tmp_path / "compiled", quiet=True)
    eager.train()
    compiled.train()
    for run in (eager, compiled):
        assert all(e["loss_hint"] > 0 for e in weights(run, "distilled")["resume"]["history"] if "loss_kd" in e)
    a, b = weights(eager, "distilled")["state_dict"], weights(compiled, "distilled")["state_dict"]
    assert all(torch.allclose(a[k], b[k], rtol=1e-3, atol=1e-5) for k in a)


def test_dry_run_and_lists(capsys, tmp_path, monkeypatch):
    from kdtasks.engine import cli
    monkeypatch.chdir(tmp_path)
    cli.train([str(SMALL), "--dry-run"])
    out = capsys.readouterr().out
    assert "distilled:" in out and "teacher (32, 10)" in out and not list(tmp_path.iterdir())
    cli.train([str(SMALL), "--list"])
    out = capsys.readouterr().out
    assert "distilled: trains student, taught by teacher" in out and "student.10" in out
    cli.train(["--list"])
    assert "configs/general/default.py" in capsys.readouterr().out


def test_a_wrong_input_ends_in_one_line(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "train.py"), str(SMALL), "--cfg-options", "losses.loss_kd.temperatur=3"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.strip() == "error: losses.loss_kd: KDLoss has no argument 'temperatur'; did you mean 'temperature'?"


def test_tools_test_gives_the_runs_figure(undisturbed, capsys):
    from kdtasks.engine import cli
    cli.test([str(SMALL), str(undisturbed.work_dir / "student.pth"), "--device", "cpu"])
    assert f"accuracy {undisturbed.results['stages']['distilled']['accuracy']:.3f}" in capsys.readouterr().out


def test_a_file_from_elsewhere_is_never_unpickled(tmp_path):
    bad = tmp_path / "teacher.pth"
    torch.save(torch.nn.Linear(2, 2), bad)
    with pytest.raises(ValueError, match="not a plain file of weights"):
        Run(small(teacher__checkpoint=str(bad)), tmp_path / "run", quiet=True).train()


def test_builder_says_what_is_near():
    with pytest.raises(ConfigError, match="full dotted path"):
        builder.resolve("KDLoss", "losses.x")
    with pytest.raises(ConfigError, match="no module 'nowhere'"):
        builder.resolve("nowhere.Thing", "losses.x")
