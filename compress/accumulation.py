"""Micro-batches of one optimizer step that hold unequal numbers of labels, weighed exactly.

Lightning averages the losses of A micro-batches, whatever each holds. Where answers are short in
some rows, a label of a sparse micro-batch would count as much as many of a full one, and
`accumulate` would change what is learned. Wanted is

    gradient = sum_i n_i * grad L_i / sum_i n_i        n_i: labels of micro-batch i, L_i: its mean

The n_i to come are unknown while the first are computed. So each loss is weighed by n_i / c, and
the gradients are multiplied by A * c / sum_i n_i before they are clipped. c are the positions of
the first micro-batch: no weight is above 1 by much, which fp16 would not bear.
"""

from collections.abc import Hashable, Iterable

from torch import Tensor, nn

from compress.sharding import local


class AccumulationWindow:
    """The labels of the optimizer step that is under way.

    >>> window = AccumulationWindow()
    >>> weights = [window.weight(0, labels=n, positions=8) for n in (2, 6)]
    >>> weights, window.factor(2)  # 2 / 8 of the step's labels, then 6 / 8: each over A
    ([0.25, 0.75], 2.0)
    """

    def __init__(self) -> None:
        """No step is under way."""
        self.step: Hashable = None
        self.labels: Tensor | float = 0.0
        self.positions = 1.0

    def begins(self, step: Hashable) -> bool:
        """Whether a micro-batch of this optimizer step would be its first."""
        return step != self.step

    def weight(self, step: Hashable, *, labels: Tensor | float, positions: float) -> Tensor | float:
        """What the loss of a micro-batch is multiplied by.

        Args:
            step: tells one optimizer step from the next.
            labels: of this micro-batch, the mean over ranks; 1 at least.
            positions: of the step's first micro-batch, the mean over ranks; later ones are unused.
        """
        if self.begins(step):
            self.step, self.labels, self.positions = step, 0.0, positions
        self.labels = self.labels + labels
        return labels / self.positions

    def factor(self, accumulate: int) -> Tensor | float:
        """What the summed gradients are multiplied by, and the summed losses: A * c / sum n."""
        return accumulate * self.positions / self.labels


def scale_gradients(parameters: Iterable[nn.Parameter], factor: Tensor | float) -> None:
    """Multiplies gradients in place; those that are sharded by their own share."""
    for parameter in parameters:
        if parameter.grad is not None:
            local(parameter.grad).mul_(factor)
