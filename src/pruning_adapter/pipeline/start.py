"""The training of the dense model before anything goes, and what it shares with the training after."""

import logging
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import set_seed

from pruning_adapter.adapter.files import check_folder
from pruning_adapter.architectures.identity import dense_parameters, identify, pruned_state
from pruning_adapter.architectures.shapes import SiteShape
from pruning_adapter.checkpoint.merged import merge, save_pruned
from pruning_adapter.errors import CheckpointError, PruningAdapterError
from pruning_adapter.pipeline.inputs import Inputs, device
from pruning_adapter.pipeline.refusals import check_steps
from pruning_adapter.planning import PruningPlan, RankPlan
from pruning_adapter.planning.presets import find_preset
from pruning_adapter.planning.rank_plan import TARGETS
from pruning_adapter.processes import first_does, first_says
from pruning_adapter.run_folder import check_links
from pruning_adapter.settings import Settings
from pruning_adapter.storage import read_json, replace_folder, write_json
from pruning_adapter.surgery.prune import forget_pruning_
from pruning_adapter.training.attention import choose_attention_
from pruning_adapter.training.base_model import BaseModel, load_base
from pruning_adapter.training.continuation import KEPT_FILES, RANDOM
from pruning_adapter.training.methods import apply_method
from pruning_adapter.training.padding_free import leave_out_padding_
from pruning_adapter.training.precision import halve_frozen_, warn_of_slow_bfloat16
from pruning_adapter.training.recipes import find_recipe
from pruning_adapter.training.trackers import tracked_in
from pruning_adapter.training.trainer import MOMENTS, count_steps, last_complete_checkpoint, last_step, train_

__all__ = ["CHECKPOINT", "TRAINING", "Start", "start_rank"]

_LOGGER = logging.getLogger(__name__)

TRAINING = "pruning-adapter training"
CHECKPOINT = "checkpoint"
"""In start/: what is needed to go on from there."""


