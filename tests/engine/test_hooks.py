"""mmengine's hooks: those that work here do what they are for; the others are refused by name.
People's own get the usual calls.
"""

import json

import mmengine.hooks
import pytest
import torch
from small_runs import same, small, weights

from kdtasks.engine.errors import ConfigError
from kdtasks.engine.hooks import ALLOWED, REFUSED
from kdtasks.engine.run import Run


def hook(kind, **options):
    return [{"type": kind, **options}]


def test_every_hook_of_the_installed_mmengine_is_allowed_or_refused():
    assert {*ALLOWED, *REFUSED} == set(mmengine.hooks.__all__) - {"Hook"} and not {*ALLOWED} & {
        *REFUSED
    }


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_work_is_refused_by_name_before_anything_is_read(name, tmp_path):
    for kind in (
        name,
        f"mmengine.hooks.{name}",
        getattr(mmengine.hooks, name),
        type("Own", (getattr(mmengine.hooks, name),), {}),
    ):
        with pytest.raises(
            ConfigError,
            match=rf"custom_hooks\[0\]: (mmengine's {name} cannot work "
            r"here|.*has no|.*needs)",
        ):
            Run({**small(), "custom_hooks": hook(kind)}, tmp_path)
    if name == "EMAHook":
        with pytest.raises(ConfigError, match="ema=0.999"):
            Run({**small(), "custom_hooks": hook(name)}, tmp_path)


