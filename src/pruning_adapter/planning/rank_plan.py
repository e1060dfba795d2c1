"""`RankPlan`: at which rank LoRA trains each block. Section "importance-oriented rank-varied LoRA" of the paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

from pruning_adapter.architectures.ranges import lists_from_ranges, to_ranges
from pruning_adapter.architectures.shapes import ModelIdentity
from pruning_adapter.architectures.spec import ATTENTION_ROLES, FEED_FORWARD_ROLES, Kind
from pruning_adapter.errors import CheckpointError, PlanError
from pruning_adapter.importance.normalize import Scope
from pruning_adapter.importance.scores import ImportanceScores
from pruning_adapter.planning.pruning_plan import PruningPlan
from pruning_adapter.storage import read_json, write_json

__all__ = ["ALL_ROLES", "ROLES", "TARGETS", "RankPlan", "Target", "plan_ranks"]

KIND = "pruning-adapter ranks"
HIGHEST_RANK = 2**16
"""More than any linear map has rows; beyond it a wrong file would fill the memory."""
SCHEMA = 2
ROLES = ("query", "key", "value", "output")
"""What the paper adapts."""
ALL_ROLES = (*ATTENTION_ROLES, "output", *FEED_FORWARD_ROLES, "down")
"""Every linear map of a block."""
TARGETS = {"attention": ROLES, "all-linear": ALL_ROLES}

Target = Literal["attention", "all-linear"]

Kept = tuple[tuple[int, ...], ...]
BlockImportance = Literal["sum", "mean", "equal"]


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """The LoRA rank of every block, at the sizes that a pruning plan leaves."""

    model: ModelIdentity
    kept_heads: tuple[tuple[int, ...], ...]
    """Of the pruning plan that these ranks belong to."""
    kept_neurons: tuple[tuple[int, ...], ...] = ()
    """Of the pruning plan too; left out: all."""
    ranks: tuple[int, ...]
    """One per attention; 0 trains no LoRA there. An attention without heads has rank 0."""
    feed_forward_ranks: tuple[int, ...] = ()
    """One per feed-forward, likewise; left out: 0 everywhere."""
    roles: tuple[str, ...] = ROLES
    """Which projections are adapted."""
    origin: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """How the plan was made. For the record."""

    def __post_init__(self) -> None:
        if not self.feed_forward_ranks:
            object.__setattr__(self, "feed_forward_ranks", (0,) * len(self.model.feed_forwards))
        # Units that cannot be are refused there, and kept neurons filled in.
        plan = PruningPlan(
            model=self.model,
            kept_heads=self.kept_heads,
            kept_neurons=self.kept_neurons,
            dense_parameters=0,
            allow_empty_blocks=True,
        )
        object.__setattr__(self, "kept_neurons", plan.kept_neurons)
        for ranks, keeps in ((self.ranks, self.kept_heads), (self.feed_forward_ranks, self.kept_neurons)):
            if len(ranks) != len(keeps):
                raise PlanError(f"{len(ranks)} ranks were given for {self.model}; give one a block.")
            for block, (rank, kept) in enumerate(zip(ranks, keeps, strict=True)):
                if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank <= HIGHEST_RANK:  # pyright: ignore[reportUnnecessaryIsInstance]
                    raise PlanError(f"Block {block} has rank {rank!r}; a rank is a whole number in 0-{HIGHEST_RANK}.")
                if rank and not kept:
                    what = "heads" if keeps is self.kept_heads else "neurons"
                    raise PlanError(f"Block {block} has rank {rank}, but no {what}; give it rank 0.")
        unknown = [role for role in self.roles if role not in ALL_ROLES]
        if unknown or len(set(self.roles)) != len(self.roles) or not self.roles:
            raise PlanError(f"roles is {list(self.roles)}; name one or more of {', '.join(ALL_ROLES)}, each once.")
        if not any(self.all_ranks):
            raise PlanError("All ranks are 0: nothing would be adapted. Give at least one block a rank.")

    @property
    def all_ranks(self) -> tuple[int, ...]:
        """One rank per site: attentions, then feed-forwards."""
        return self.ranks + self.feed_forward_ranks

    @property
    def lora_parameters(self) -> int:
        """Entries of all A and B, exactly, at the pruned sizes."""
        return sum(
            site.lora_parameters(kept, rank, self.roles)
            for site, kept, rank in zip(
                self.model.all_sites, self.kept_heads + self.kept_neurons, self.all_ranks, strict=True
            )
        )

    @property
    def trainable_parameters(self) -> int:
        """LoRA and normalisation layers, exactly; a task head comes on top (the paper's counts leave it out too)."""
        return self.lora_parameters + self.model.norm_parameters

    def __str__(self) -> str:
        ranks = " ".join(str(rank) for rank in self.ranks)
        if any(self.feed_forward_ranks):
            ranks += f"; feed-forward: {' '.join(str(rank) for rank in self.feed_forward_ranks)}"
        return (
            f"LoRA ranks by block: {ranks} on {', '.join(self.roles)}\n"
            f"trainable: {self.trainable_parameters:,} ({self.lora_parameters:,} LoRA, "
            f"{self.model.norm_parameters:,} normalisation), without the task head"
        )

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, for files and for the adapter's config."""
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "origin": dict(self.origin),
            "ranks": list(self.ranks),
            "feed_forward_ranks": list(self.feed_forward_ranks),
            "roles": list(self.roles),
            "kept_heads": [list(kept) for kept in self.kept_heads],
            "kept_neurons": [to_ranges(kept) for kept in self.kept_neurons],
            "model": self.model.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "RankPlan":
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: damaged, or of another schema.
            PlanError: ranks that cannot be.
        """
        if value.get("schema") != SCHEMA:
            raise CheckpointError(f"The rank plan has schema {value.get('schema')!r}; this release reads {SCHEMA}.")
        try:
            return cls(
                model=ModelIdentity.from_json(value["model"]),
                kept_heads=tuple(tuple(block) for block in value["kept_heads"]),
                kept_neurons=lists_from_ranges(value["kept_neurons"]),
                ranks=tuple(value["ranks"]),
                feed_forward_ranks=tuple(value["feed_forward_ranks"]),
                roles=tuple(value["roles"]),
                origin=dict(value["origin"]),
            )
        except PlanError:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise CheckpointError(f"The rank plan is incomplete or damaged: {error!r}.") from error

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "RankPlan":
        """Read what `save` wrote.

        Raises:
            CheckpointError: not a rank plan, or a damaged one.
            PlanError: ranks that cannot be.
        """
        content = read_json(path, kind=KIND)
        try:
            return cls.from_json(content)
        except (CheckpointError, PlanError) as error:
            raise type(error)(f"{path}: {error}") from error


def plan_ranks(
    scores: ImportanceScores,
    plan: PruningPlan,
    *,
    top_blocks: int = 4,
    high: int = 8,
    low: int = 4,
    budget: int | None = None,
    target: Target = "attention",
    roles: Sequence[str] | None = None,
    block_importance: BlockImportance = "sum",
    normalization: Scope = "block",
) -> RankPlan:
    """Give blocks that matter more a higher rank.

    The paper's rule: the `top_blocks` most important blocks get rank `high`, the others `low`. With `budget` instead,
    ranks are spread in proportion to block importance, at least 1 a block.

    Args:
        scores: of the same model as `plan`.
        plan: which heads stay; only they count for a block's importance.
        top_blocks: how many blocks get the high rank. Of equal ones the earlier.
        high: rank of those blocks.
        low: rank of the others.
        budget: the most parameters that may train (LoRA and normalisation layers; the task head not counted).
        target: "attention" adapts query, key, value and output, as in the paper; "all-linear" the feed-forward too.
        roles: the projections to adapt, by name, instead of `target`.
        block_importance: a block's importance is the "sum" of its kept units' normalised scores (a block with many
            useful heads has more to adapt), or their "mean". The paper leaves it open. "equal" spreads ranks evenly,
            the control for both. Attentions and feed-forwards are ranked among themselves; where one kind was not
            scored, it follows the other in its block.
        normalization: see `plan_pruning`.

    Raises:
        PlanError: scores of another model, numbers out of range, or a budget below the smallest possible plan.
    """
    if block_importance not in get_args(BlockImportance):
        raise PlanError(f"block_importance is {block_importance!r}; use one of {', '.join(get_args(BlockImportance))}.")
    for name, value in (("top_blocks", top_blocks), ("high", high), ("low", low), ("budget", budget)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
            raise PlanError(f"{name} is {value!r}; it must be a whole number.")
    if not scores.model.same_sizes(plan.model):
        raise PlanError(
            f"The scores are of {scores.model}, the plan is for {plan.model}; use scores of the same model."
        )
    if target not in TARGETS:
        raise PlanError(f"target is {target!r}; use one of {', '.join(TARGETS)}.")
    chosen = tuple(TARGETS[target] if roles is None else roles)
    kept, sites = plan.kept, plan.model.all_sites
    importance = [1.0] * len(sites)
    if block_importance != "equal":
        importance = _importance_of_sites(scores, plan, block_importance, normalization)
    live = [site for site, units in enumerate(kept) if units and sites[site].lora_parameters(units, 1, chosen)]
    origin: dict[str, Any] = {"block_importance": block_importance, "normalization": normalization}
    if budget is None:
        if not 0 <= top_blocks <= len(plan.model.sites):
            raise PlanError(f"top_blocks is {top_blocks}, but the model has {len(plan.model.sites)} blocks.")
        if not 0 <= low <= high or high < 1:
            raise PlanError(f"Ranks are high={high} and low={low}; they need high >= low >= 0 and high >= 1.")
        ranks = [0] * len(sites)
        for kind in ("heads", "neurons"):
            of_kind = [site for site in live if sites[site].kind == kind]
            for place, site in enumerate(sorted(of_kind, key=lambda site: (-importance[site], site))):
                ranks[site] = high if place < top_blocks else low
        origin |= {"top_blocks": top_blocks, "high": high, "low": low}
    else:
        ranks = _spread(budget, importance, plan, chosen)
        origin |= {"budget": budget}
    attentions = len(plan.model.sites)
    return RankPlan(
        model=plan.model,
        kept_heads=plan.kept_heads,
        kept_neurons=plan.kept_neurons,
        ranks=tuple(ranks[:attentions]),
        feed_forward_ranks=tuple(ranks[attentions:]),
        roles=chosen,
        origin=origin,
    )


def _importance_of_sites(
    scores: ImportanceScores, plan: PruningPlan, how: BlockImportance, normalization: Scope
) -> list[float]:
    blocks, attentions = plan.model.blocks_of_sites, len(plan.model.sites)
    found: dict[int, float] = {}
    places: tuple[tuple[Kind, int, Kept], ...] = (
        ("heads", 0, plan.kept_heads),
        ("neurons", attentions, plan.kept_neurons),
    )
    for kind, first, keeps in places:
        scored = scores.normalized(normalization, kind) if kind in scores.kinds else ()
        for site, (values, there, kept) in enumerate(zip(scored, scores.kept_of(kind), keeps, strict=False)):
            stay = set(kept)
            of_kept = [value for value, unit in zip(values.tolist(), there, strict=True) if unit in stay]
            total = sum(of_kept)
            found[first + site] = total / len(of_kept) if how == "mean" and of_kept else total
        # The two kinds are comparable only as shares of their own.
        mean = sum(found[first + site] for site in range(len(scored))) / max(len(scored), 1) or 1.0
        found |= {first + site: found[first + site] / mean for site in range(len(scored))}
    by_block: dict[int, float] = {}
    for site, importance in found.items():
        by_block[blocks[site]] = by_block.get(blocks[site], 0.0) + importance
    return [found.get(site, by_block.get(blocks[site], 0.0)) for site in range(len(blocks))]


def _spread(budget: int, importance: Sequence[float], plan: PruningPlan, roles: tuple[str, ...]) -> list[int]:
    """The ranks nearest to proportional that fit: each step goes to the block that is furthest below its share.

    This is the highest-averages method of apportionment (Jefferson, D'Hondt) with a floor of one, so ranks never
    decrease with importance where blocks cost the same, and a larger budget never takes a rank away.
    """
    costs = [site.lora_parameters(kept, 1, roles) for site, kept in zip(plan.model.all_sites, plan.kept, strict=True)]
    ranks = [1 if cost else 0 for cost in costs]
    left = budget - plan.model.norm_parameters - sum(costs)
    if left < 0:
        raise PlanError(
            f"The budget is {budget:,} trainable parameters; rank 1 everywhere and the normalisation layers already "
            f"need {budget - left:,}. Raise the budget, or adapt fewer roles."
        )
    # A rank beyond the smaller side of a matrix adds parameters and no freedom.
    limits = [
        min(len(kept) * site.unit_size, site.out_features)
        for site, kept in zip(plan.model.all_sites, plan.kept, strict=True)
    ]
    while True:
        growing = [block for block, cost in enumerate(costs) if cost and ranks[block] < limits[block]]
        # A block of importance 0 comes last, and then all alike.
        best = max(
            growing, key=lambda block: (importance[block] / (ranks[block] + 1), -ranks[block], -block), default=None
        )
        # The rest is not filled up with cheaper blocks: the steps would then not be those of a larger budget.
        if best is None or costs[best] > left:
            return ranks
        ranks[best] += 1
        left -= costs[best]
