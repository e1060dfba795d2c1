"""What was counted over examples, by one process or by all."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pruning_adapter.importance.backward import check_seen
from pruning_adapter.processes import add_up_, gather, process_count

__all__ = ["Tally"]


@dataclass
class Tally:
    """Sums over examples. Added up over processes they are those of one process that saw all examples."""

    halves: tuple[list[Tensor], list[Tensor]]
    """Per site `(units,)`: over every other example, and over the rest."""
    examples: int = 0
    tokens: int = 0
    """That are not padding."""
    seen: set[float] = field(default_factory=set[float])
    """Classes."""

    @classmethod
    def of_sites(cls, units: list[int], device: torch.device) -> "Tally":
        """Nothing yet."""
        first, second = ([torch.zeros(count, dtype=torch.float64, device=device) for count in units] for _ in "ab")
        return cls(halves=(first, second))

    def count(self, examples: int, tokens: int, seen: set[float]) -> None:
        """Count a batch."""
        self.examples += examples
        self.tokens += tokens
        self.seen |= seen

    def of_all(self) -> "Tally":
        """The sums over all processes, each of which must ask; this one's own stay as they are."""
        if process_count() == 1:
            return self
        counts = gather((self.examples, self.tokens, self.seen))
        halves = tuple([tensor.clone() for tensor in half] for half in self.halves)
        add_up_([tensor for half in halves for tensor in half])
        return Tally(
            halves=(halves[0], halves[1]),
            examples=sum(examples for examples, _, _ in counts),
            tokens=sum(tokens for _, tokens, _ in counts),
            seen=set[float]().union(*(seen for _, _, seen in counts)),
        )

    def check(self, *, allow_one_class: bool) -> None:
        """Refuse a sample that tells nothing; see `check_seen`."""
        check_seen(self.examples, self.tokens, self.seen, allow_one_class=allow_one_class)
