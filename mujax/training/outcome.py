"""The outcome of a run: one rule of when it ends, for single runs and lanes of a sweep."""

import dataclasses

from mujax.config import TrainConfig


def is_sound(loss, bound):
    """Tells whether a loss (or each of an array) is at most `bound`; larger or NaN is diverged."""
    return loss <= bound  # False for NaN


@dataclasses.dataclass
class Outcome:
    """The result of a run so far, and whether the run has ended.

    A run ends at the first step whose training or validation loss is not sound (it diverged), at
    the first evaluation that fails train.give_up_step and train.give_up_loss (it was stopped), or
    with the evaluation after its last step. The rule looks at this run alone.

    evals: (step, validation loss in nats), in order.
    diverged_at, stopped_at: the step of such an end.
    """

    train: TrainConfig
    evals: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    diverged_at: int | None = None
    stopped_at: int | None = None

    @property
    def status(self) -> str:
        """The status of the run's row: ok, diverged or stopped."""
        return (
            "diverged"
            if self.diverged_at is not None
            else "stopped"
            if self.stopped_at is not None
            else "ok"
        )

    @property
    def has_ended(self) -> bool:
        return self.status != "ok" or self._is_evaluated(self.train.steps)

    @property
    def best_step(self) -> int | None:
        """The first step with the lowest validation loss; None if the untrained weights have it."""
        return min(self.evals, key=lambda pair: pair[1], default=(0, 0.0))[0] or None

    def must_evaluate(self, step: int) -> bool:
        """Tells whether a run that has not ended is to be evaluated at a step, and was not yet."""
        is_due = step % self.train.eval_interval == 0 or step == self.train.steps
        return is_due and not self.has_ended and not self._is_evaluated(step)

    def trained(self, step: int, loss: float) -> None:
        """Records the training loss of a step, that of the weights before its update."""
        if not is_sound(loss, self.train.divergence_loss):
            self.diverged_at = step

    def evaluated(self, step: int, loss: float) -> None:
        """Records the mean validation loss at a step."""
        self.evals.append((step, loss))
        if not is_sound(loss, self.train.divergence_loss):
            self.diverged_at = step
        elif 0 < self.train.give_up_step <= step and loss > self.train.give_up_loss:
            self.stopped_at = step

    def _is_evaluated(self, step: int) -> bool:
        return bool(self.evals) and self.evals[-1][0] == step