class Start(Inputs):
    """A run up to the model that is scored and pruned; writes start/."""

    def load_start(self) -> BaseModel:
        """What is scored and pruned: the dense base, or where units go later, what training has made of it by then.

        That is written to start/, once.
        """
        first_does(partial(check_links, self.folder))
        base = self.load_base()
        if not self.prune_after:
            return base
        check_steps(self)
        path, checkpoints = self.folder / "start", self.folder / "start-checkpoints"
        if not first_says(path.exists()):
            self._train_start(base, path, checkpoints)
            base = self.load_base()
        else:
            self._check_start(base, path)
        # Also those of a run that was killed as soon as start/ was there.
        first_does(partial(shutil.rmtree, checkpoints, ignore_errors=True))
        # A whole checkpoint, in which nothing starts at random; what did so in the base trains on.
        started = load_base(str(path), label_names=self.data.label_names, seed=self.settings.seed).model
        # It is still that model to those who read what is saved.
        model, whole = cast(Any, started), cast(Any, base.model)
        model.name_or_path, model.config.name_or_path = whole.name_or_path, whole.config.name_or_path
        model.config._commit_hash = getattr(whole.config, "_commit_hash", None)
        return replace(base, model=started.to(device()))

    def _check_start(self, base: BaseModel, path: Path) -> None:
        if not path.exists():
            # Without a training before, there is none.
            return
        began = read_json(path / "training.json", kind=TRAINING).get("base")
        if began != identify(base.model).fingerprint:
            raise CheckpointError(
                f"{path} was trained from another model than {self.model_path}. Score this one anew: "
                "`pruning-adapter importance --overwrite`."
            )
        self.check_start()

    def check_start(self) -> None:
        """Refuse to go on from start/ by other settings than it was trained by.

        Raises:
            CheckpointError: the first that differs.
        """
        path = self.folder / "start"
        if not (self.prune_after and path.exists()):
            return
        known: Any = read_json(path / "training.json", kind=TRAINING).get("settings", {})
        if not isinstance(known, dict):
            raise CheckpointError(f"{path / 'training.json'} is damaged: its settings are no object. Score anew.")
        for name, now in self.settings.of_training().items():
            if name in known and known[name] != now:
                raise CheckpointError(
                    f"{path} was trained with {name}={known[name]!r}, now {name}={now!r} was given. Leave it as it "
                    "was, or score anew with it: `pruning-adapter importance --overwrite`."
                )

    def _train_start(self, base: BaseModel, path: Path, checkpoints: Path) -> None:
        _LOGGER.info("the dense model trains until %.0f %% of the steps, then units go", 100 * self.prune_after)
        first_does(partial(self._undo_half_stop, checkpoints))
        stopped = first_says(last_complete_checkpoint(checkpoints))
        if stopped is None or not (stopped / MOMENTS).exists():
            # As LoRA on a model that stays dense begins.
            set_seed(self.settings.seed)
            model = self._adapt_whole(base)
            self._train_(model, checkpoints, stop_after=self.prune_after)
            stopped = first_says(cast(Path, last_complete_checkpoint(checkpoints)))
        first_does(partial(self._write_start, base, path, stopped))

    def _undo_half_stop(self, checkpoints: Path) -> None:
        """Take away a checkpoint at the stop that lacks the optimizer's state by name, for it was killed before.

        Training could only go on from there, past the stop.
        """
        stop = last_step(self.prune_after, count_steps(len(self.data.train), self.recipe))
        found = last_complete_checkpoint(checkpoints)
        if found is not None and not (found / MOMENTS).exists() and found.name == f"checkpoint-{stop}":
            shutil.rmtree(found)

    def _write_start(self, base: BaseModel, path: Path, stopped: Path) -> None:
        # Merged in full precision, whatever it was trained in.
        under = self.load_base().model
        was_pruned = pruned_state(under) is not None
        merged = merge(self._attach(under, stopped))
        if not was_pruned:
            forget_pruning_(merged)
        with replace_folder(path) as aside:
            save_pruned(merged, aside, tokenizer=self.tokenizer)
            (aside / CHECKPOINT).mkdir()
            names = (*KEPT_FILES, "adapter_config.json", "adapter_model.safetensors")
            for file in (*(stopped / name for name in names), *stopped.glob(RANDOM)):
                shutil.copy(file, aside / CHECKPOINT)
            began = {"base": identify(base.model).fingerprint, "settings": self.settings.of_training()}
            write_json(aside / "training.json", {"kind": TRAINING, **began})

    def _adapt_whole(self, base: BaseModel) -> nn.Module:
        """LoRA on all of the base, of the lowest rank that the plan of ranks will give: ranks only grow."""
        identity, settings = identify(base.model), self.settings
        rank, roles = start_rank(settings), TARGETS[settings.target]
        state = pruned_state(base.model)
        kept = [range(shape.units) for shape in identity.all_sites] if state is None else state.kept
        whole = PruningPlan(
            model=identity,
            kept_heads=tuple(map(tuple, kept[: len(identity.sites)])),
            kept_neurons=tuple(map(tuple, kept[len(identity.sites) :])),
            dense_parameters=dense_parameters(base.model),
            # A base that was pruned before may have some.
            allow_empty_blocks=True,
        )
        ranks = RankPlan(
            model=identity,
            kept_heads=whole.kept_heads,
            kept_neurons=whole.kept_neurons,
            ranks=_ranks(identity.sites, whole.kept_heads, rank, roles),
            feed_forward_ranks=_ranks(identity.feed_forwards, whole.kept_neurons, rank, roles),
            roles=roles,
        )
        return apply_method(base, "prune-lora", self.recipe, plan=whole, ranks=ranks)

    def _load_start_adapted(self) -> nn.Module:
        return self._attach(self.load_base().model, self.folder / "start" / CHECKPOINT)

    def _train_(self, model: nn.Module, checkpoints: Path, *, stop_after: float = 1.0) -> list[dict[str, float]]:
        """Train, to the end or for a share of the steps; a training that was interrupted goes on."""
        self.ready_(model)
        if self.settings.bf16:
            warn_of_slow_bfloat16(model)
        if self.settings.padding_free:
            leave_out_padding_(model)
        with tracked_in(self.folder / "logs"):
            return train_(
                model,
                folder=checkpoints,
                evaluate=self._evaluate_briefly(),
                resume=True,
                stop_after=stop_after,
                **self._how_to_train(),
            )

    def _how_to_train(self) -> dict[str, Any]:
        return {
            "features": self._taught_features(),
            "tokenizer": self.tokenizer,
            "recipe": self.recipe,
            "method": self.method,
            "seed": self.settings.seed,
            "accumulate": self.settings.accumulate,
            "bf16": self.settings.bf16,
            "report_to": self.trackers,
        }

    def ready_(self, model: nn.Module) -> nn.Module:
        """Give a model that is about to train the precision and the kernels of this run, in place."""
        if self.settings.bf16:
            halve_frozen_(model)
        if self.settings.bf16 and not self.settings.padding_free:
            choose_attention_(model, longest=self.recipe.max_length)
        return model

    def _attach(self, base: nn.Module, adapter: Path, *, trainable: bool = False) -> nn.Module:
        from peft import PeftModel

        # PEFT would read pickled weights where there are no others.
        check_folder(adapter)
        try:
            with warnings.catch_warnings():
                # PEFT only warns, and leaves such weights as they start.
                warnings.filterwarnings("error", message="Found missing adapter keys")
                return cast(nn.Module, PeftModel.from_pretrained(cast(Any, base), str(adapter), is_trainable=trainable))
        except PruningAdapterError:
            raise
        except Exception as error:  # PEFT, safetensors, the JSON reader and the Hub's client each raise their own kinds
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{adapter} is missing, damaged or incomplete ({first}). Train again.") from error


def start_rank(settings: Settings) -> int:
    """The rank of LoRA before units go: the lowest that a block will have then, because ranks only grow."""
    if settings.rank_budget is not None:
        return find_recipe(settings.recipe).lora_rank
    low, high = settings.ranks
    if settings.preset is not None:
        preset = find_preset(settings.preset)
        low, high = preset.low, preset.high
    return low or high


def _ranks(
    sites: Sequence[SiteShape], kept: Sequence[Sequence[int]], rank: int, roles: tuple[str, ...]
) -> tuple[int, ...]:
    """`rank` where something is left and one of the roles is played, else 0."""
    return tuple(
        rank if units and site.lora_parameters(units, 1, roles) else 0 for site, units in zip(sites, kept, strict=True)
    )
