"""How a stage goes on: what ``last.pth`` keeps beside the weights, and how that is put back."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdtasks.engine import checkpoint

if TYPE_CHECKING:
    from kdtasks.engine.runner import StageRunner


def process_state(runner: "StageRunner") -> dict[str, Any]:
    """What each process has for itself: random streams, attributes, losses not read yet."""
    return {
        "random": checkpoint.random_state(),
        "attributes": runner.held.changed(),
        "unread": runner.loop.buffer.state(),
    }


def resume_state(runner: "StageRunner", of_processes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All that :func:`resume_from` puts back but for the weights that are evaluated.

    Args:
        runner: of the stage, between two steps.
        of_processes: of each process, its :func:`process_state`.
    """
    distiller, loop = runner.distiller, runner.loop
    return {
        "stopped": loop.stop_training,
        "iteration": loop.iter,
        "length": loop.max_iters,
        "seconds": runner.seconds,
        "training_seconds": loop.seconds,
        "best": runner.best,
        "metrics": runner.metrics,
        "history": runner.history,
        "unreadable": runner.unreadable,
        "learners": [distiller.model(role).state_dict() for role in distiller.learners],
        "losses": distiller.losses.state_dict(),
        "optimizer": runner.stepper.state_dict(),
        "schedulers": [
            {k: v for k, v in s.state_dict().items() if not callable(v)}
            for s in runner.param_schedulers
        ],
        **{
            key: [state[key] for state in of_processes]
            for key in ("random", "attributes", "unread")
        },
    }


def resume_from(runner: "StageRunner", path: Path) -> None:
    """Put everything back to where ``path`` (a ``last.pth``) left it.

    Raises:
        ValueError: the file is not whole, or not of this stage.
    """
    state = checkpoint.load(path)
    resume, distiller, loop = state["resume"], runner.distiller, runner.loop
    _check(resume, path, runner.world_size, loop.max_iters)
    for role, weights in zip(distiller.learners, resume["learners"], strict=True):
        distiller.model(role).load_state_dict(weights)
    if runner.average:
        runner.average.model.load_state_dict(state["state_dict"])
    distiller.losses.load_state_dict(resume["losses"])
    runner.stepper.load_state_dict(resume["optimizer"])
    for scheduler, scheduler_state in zip(
        runner.param_schedulers, resume["schedulers"], strict=True
    ):
        scheduler.load_state_dict(scheduler_state)
    attributes = resume.get("attributes", [{}] * runner.world_size)
    runner.held.put_back(attributes[runner.rank], runner.device)
    # NaN: of a checkpoint that does not say it
    loop.move_to(resume["iteration"], resume.get("training_seconds", math.nan))
    loop.stop_training = resume.get("stopped", False)
    runner.metrics, runner.history = resume["metrics"], resume["history"]
    runner.unreadable = resume.get("unreadable", {})
    runner.best, runner.seconds = resume["best"], resume["seconds"]
    unread = resume.get("unread", [[]] * runner.world_size)
    loop.buffer.load_state(unread[runner.rank], runner.device)
    runner.call_hook("after_load_checkpoint", checkpoint=state)
    checkpoint.set_random_state(resume["random"][runner.rank])
    # a kill between the two files
    if runner.rank == 0:
        checkpoint.save_json(runner.history, runner.folder / "history.json")


def _check(resume: dict, path: Path, world_size: int, length: int) -> None:
    if len(resume["random"]) != world_size:
        raise ValueError(
            f"{str(path)!r} is of a run with {len(resume['random'])} processes and cannot go "
            f"on exactly with {world_size}"
        )
    if resume["length"] != length:
        raise ValueError(
            f"{str(path)!r} is of a stage of {resume['length']} iterations, this one has "
            f"{length}: the data has changed"
        )


def take_optimizer_state(runner: "StageRunner", path: Path) -> None:
    """Go on with the momentum in another stage's ``last.pth``; the learning rate stays this
    stage's own.
    """
    optimizer = runner.stepper.optimizer
    former = checkpoint.load(path)["resume"]["optimizer"]["state"]
    optimizer.load_state_dict({**optimizer.state_dict(), "state": former})
