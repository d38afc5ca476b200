"""What a run writes down: after each stage its results, at its end the student and the report."""

from typing import TYPE_CHECKING

from kdtasks.core import Stage
from kdtasks.engine import checkpoint, deployment, notices, robustness
from kdtasks.engine.assemblies import write_assemblies
from kdtasks.engine.model_factory import model_facts
from kdtasks.engine.teacher_card import doubts

if TYPE_CHECKING:
    from kdtasks.engine.run import Run
    from kdtasks.engine.stage_training import Outcome


def note_stage(run: "Run", stage: Stage, outcome: "Outcome") -> None:
    """Write down the results of a stage that has just finished."""
    experiment, files = run.experiment, run.files
    further = experiment.task.summary(run, stage, outcome.metrics)
    if experiment.config["onnx"] and stage.model == "student":
        from kdtasks.engine.export import shipped

        further = {**further, **shipped(experiment, stage, files)}
    if experiment.config["packed"] and stage.model == "student":
        from kdtasks.engine.export import packed

        further = {**further, **packed(experiment, stage, files)}
    run.notices.unreadable(outcome.facts.get("unreadable", {}))
    for name, taken in outcome.facts.get("routes", {}).items():
        run.notices.say(f"{stage.name}: the route of {name} was {', '.join(taken)}")
    results = {**outcome.metrics, **further, **outcome.facts}
    if stage.name in run.cards:
        results["teachers"] = run.cards[stage.name]
    if stage.role == "teacher" and experiment.config["teacher_card"]:
        model = run.trained(stage.name)
        for text in doubts(experiment, stage, stage.model, model, outcome.metrics):
            run.notices.warn(text)
    files.finish(stage.name, results, outcome.timing)
    weak = notices.weak_teachers(experiment, run.done)
    if weak:
        run.notices.warn(weak)
    checkpoint.save_json(run.results, run.work_dir / "results.json")


def finish_run(run: "Run") -> None:
    """Write what a run is for: student.pth, further models, the deployment's figures, results.json
    and the report.
    """
    from kdtasks.engine.report import write_report

    experiment, files = run.experiment, run.files
    final = experiment.final
    if final and final.name in run.done:
        state = checkpoint.load(files.weights(final.name))
        student = run.work_dir / "student.pth"
        checkpoint.save_weights(state["state_dict"], state["meta"], student)
        learners = state["resume"]["learners"][1:]
        for k, (weights, spec) in enumerate(zip(learners, experiment.config["peers"]), start=1):
            about = {**state["meta"], **model_facts(spec)}
            checkpoint.save_weights(weights, about, run.work_dir / f"peer{k}.pth")
        further = write_assemblies(experiment, files)
        if further:
            files.finish(final.name, {**run.done[final.name], **further})
        if experiment.config["deployment"] and not files.deployment:
            files.deployment = deployment.measure(run)
        if experiment.config["robustness"] and not files.robustness:
            files.robustness = robustness.measure(run)
        unequal = notices.unequal_budgets(experiment, run.done)
        if unequal:
            run.notices.warn(unequal)
    checkpoint.save_json(run.results, run.work_dir / "results.json")
    pictures = write_report(run)
    if experiment.config["vis_backends"]:
        from kdtasks.engine.trackers import send_report

        send_report(experiment, files, pictures)
