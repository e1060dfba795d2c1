"""`pruning-adapter plan`: what goes, and at which rank the rest trains. Touches no weight."""

from pathlib import Path
from typing import Annotated

import typer

from pruning_adapter.cli import options as o
from pruning_adapter.cli.session import open_run

__all__ = ["plan"]


def plan(
    preset: o.Preset = None,
    keep_heads: o.KeepHeads = None,
    keep_ratio: o.KeepRatio = None,
    threshold: o.Threshold = None,
    normalization: o.Normalization = None,
    allow_empty_blocks: o.AllowEmptyBlocks = None,
    top_blocks: o.TopBlocks = None,
    high_rank: o.HighRank = None,
    low_rank: o.LowRank = None,
    rank_budget: o.RankBudget = None,
    output_dir: o.OutputDir = Path("run"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, write nothing.")] = False,
    overwrite: o.Overwrite = False,
) -> None:
    """Decide what is removed, from importance.json; writes plan.json and ranks.json. Touches no weight."""
    given = {name: value for name, value in locals().items() if name not in ("output_dir", "dry_run", "overwrite")}
    from pruning_adapter.cli import show

    if dry_run:
        from pruning_adapter.importance import ImportanceScores
        from pruning_adapter.pipeline import plan_from_settings
        from pruning_adapter.settings import Settings

        settings = Settings.load(output_dir / "settings.json").with_rule(given)
        settings.check()
        made = plan_from_settings(settings, ImportanceScores.load(output_dir / "importance.json"))
    else:
        made = open_run(output_dir, given, step="plan", overwrite=overwrite).plan()
    show.value("Plan", f"{made[0]}\n{made[1]}")
