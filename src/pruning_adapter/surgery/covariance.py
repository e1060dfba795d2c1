"""Least squares from running sums: what a linear map must change to make up for what its output lacks.

Everything is in float64, and as large as the map: it does not grow with the number of tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning_adapter.processes import add_up_

__all__ = ["Change", "Moments"]

_FLOOR = 1e-12
"""Variances below this share of the others are rounding, not data."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What to add to a linear map. Float64."""

    weight: Tensor
    """`(outputs, columns)`."""
    bias: Tensor | None
    """`(outputs,)`; None for a map without a bias."""
    ridge: float
    """The ridge it was found with, which is larger than the one asked for if the sums could not bear that."""


class Moments:
    """Sums of X^T X and R^T X over tokens, with a column of ones beside X for the means.

    X `(tokens, columns)` is what a linear map reads, R `(tokens, outputs)` is what its output lacks.
    """

    def __init__(self, columns: int, outputs: int, device: torch.device) -> None:
        """Args:
        columns: inputs of the map whose weights may change; 0 where only its bias may.
        outputs: its outputs.
        device: where to sum.
        """
        self._inputs = torch.zeros(columns + 1, columns + 1, dtype=torch.float64, device=device)
        self._lacking = torch.zeros(outputs, columns + 1, dtype=torch.float64, device=device)

    @property
    def tokens(self) -> int:
        """Tokens there were so far."""
        return int(self._inputs[-1, -1])

    def add(self, inputs: Tensor, lacking: Tensor) -> None:
        """Add tokens: `(tokens, columns)` and `(tokens, outputs)`, of any floating type."""
        wide = torch.cat([inputs.double(), inputs.new_ones(len(inputs), 1).double()], dim=1)
        self._inputs.addmm_(wide.T, wide)
        self._lacking.addmm_(lacking.double().T, wide)

    def add_up_(self) -> None:
        """Make them the sums over the tokens of all processes, each of which must call."""
        add_up_([self._inputs, self._lacking])

    def are_finite(self) -> bool:
        """Whether no token was infinite or not a number."""
        return bool(self._inputs.isfinite().all() and self._lacking.isfinite().all())

    def solve(self, ridge: float, *, bias: bool) -> Change:
        """The D and d that minimise mean |x D^T + d - r|^2 + lambda |D|^2, with lambda = ridge * mean variance of x.

        D = Cov(r, x) (Cov(x, x) + lambda)^-1 and d = mean(r) - D mean(x). Without a bias d is zero, and the second
        moments about zero take the place of the covariances. As D = d = 0 is among the candidates, the mean |...|^2 is
        never larger than that of changing nothing. At least one token is needed.

        Args:
            ridge: 0 or more; it is raised tenfold as often as the covariance is not positive definite.
            bias: whether d may differ from zero.
        """
        second, cross = self._inputs / self.tokens, self._lacking / self.tokens
        mean, lack = second[-1, :-1], cross[:, -1]
        covariance, target = second[:-1, :-1], cross[:, :-1]
        if bias:
            covariance, target = covariance - mean.outer(mean), target - lack.outer(mean)
        weight = torch.zeros_like(target)
        size = float(second.diagonal()[:-1].sum())
        # Inputs that never vary cannot tell what is lacking; the bias can.
        if float(covariance.trace()) > _FLOOR * size:
            weight, ridge = _solve(covariance, target, ridge)
        return Change(weight=weight, bias=lack - weight @ mean if bias else None, ridge=ridge)


def _solve(covariance: Tensor, target: Tensor, ridge: float) -> tuple[Tensor, float]:
    """`(outputs, columns)` and the ridge that was enough."""
    scale = covariance.diagonal().mean()
    while True:
        shifted = covariance.clone()
        shifted.diagonal().add_(ridge * scale)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        # A pivot made of rounding errors passes the factorisation, and then blows them up.
        if not failed and bool(factor.diagonal().min() ** 2 > _FLOOR * scale):
            return torch.cholesky_solve(target.T, factor).T, ridge
        ridge = max(10 * ridge, 1e-8)
