"""The tasks of a data set in several processes, in their order, the same to the bit for any number of them."""

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import torch

from .making import Made, Maker, Task

_MAKER: list[Maker] = []
"""In a worker: what makes its composites."""


def results(maker: Maker, tasks: list[Task], workers: int) -> Iterator[Made]:
    """What `maker` makes of each task; with one worker, in this process."""
    if workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker: how a sum is cut up decides its last bit
        try:
            yield from map(maker.attempt, tasks)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(maker,)) as executor:
        try:
            with _without_ctrl_c():
                made = executor.map(_attempt, tasks, chunksize=4)
            yield from made
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


def _begin(maker: Maker) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all; the main process tells it and tidies up
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(1)
    _MAKER[:] = [maker]


def _attempt(task: Task) -> Made:
    return _MAKER[0].attempt(task)


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes that are started in here are deaf to Ctrl-C until `_begin`: one that is only starting would print a
    traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
