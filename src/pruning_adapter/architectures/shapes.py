"""Sizes of a model's prunable parts, as pure numbers: what plans count with, without a model at hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pruning_adapter.architectures.head_index import kept_key_value_heads
from pruning_adapter.errors import CheckpointError

__all__ = ["ModelIdentity", "ProjectionShape", "SiteShape"]


@dataclass(frozen=True, kw_only=True)
class ProjectionShape:
    """A projection that writes heads."""

    roles: tuple[str, ...]
    in_features: int
    bias: bool


@dataclass(frozen=True, kw_only=True)
class SiteShape:
    """One attention of the dense model."""

    heads: int
    key_value_heads: int
    head_size: int
    projections: tuple[ProjectionShape, ...]
    out_features: int
    """Rows of the output projection."""

    def rows(self, roles: Sequence[str], kept: Sequence[int]) -> int:
        """Rows that `roles` have together when the query heads `kept` are left."""
        groups = len(kept_key_value_heads(kept, self.heads, self.key_value_heads))
        return self.head_size * sum(len(kept) if role == "query" else groups for role in roles)

    def parameters(self, kept: Sequence[int]) -> int:
        """Parameters that depend on the heads (all but the output bias) when `kept` are left."""
        written = sum(self.rows(p.roles, kept) * (p.in_features + p.bias) for p in self.projections)
        return written + len(kept) * self.head_size * self.out_features

    def lora_parameters(self, kept: Sequence[int], rank: int, roles: Sequence[str]) -> int:
        """Entries of A (rank x in) and B (out x rank) for every adapted matrix, at its pruned size.

        A fused matrix is adapted as a whole as soon as one of its roles is.
        """
        if not kept:
            return 0
        sizes = [
            p.in_features + self.rows(p.roles, kept) for p in self.projections if any(role in roles for role in p.roles)
        ]
        if "output" in roles:
            sizes.append(len(kept) * self.head_size + self.out_features)
        return rank * sum(sizes)


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Which model scores and plans speak of: its architecture, its sizes, and a fingerprint of its blocks' weights.

    The name and revision are for people: they are not compared.
    """

    model_type: str
    sites: tuple[SiteShape, ...]
    """Every attention, in the order the heads are numbered: block 0 first."""
    block_parameters: tuple[int, ...]
    """Parameters of every block, so that other feed-forward sizes do not pass as the same model."""
    norm_parameters: int
    """Parameters of the normalisation layers of trunk and blocks."""
    fingerprint: str | None
    """See `fingerprint_weights`; None where the weights were not at hand (a model on the meta device)."""
    name: str = ""
    revision: str | None = None

    @property
    def heads(self) -> tuple[int, ...]:
        """Heads of every block of the dense model."""
        return tuple(site.heads for site in self.sites)

    def __str__(self) -> str:
        counts = sorted(set(self.heads))
        heads = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
        size = self.sites[0].head_size if self.sites else 0
        name = f"{self.name!r}, " if self.name else ""
        return f"{name}{self.model_type}, {len(self.sites)} blocks x {heads} heads of {size}"

    def same_sizes(self, other: "ModelIdentity") -> bool:
        """Same architecture and sizes, whatever the weights."""
        return (self.model_type, self.sites, self.block_parameters) == (
            other.model_type,
            other.sites,
            other.block_parameters,
        )

    def same_weights(self, other: "ModelIdentity") -> bool:
        """Same fingerprint; an unknown one equals none."""
        return self.fingerprint is not None and self.fingerprint == other.fingerprint

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; equal neighbouring blocks are written once, with a repeat count."""
        sites: list[dict[str, Any]] = []
        for site, equal in groupby(self.sites):
            sites.append(
                {
                    "repeat": len(list(equal)),
                    "heads": site.heads,
                    "key_value_heads": site.key_value_heads,
                    "head_size": site.head_size,
                    "projections": [
                        {"roles": list(p.roles), "in_features": p.in_features, "bias": p.bias} for p in site.projections
                    ],
                    "out_features": site.out_features,
                }
            )
        return {
            "model_type": self.model_type,
            "name": self.name,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "norm_parameters": self.norm_parameters,
            "block_parameters": list(self.block_parameters),
            "sites": sites,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelIdentity":
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: a field is missing or of the wrong type.
        """
        try:
            sites: list[SiteShape] = []
            for entry in value["sites"]:
                repeat = int(entry["repeat"])
                if not 0 < repeat <= 10_000:
                    raise ValueError(f"repeat is {repeat}")
                site = SiteShape(
                    heads=_count(entry["heads"]),
                    key_value_heads=_count(entry["key_value_heads"]),
                    head_size=_count(entry["head_size"]),
                    projections=tuple(
                        ProjectionShape(
                            roles=tuple(str(role) for role in p["roles"]),
                            in_features=_count(p["in_features"]),
                            bias=bool(p["bias"]),
                        )
                        for p in entry["projections"]
                    ),
                    out_features=_count(entry["out_features"]),
                )
                if site.heads % site.key_value_heads:
                    raise ValueError(f"{site.heads} heads do not share {site.key_value_heads} key/value heads evenly")
                sites += [site] * repeat
            if not sites:
                raise ValueError("it has no blocks")
            fingerprint, revision = value["fingerprint"], value["revision"]
            return cls(
                model_type=str(value["model_type"]),
                sites=tuple(sites),
                block_parameters=tuple(int(count) for count in value["block_parameters"]),
                norm_parameters=int(value["norm_parameters"]),
                fingerprint=None if fingerprint is None else str(fingerprint),
                name=str(value["name"]),
                revision=None if revision is None else str(revision),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"The model identity in this file is damaged: {error!r}.") from error


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ValueError(f"{value!r} is not a positive count")
    return value
