"""Sizes of a model's prunable parts, as pure numbers: what plans count with, without a model at hand."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pruning_adapter.architectures.ranges import MOST_UNITS
from pruning_adapter.architectures.spec import GROUP_ROLES, Kind
from pruning_adapter.architectures.unit_index import kept_groups
from pruning_adapter.errors import CheckpointError

__all__ = ["ModelIdentity", "ProjectionShape", "SiteShape", "public_name"]


@dataclass(frozen=True, kw_only=True)
class ProjectionShape:
    """A projection that writes units."""

    roles: tuple[str, ...]
    in_features: int
    bias: bool


@dataclass(frozen=True, kw_only=True)
class SiteShape:
    """One attention or one feed-forward of the dense model."""

    kind: Kind = "heads"
    units: int
    """Query heads, or neurons."""
    groups: int
    """Key/value heads; as many as units except under grouped-query attention."""
    unit_size: int
    """Width of a head; 1 for neurons."""
    projections: tuple[ProjectionShape, ...]
    out_features: int
    """Rows of the output projection."""
    shared: int = 0
    """Parameters that serve all units and go with the last of them, such as the norms of queries and keys."""

    @property
    def group_size(self) -> int:
        """Units that share a key and a value head."""
        return self.units // self.groups

    def rows(self, roles: Sequence[str], kept: Sequence[int]) -> int:
        """Rows that `roles` have together when the units `kept` are left."""
        groups = len(kept_groups(kept, self.units, self.groups))
        return self.unit_size * sum(groups if role in GROUP_ROLES else len(kept) for role in roles)

    def parameters(self, kept: Sequence[int]) -> int:
        """Parameters that depend on the units (all but the output bias) when `kept` are left."""
        if not kept:
            return 0
        written = sum(self.rows(p.roles, kept) * (p.in_features + p.bias) for p in self.projections)
        return written + len(kept) * self.unit_size * self.out_features + self.shared

    def lora_parameters(self, kept: Sequence[int], rank: int, roles: Sequence[str]) -> int:
        """Entries of A (rank x in) and B (out x rank) for every adapted matrix, at its pruned size.

        A fused matrix is adapted as a whole as soon as one of its roles is. The role of the output projection is
        "output" for heads and "down" for neurons.
        """
        if not kept:
            return 0
        sizes = [
            p.in_features + self.rows(p.roles, kept) for p in self.projections if any(role in roles for role in p.roles)
        ]
        if self.output_role in roles:
            sizes.append(len(kept) * self.unit_size + self.out_features)
        return rank * sum(sizes)

    @property
    def output_role(self) -> str:
        """What LoRA calls the output projection."""
        return "output" if self.kind == "heads" else "down"

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "units": self.units,
            "groups": self.groups,
            "unit_size": self.unit_size,
            "projections": [
                {"roles": list(p.roles), "in_features": p.in_features, "bias": p.bias} for p in self.projections
            ],
            "out_features": self.out_features,
            "shared": self.shared,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], kind: Kind) -> "SiteShape":
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: damaged.
        """
        site = cls(
            kind=kind,
            units=_count(entry["units"]),
            groups=_count(entry["groups"]),
            unit_size=_count(entry["unit_size"]),
            projections=tuple(
                ProjectionShape(
                    roles=tuple(str(role) for role in p["roles"]),
                    in_features=_count(p["in_features"]),
                    bias=bool(p["bias"]),
                )
                for p in entry["projections"]
            ),
            out_features=_count(entry["out_features"]),
            shared=int(entry["shared"]),
        )
        if entry["kind"] != kind:
            raise ValueError(f"a site of {entry['kind']!r} among the {kind}")
        if site.units % site.groups:
            raise ValueError(f"{site.units} heads do not share {site.groups} key/value heads evenly")
        return site


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Which model scores and plans speak of: its architecture, its sizes, and a fingerprint of its blocks' weights.

    The name and revision are for people: they are not compared.
    """

    model_type: str
    sites: tuple[SiteShape, ...]
    """Every attention, in the order in which plans number them: block 0 first. A decoder block with cross-attention has
    two."""
    feed_forwards: tuple[SiteShape, ...] = ()
    """Every feed-forward, block 0 first."""
    site_blocks: tuple[int, ...] = ()
    """Number of the block of every attention, then of every feed-forward; empty where every block has one of each."""
    block_parameters: tuple[int, ...]
    """Parameters of every block, so that sizes that no site shows do not pass as the same model."""
    norm_parameters: int
    """Parameters of the normalisation layers of trunk and blocks."""
    fingerprint: str | None
    """See `fingerprint_weights`; None where the weights were not at hand (a model on the meta device)."""
    name: str = ""
    revision: str | None = None

    @property
    def all_sites(self) -> tuple[SiteShape, ...]:
        """Every attention, then every feed-forward."""
        return self.sites + self.feed_forwards

    @property
    def blocks_of_sites(self) -> tuple[int, ...]:
        """For each of `all_sites`, the number of its block."""
        return self.site_blocks or (*range(len(self.sites)), *range(len(self.feed_forwards)))

    @property
    def heads(self) -> tuple[int, ...]:
        """Heads of every attention of the dense model."""
        return tuple(site.units for site in self.sites)

    @property
    def neurons(self) -> tuple[int, ...]:
        """Neurons of every feed-forward of the dense model."""
        return tuple(site.units for site in self.feed_forwards)

    def __str__(self) -> str:
        size = self.sites[0].unit_size if self.sites else 0
        name = f"{self.name!r}, " if self.name else ""
        return f"{name}{self.model_type}, {len(self.sites)} blocks x {_range(self.heads)} heads of {size}"

    def same_sizes(self, other: "ModelIdentity") -> bool:
        """Same architecture and sizes, whatever the weights."""
        return (self.model_type, self.all_sites, self.block_parameters) == (
            other.model_type,
            other.all_sites,
            other.block_parameters,
        )

    def same_weights(self, other: "ModelIdentity") -> bool:
        """Same fingerprint; an unknown one equals none."""
        return self.fingerprint is not None and self.fingerprint == other.fingerprint

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; equal neighbouring sites are written once, with a repeat count."""
        return {
            "model_type": self.model_type,
            "name": self.name,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "norm_parameters": self.norm_parameters,
            "block_parameters": list(self.block_parameters),
            "sites": _fold(self.sites),
            "feed_forwards": _fold(self.feed_forwards),
            "site_blocks": list(self.site_blocks),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelIdentity":
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: a field is missing or of the wrong type.
        """
        try:
            sites = _unfold(value["sites"], "heads")
            if not sites:
                raise ValueError("it has no blocks")
            feed_forwards = _unfold(value["feed_forwards"], "neurons")
            blocks = tuple(int(block) for block in value["site_blocks"])
            if blocks and len(blocks) != len(sites) + len(feed_forwards):
                raise ValueError("site_blocks does not name the block of every site")
            fingerprint, revision = value["fingerprint"], value["revision"]
            return cls(
                model_type=str(value["model_type"]),
                sites=sites,
                feed_forwards=feed_forwards,
                site_blocks=blocks,
                block_parameters=tuple(int(count) for count in value["block_parameters"]),
                norm_parameters=int(value["norm_parameters"]),
                fingerprint=None if fingerprint is None else str(fingerprint),
                name=str(value["name"]),
                revision=None if revision is None else str(revision),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"The model identity in this file is damaged: {error!r}.") from error


def public_name(name: str) -> str:
    """What to call a model in files that others read: of a folder's path the last part, a hub id as it is."""
    local = name.startswith(("/", "~", ".")) or "\\" in name or Path(name).is_dir()
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if local else name


def _fold(sites: Sequence[SiteShape]) -> list[dict[str, Any]]:
    return [{"repeat": len(list(equal)), **site.to_json()} for site, equal in groupby(sites)]


def _unfold(entries: Sequence[Mapping[str, Any]], kind: Kind) -> tuple[SiteShape, ...]:
    sites, left = list[SiteShape](), MOST_UNITS
    for entry in entries:
        repeat = int(entry["repeat"])
        if not 0 < repeat <= 10_000:
            raise ValueError(f"repeat is {repeat}")
        site = SiteShape.from_json(entry, kind)
        left -= repeat * max(1, site.units)
        if left < 0:
            raise ValueError(f"no model has so many {kind}")
        sites += [site] * repeat
    return tuple(sites)


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts, default=0), max(counts, default=0)
    return str(low) if low == high else f"{low}-{high}"


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ValueError(f"{value!r} is not a positive count")
    return value
