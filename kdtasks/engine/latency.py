"""How long one call takes."""

import statistics
import time
from collections.abc import Callable


def median_ms(
    call: Callable[[], object], rounds: int = 100, seconds: float = 5.0
) -> tuple[float, int]:
    """Median milliseconds of a call, and of how many, after a tenth as many to warm up.

    Args:
        call: returns when its work is done: on CUDA it synchronizes.
        rounds: at most.
        seconds: at most, of warming up and rounds together; one round there always is.
    """
    started = time.perf_counter()
    for _ in range(max(1, rounds // 10)):
        call()
        if time.perf_counter() - started > seconds / 2:
            break
    taken: list[float] = []
    while not taken or (len(taken) < rounds and time.perf_counter() - started < seconds):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return 1000 * statistics.median(taken), len(taken)