@pytest.mark.parametrize(
    "given, message",
    [
        (hook("EarlyStopingHook", monitor="accuracy"), "did you mean 'EarlyStoppingHook'"),
        ("[x]", "must be a list of"),
        (
            hook("EarlyStoppingHook", monitr="accuracy"),
            "no argument 'monitr'; did you mean 'monitor'",
        ),
        (["a"], "must be a dict"),
        (hook("torch.nn.Linear"), "is no hook"),
    ],
)
def test_a_wrong_hook_is_an_error_at_the_start(given, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        Run({**small(), "custom_hooks": given}, tmp_path)


def test_a_hook_that_cannot_be_built_is_an_error_before_the_first_step(tmp_path):
    config = {**small(), "custom_hooks": hook("EarlyStoppingHook", monitor="psnr_y")}
    with pytest.raises(ConfigError, match="Cannot infer the rule for psnr_y"):
        Run(config, tmp_path / "run", quiet=True).train()
    assert not (tmp_path / "run").exists()


def test_early_stopping_ends_a_stage_and_a_resumed_run_ends_it_at_the_same_step(tmp_path):
    """Its count of evaluations without gain goes on after a resume, and a stage that it has ended
    stays ended.
    """
    early = hook("EarlyStoppingHook", monitor="accuracy", min_delta=100.0, patience=3)
    options = {
        "length": 6,
        "val_interval": {"iterations": 2},
        "checkpoint_interval": {"iterations": 2},
    }
    whole = Run({**small(**options), "custom_hooks": early}, tmp_path / "whole", quiet=True)
    whole.train(only=["alone"])
    state = weights(whole, "alone")
    assert (
        state["resume"]["iteration"] == 8
        and state["resume"]["stopped"]
        and state["resume"]["length"] == 36
    )
    assert "accuracy" in whole.done["alone"]
    stop = [*early, *hook("small_parts.StopAt", stage="alone", iteration=6)]
    with pytest.raises(KeyboardInterrupt):
        Run({**small(**options), "custom_hooks": stop}, tmp_path / "cut", quiet=True).train(
            only=["alone"]
        )
    stamp = tmp_path / "cut" / "stages" / "config.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "custom_hooks": early}))
    cut = Run({**small(**options), "custom_hooks": early}, tmp_path / "cut", quiet=True)
    cut.train(resume=True, only=["alone"])
    assert weights(cut, "alone")["resume"]["iteration"] == 8
    assert same(weights(cut, "alone")["state_dict"], state["state_dict"])
    # killed just before it was noted
    (tmp_path / "cut" / "stages" / "done.json").unlink()
    again = Run({**small(**options), "custom_hooks": early}, tmp_path / "cut", quiet=True)
    again.train(resume=True, only=["alone"])
    assert weights(again, "alone")["resume"]["iteration"] == 8


def test_own_hooks_get_the_usual_calls_in_mmengines_order_and_the_losses_on_the_device(tmp_path):
    import small_parts

    small_parts.Noting.calls.clear()
    config = {
        **small(length={"iterations": 2}),
        "custom_hooks": hook("small_parts.Noting", priority="LOW"),
    }
    Run(config, tmp_path / "run", quiet=True).train(only=["alone"])
    calls = small_parts.Noting.calls
    assert [name for name, _ in calls] == [
        "before_run",
        "before_train",
        "before_train_epoch",
        "before_train_iter",
        "after_train_iter",
        "before_train_iter",
        "after_train_iter",
        "before_val",
        "before_val_epoch",
        "before_val_iter",
        "after_val_iter",
        "after_val_epoch",
        "after_val",
        "before_save_checkpoint",
        "after_train_epoch",
        "after_train",
        "after_run",
    ]
    outputs = [given["outputs"] for name, given in calls if name == "after_train_iter"]
    assert [list(losses) for losses in outputs] == [["loss_cls", "loss"]] * 2 or [
        list(o) for o in outputs
    ] == [["loss_cls"]] * 2
    assert all(
        isinstance(v, torch.Tensor) and not v.requires_grad and v.isfinite()
        for o in outputs
        for v in o.values()
    )
    assert "accuracy" in next(
        given["metrics"] for name, given in calls if name == "after_val_epoch"
    )


@pytest.mark.parametrize(
    "kind, options",
    [
        ("EmptyCacheHook", {}),
        ("ProfilerHook", {"by_epoch": False, "profile_times": 2, "json_trace_path": "trace.json"}),
    ],
)
def test_the_others_that_are_allowed_run(kind, options, tmp_path):
    if "json_trace_path" in options:
        options["json_trace_path"] = str(tmp_path / "trace.json")
    run = Run(
        {**small(length={"iterations": 3}), "custom_hooks": hook(kind, **options)},
        tmp_path / "run",
        quiet=True,
    )
    run.train(only=["alone"])
    plain = Run(small(length={"iterations": 3}), tmp_path / "plain", quiet=True)
    plain.train(only=["alone"])
    assert same(weights(run, "alone")["state_dict"], weights(plain, "alone")["state_dict"])
    assert kind != "ProfilerHook" or "traceEvents" in (tmp_path / "trace.json").read_text()


def test_budgets_that_a_hook_has_made_unequal_are_said_in_results_report_and_on_screen(
    tmp_path, capsys
):
    ends = [{"type": "small_parts.EndAt", "stage": "distilled", "iterations": 4}]
    run = Run({**small(length={"iterations": 6}), "custom_hooks": ends}, tmp_path / "run")
    stages = run.train()["stages"]
    assert (
        stages["distilled"]["ended_early"] == {"iterations": 4, "of": 6}
        and "ended_early" not in stages["alone"]
    )
    assert (
        "warning: a hook has ended distilled after 4 of 6 iterations: alone and distilled have not "
        "had the same budget" in (capsys.readouterr().err)
    )
    page = " ".join((run.work_dir / "report.html").read_text().split())
    assert (
        "the two have not had the same budget, since a hook has ended distilled after 4 of 6 "
        "iterations" in page
    )
    assert (
        "and the same number of steps" not in page
        and "so the two have not had the same number of steps" in page
    )
    ended = stages["distilled"]["ended_early"]
    run.files.finish("alone", {**stages["alone"], "ended_early": ended})
    # both, after as many steps
    assert not run.ended_early
