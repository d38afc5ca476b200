"""Figures of a run over a stream of experiences: accuracy matrices, accuracy and forgetting after
each experience, where the old and the new model look, and what was taken from the pool of
unlabelled images.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdtasks.core.stages import Stage
from kdtasks.incremental.pictures.accuracy import CLASS_IL, TASK_IL, draw_course, draw_matrices
from kdtasks.incremental.pictures.attention import attention_of, draw_attention
from kdtasks.incremental.pictures.pool import draw_picked, picked_of

if TYPE_CHECKING:
    from kdtasks.engine.run import Run


def draw(run: "Run", colors: Mapping[str, str]) -> list[tuple]:
    """``[(title, figure)]``: all that there is to see so far.

    Args:
        run: stages may be missing.
        colors: by name of the stage.
    """
    arms, drawn = arms_of(run), []
    if arms:
        class_il, task_il = (
            {goal: run.done[stage.name][key] for goal, stage in arms.items()}
            for key in ("matrix", "matrix_task_il")
        )
        joint = next((stage.name for stage in run.experiment.arms.joint), "")
        result = run.done.get(joint, {})
        wholes = [result.get(key) for key in ("average_accuracy", "average_accuracy_task_il")]
        for matrices, meaning in ((class_il, CLASS_IL), (task_il, TASK_IL)):
            drawn.append(
                draw_matrices(
                    {arms[goal].name: matrix for goal, matrix in matrices.items()}, meaning
                )
            )
        drawn.append(draw_course(class_il, task_il, colors, wholes, joint))
        path = run.experiment.config["distiller"].get("attention")
        drawn += [draw_attention(*attention_of(run, arms, path))] if path else []
    picked = picked_of(run)
    return [*drawn, draw_picked(picked)] if picked else drawn


def arms_of(run: "Run") -> dict[str, Stage]:
    """For the control and for the final student: the last finished stage on the way to it, where
    this has a whole matrix of at least two experiences.
    """
    experiment, arms = run.experiment, {}
    control, final = experiment.arms.control, experiment.arms.final
    for goal in experiment.arms.pair:
        # a control on its own has its own beginning as the final student
        if control and goal is final and goal in experiment.chain(control):
            continue
        whole_stages = [
            stage
            for stage in experiment.chain(goal)
            if _is_whole(run.done.get(stage.name, {}).get("matrix", []))
        ]
        arms |= {goal.name: whole_stages[-1]} if whole_stages else {}
    return arms


def _is_whole(matrix: Sequence[Sequence[float]]) -> bool:
    return len(matrix) > 1 and all(len(row) == i + 1 for i, row in enumerate(matrix))
