"""Processes of one test, forked from a server that has imported torch and the test once."""

from torch import multiprocessing


def started(function, folder, count):
    """The processes of a function of its rank and a folder."""
    return multiprocessing.start_processes(
        function, (str(folder),), nprocs=count, join=False, start_method="forkserver"
    )


def finish(function, folder, count):
    """Run them to their end; an error in one of them is that of the test."""
    processes = started(function, folder, count)
    while not processes.join():
        pass
