"""Learning from a teacher's answers beside the labels: Hinton, Vinyals and Dean 2015 (arXiv:1503.02531)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

__all__ = ["TEACHER", "distillation_loss", "with_teacher"]

TEACHER = "teacher_logits"
"""Name of a feature: what the teacher says about the example."""
SHARE = 0.5
"""Of the loss that comes from the teacher; the rest comes from the labels."""
TEMPERATURE = 2.0


def with_teacher(features: Sequence[dict[str, Any]], logits: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Tokenised examples, each with what a teacher says about it: `logits`, `(examples, classes)`."""
    return [{**feature, TEACHER: row} for feature, row in zip(features, logits.tolist(), strict=True)]


def distillation_loss(loss: Tensor, logits: Tensor, teacher: Tensor) -> Tensor:
    """The labels' loss and the teacher's, by halves.

    Of classes, the teacher's is the divergence from its probabilities at temperature T, times T squared, so that its
    gradient has the size of the labels'; of a single number, the squared difference.

    Args:
        loss: of the labels.
        logits: the model's, `(examples, classes)`.
        teacher: the teacher's, likewise.
    """
    # Softmax in half precision would round the small probabilities away, which carry what a teacher knows.
    logits, teacher = logits.float(), teacher.float()
    if logits.shape[-1] == 1:
        apart = functional.mse_loss(logits, teacher)
    else:
        apart = TEMPERATURE**2 * functional.kl_div(
            functional.log_softmax(logits / TEMPERATURE, dim=-1),
            functional.log_softmax(teacher / TEMPERATURE, dim=-1),
            reduction="batchmean",
            log_target=True,
        )
    return (1 - SHARE) * loss + SHARE * apart
