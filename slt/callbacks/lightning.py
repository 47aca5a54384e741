"""λ̂ inside Lightning's ``Trainer``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slt.callbacks.logs import numbers, warn
from slt.callbacks.monitor import LLCMonitor
from slt.isolation import preserved_random_state
from slt.parameters import first_few

if TYPE_CHECKING:
    from torch import nn

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError("slt.callbacks.lightning needs Lightning. Install slt-toolkit[lightning].") from error


class LLCCallback(Callback):
    """A Lightning callback around an :class:`slt.callbacks.LLCMonitor`.

    ``monitor.step(module, trainer.global_step)`` before training, where the step is 0, and after every batch; what it
    finds goes to the trainer's loggers, and is saved in Lightning's checkpoints. A logger that fails stops nothing. Of
    several ranks the first makes the estimates, and the others wait for it at their next collective.

    A fit takes up what its checkpoint has, and forgets all else that the monitor holds; one that goes on in the same
    trainer, without a checkpoint, forgets nothing.

    >>> trainer = Trainer(callbacks=[LLCCallback(LLCMonitor(data, loss_fn, every=500))])  # doctest: +SKIP

    Args:
        monitor: The monitor.
        part: Name of the submodule that ``loss_fn`` takes, such as ``"model"``; the whole module by default.
        name: Before the names of what is logged, such as ``"test/"``; two callbacks of one trainer need two.
    """

    def __init__(self, monitor: LLCMonitor, part: str = "", name: str = "") -> None:
        self.monitor, self.part, self.name = monitor, part, name
        self._restored: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """Under which Lightning's checkpoints hold what was logged."""
        return f"LLCCallback {self.name}"

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Forget what was restored for another stage: the checkpoint of this one is read after it."""
        self._restored = None

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Take up what the checkpoint has; and an estimate at the weights that training begins with, where one is due.

        Raises:
            ValueError: The module has no submodule of the name ``part``.
        """
        names = [name for name, _ in pl_module.named_modules()]
        if self.part not in names:  # before the first step of training, not at the first estimate
            raise ValueError(
                f"part: {self.part!r} is no submodule of {type(pl_module).__name__}; expected one of "
                f"{first_few(names[1:])}, or '' for all of it."
            )
        if self._restored is not None:
            self.monitor.load_state_dict(self._restored)
        elif trainer.global_step == 0 or trainer.ckpt_path:  # another training, or one that had no monitor
            self.monitor.reset()
        self._step(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, *arguments: Any, **more: Any) -> None:
        """An estimate, where one is due."""
        self._step(trainer, pl_module)

    def _step(self, trainer: Any, pl_module: nn.Module) -> None:
        step = trainer.global_step
        # a batch whose gradients are accumulated has the step of the one before; what is not due is over at once
        if not trainer.is_global_zero or step in self.monitor.logged or not self.monitor.schedule.due(step):
            return
        self.monitor.step(pl_module.get_submodule(self.part), step)
        if step in self.monitor.logged:
            for logger in trainer.loggers:
                found = numbers(self.monitor.logged[step])
                try:
                    with preserved_random_state():
                        logger.log_metrics({self.name + name: value for name, value in found.items()}, step)
                except Exception as error:  # a logger that is down stops no training
                    kind = type(logger).__name__
                    warn(f"LLCCallback: {kind} failed at step {step}: {type(error).__name__}: {error}", 2)

    def state_dict(self) -> dict[str, Any]:
        """What was logged so far, for Lightning's checkpoint."""
        return self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Have what was logged before taken up when training starts: ``trainer.test(ckpt_path=…)`` comes here too."""
        self._restored = state_dict
