"""Runs of a few seconds, and runs that are interrupted."""

from sj_ottt.run import training
from sj_ottt.run.config import TrainConfig


def train(options, *, resume=False, **changes):
    return training.train(TrainConfig(**{**options, **changes}), resume=resume)


def interrupt_after(monkeypatch, name, calls):
    """Have a method of `TrainingRun` interrupt the run when it was called so often before."""
    method, count = getattr(training.TrainingRun, name), 0

    def wrapper(self, *args):
        nonlocal count
        count += 1
        if count > calls:
            raise KeyboardInterrupt
        return method(self, *args)

    monkeypatch.setattr(training.TrainingRun, name, wrapper)
