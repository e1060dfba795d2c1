"""Training on the Hugging Face Trainer: one road for every method, so that comparisons are fair."""

import logging
import math
import zipfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.data_loader import SeedableRandomSampler
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from pruning_adapter.errors import OutputError, TrainingError
from pruning_adapter.processes import all_or_none, first_says, is_first, is_spread, process_count, process_number
from pruning_adapter.reading import read_object
from pruning_adapter.training.distill import TEACHER, distillation_loss
from pruning_adapter.training.faults import EXAMPLE, LossWatch, check_features, number_features, usual_loss
from pruning_adapter.training.length_groups import LengthGroups
from pruning_adapter.training.recipes import Method, Recipe
from pruning_adapter.training.same_model import ensure_same_model_
from pruning_adapter.training.shares import SHARE, Shares, check_shares, load_shares, of_step

__all__ = [
    "MOMENTS",
    "check_accumulate",
    "count_steps",
    "last_complete_checkpoint",
    "last_step",
    "make_collator",
    "make_trainer",
    "train_",
]

_LOGGER = logging.getLogger(__name__)

MOMENTS = "moments.safetensors"
"""In a checkpoint: the optimizer's state by the names of the parameters."""

Features = Sequence[dict[str, Any]]
Evaluate = Callable[[nn.Module], Mapping[str, float]]


def count_steps(examples: int, recipe: Recipe) -> int:
    """Steps of a whole training on so many examples."""
    return math.ceil(math.ceil(examples / recipe.batch_size) * recipe.epochs)


def last_step(share: float, steps: int) -> int:
    """The step after which a training stops that goes on until `share` of its steps."""
    return max(1, round(share * steps))


def make_collator(tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """Pads a list of examples to the longest of them."""
    # Multiples of 8 keep GPU matrix units aligned and cost a CPU nothing measurable.
    pad = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if torch.cuda.is_available() else None)
    return cast(Callable[[list[dict[str, Any]]], dict[str, Tensor]], pad)


def train_(
    model: nn.Module,
    features: Features,
    *,
    tokenizer: Any,
    recipe: Recipe,
    method: Method,
    folder: Path,
    seed: int,
    evaluate: Evaluate | None = None,
    resume: bool = False,
    accumulate: int = 1,
    bf16: bool = False,
    report_to: Sequence[str] = (),
    stop_after: float = 1.0,
) -> list[dict[str, float]]:
    """Train `model` in place.

    On one machine with the same versions and number of threads, the same seed gives the same weights, bit for bit on a
    CPU. Several processes share each batch, and give the weights of one up to rounding (with dropout, which each draws
    for itself, other ones); the first writes the checkpoints.

    Args:
        model: what `apply_method` returned.
        features: tokenised examples with `labels`, and with what a teacher says where there is one (`with_teacher`).
        tokenizer: pads the batches.
        recipe: see `Recipe`.
        method: chooses the recipe's learning rate.
        folder: where checkpoints go; after each epoch the trainable weights and the optimiser's state.
        seed: of dropout and of the order of the examples.
        evaluate: called after every epoch; what it returns is logged as eval_<name>.
        resume: go on from the last checkpoint in `folder`, if there is one.
        accumulate: split each batch into this many parts that are computed one after the other.
        bf16: compute matrix products in bfloat16; weights and optimiser stay in float32. About twice as fast on GPUs
            and on processors with bfloat16 instructions, slower on others.
        report_to: Transformers' names of trackers that hear of it; see `find_trackers`.
        stop_after: leave off after this share of all steps, with a checkpoint from which `continue_pruned` goes on.

    Returns:
        What was logged: dicts with step and epoch, and loss, learning_rate and grad_norm, or eval_<name>.

    Raises:
        OutputError: a checkpoint that cannot be written.
        TrainingError: examples that the model cannot learn from (see `check_features`), a loss that is not a finite
            number or exploded, a batch size that `accumulate` and the processes do not divide, or processes that hold
            different models.
    """
    check_features(features, model)
    ensure_same_model_(model)
    set_seed(seed)
    trainer = make_trainer(
        model,
        features,
        tokenizer=tokenizer,
        recipe=recipe,
        method=method,
        folder=folder,
        seed=seed,
        accumulate=accumulate,
        bf16=bf16,
        report_to=report_to,
    )
    # It prints every log entry as a dict where there is no terminal for a progress bar.
    trainer.remove_callback(PrinterCallback)
    if evaluate is not None:
        trainer.add_callback(_EvaluateEveryEpoch(trainer, evaluate))
    if stop_after < 1:
        trainer.add_callback(_StopAfter(stop_after))
    last = first_says(last_complete_checkpoint(folder) if resume else None)
    if process_number():
        torch.manual_seed(seed + process_number())
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    return [_numbers(entry) for entry in trainer.state.log_history if "train_runtime" not in entry]


def make_trainer(
    model: nn.Module,
    features: Features,
    *,
    tokenizer: Any,
    recipe: Recipe,
    method: Method,
    folder: Path,
    seed: int,
    accumulate: int = 1,
    bf16: bool = False,
    report_to: Sequence[str] = (),
) -> "_Trainer":
    """The Trainer that `train_` runs; see there. For those who want to add callbacks of their own.

    Raises:
        TrainingError: a batch size that `accumulate` does not divide.
    """
    check_accumulate(accumulate, recipe)
    steps = count_steps(len(features), recipe)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate[method],
        weight_decay=recipe.weight_decay,
        per_device_train_batch_size=recipe.batch_size // accumulate // process_count(),
        gradient_accumulation_steps=accumulate,
        lr_scheduler_type="linear",
        warmup_steps=round(recipe.warmup_share * steps),
        seed=seed,
        data_seed=seed,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="epoch",
        save_total_limit=1,
        # Transformers refuses to write the optimizer's state of a model that was loaded in parts.
        save_only_model=is_spread(model),
        logging_strategy="steps",
        logging_steps=max(1, min(50, steps // 20)),
        # The filter would show the last finite loss in place of a NaN.
        logging_nan_inf_filter=False,
        label_names=["labels"],
        remove_unused_columns=False,
        report_to=list(report_to),
        disable_tqdm=None,
        log_level_replica="passive",
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = _Trainer(
        model=cast(Any, model),
        args=arguments,
        train_dataset=cast(Any, number_features(features)),
        data_collator=make_collator(tokenizer),
        processing_class=tokenizer,
    )
    # The Trainer sees **kwargs in the model's forward and takes it that the loss is divided by the number of items in
    # the whole global batch; classifiers ignore that number, so the gradients would grow with the accumulation steps.
    trainer.model_accepts_loss_kwargs = False
    trainer.group_by_length = recipe.group_by_length
    trainer.watch = LossWatch(_way_out(arguments), usual=usual_loss(features))
    trainer.add_callback(_StopAtFaults(trainer))
    return trainer


class _Trainer(Trainer):
    """The Trainer of Transformers, which also listens to a teacher and groups by length as `LengthGroups` does."""

    group_by_length = False
    watch: LossWatch
    _seen: tuple[dict[str, Any], Tensor] | None = None
    """The last batch, and the numbers of its examples."""

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        examples = inputs.pop(EXAMPLE, None)
        found = self._loss(model, dict(inputs), return_outputs, num_items_in_batch)
        if examples is not None:
            self._seen = dict(inputs), examples
            self._look_at(found[0] if return_outputs else found, model, self._place())
        return found

    def look_again(self) -> None:
        """Compute the last batch once more: what the last step made of the weights is in no loss yet.

        Raises:
            TrainingError: its loss is no longer finite, or exploded.
        """
        model = cast(nn.Module, self.model)
        if self._seen is None or not model.training:
            return
        # No dropout: it would draw from the generator, and the next epoch be another one.
        model.eval()
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self._loss(model, dict(self._seen[0]), False, None)
        finally:
            model.train()
        with all_or_none():
            self._look_at(loss, model, f"the end of step {self.state.global_step}, on its batch")
            self.watch.check()

    def _look_at(self, loss: Tensor, model: nn.Module, place: str) -> None:
        inputs, examples = cast("tuple[dict[str, Any], Tensor]", self._seen)

        def alone(row: int) -> Tensor:
            one = {name: value[row : row + 1] for name, value in inputs.items()}
            with torch.no_grad():
                return self._loss(model, one, False, None)

        self.watch.note(loss, place=place, examples=examples, alone=alone)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with _writing_into(self.args.output_dir):
            super()._save_checkpoint(model, trial)

    def _place(self) -> str:
        steps = math.ceil(self.state.max_steps / max(self.args.num_train_epochs, 1e-9)) or 1
        epoch, batch = divmod(self.state.global_step, steps)
        return f"step {self.state.global_step + 1} (batch {batch + 1} of epoch {epoch + 1})"

    def _loss(self, model: nn.Module, inputs: Any, return_outputs: bool, num_items_in_batch: Any) -> Any:
        teacher, share = inputs.pop(TEACHER, None), inputs.pop(SHARE, None)
        loss, outputs = cast(Any, super().compute_loss(model, inputs, True, num_items_in_batch))
        if teacher is not None:
            loss = distillation_loss(loss, outputs.logits, teacher)
        if share is not None:
            loss = of_step(loss, share)
        return (loss, outputs) if return_outputs else loss

    def get_train_dataloader(self) -> Any:
        accumulate = self.args.gradient_accumulation_steps
        if process_count() * accumulate == 1:
            return super().get_train_dataloader()
        features = cast(Any, self.train_dataset)
        order = self._get_train_sampler()
        if not self.group_by_length:
            # The order of one process, which Accelerate gives in place of the Trainer's.
            order = SeedableRandomSampler(features, data_seed=self.args.data_seed)
        shares = Shares(order, self._examples_of_step, accumulate=accumulate)
        pin = self.args.dataloader_pin_memory
        return load_shares(features, shares, collate_fn=self.data_collator, pin_memory=pin)

    @property
    def _examples_of_step(self) -> int:
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * process_count()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self.group_by_length:
            return super()._get_train_sampler(train_dataset)
        features = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(feature["input_ids"]) for feature in cast(Any, features)]
        return LengthGroups(lengths, self._examples_of_step, seed=self.args.seed)


@contextmanager
def _writing_into(folder: object) -> Generator[None]:
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # PyTorch's writer knows no other kind than the last, and tells where it stopped instead of why.
        lines = str(error).strip().splitlines() or [""]
        why = f"PyTorch could not write all of a file ({lines[0]})" if isinstance(error, RuntimeError) else error
        raise OutputError(
            f"Cannot write a checkpoint into {folder}: {why}. Make room, or let it be written; then go on with "
            "--resume."
        ) from error


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; a run that was killed may leave a half one."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        if _is_complete(path):
            return path
        _LOGGER.warning("%s is incomplete and is left aside", path)
    return None


def _is_complete(checkpoint: Path) -> bool:
    weights = list(checkpoint.glob("*.safetensors"))
    states = [checkpoint / name for name in ("optimizer.pt", "scheduler.pt")]
    try:
        read_object(checkpoint / "trainer_state.json", "trainer's state")
        for path in weights:
            with safe_open(path, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    # PyTorch writes zip archives, whose directory comes last.
    return bool(weights) and all(zipfile.is_zipfile(path) for path in states)


def check_accumulate(accumulate: int, recipe: Recipe) -> None:
    """Refuse a number of parts, and of processes, that does not divide the recipe's batches.

    Raises:
        TrainingError: it does not.
    """
    check_shares(recipe.batch_size, accumulate)


def _way_out(args: TrainingArguments) -> str:
    return (
        f"Lower the learning rate ({args.learning_rate:g}), or look for NaN in data and weights. Checkpoints of "
        f"earlier epochs are kept in {args.output_dir}."
    )


class _StopAtFaults(TrainerCallback):
    def __init__(self, trainer: _Trainer) -> None:
        self._trainer = trainer

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer.watch.check()
        logs = cast("dict[str, float]", kwargs.get("logs") or {})
        for name in ("loss", "grad_norm"):
            value = logs.get(name)
            if value is not None and not math.isfinite(value):
                raise TrainingError(f"The training {name} is {value} at step {state.global_step}. {_way_out(args)}")

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.watch.check()
        for name, parameter in cast(nn.Module, kwargs["model"]).named_parameters():
            if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
                raise TrainingError(
                    f"The weight {name} is no longer a finite number after step {state.global_step}. {_way_out(args)}"
                )
        self._trainer.look_again()


class _StopAfter(TrainerCallback):
    """Stops in the middle, and keeps the optimizer's state by name: the parameters' order is that of one model."""

    def __init__(self, share: float) -> None:
        self._share = share

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= last_step(self._share, state.max_steps):
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not control.should_training_stop:
            return
        known: Any = kwargs["optimizer"].state
        tensors = {
            f"{name}:{kind}": value.detach().cpu().contiguous()
            for name, parameter in cast(nn.Module, kwargs["model"]).named_parameters()
            for kind, value in known.get(parameter, {}).items()
        }
        if not is_first():
            return
        with _writing_into(args.output_dir):
            save_file(tensors, Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / MOMENTS)


class _EvaluateEveryEpoch(TrainerCallback):
    def __init__(self, trainer: Trainer, evaluate: Evaluate) -> None:
        self._trainer = trainer
        self._evaluate = evaluate

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = cast(nn.Module, kwargs["model"])
        found = self._evaluate(model)
        self._trainer.log({f"eval_{name}": value for name, value in found.items()})
        told = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        _LOGGER.info("epoch %g of %g: %s", round(state.epoch or 0, 2), round(args.num_train_epochs, 2), told)


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in entry.items() if isinstance(value, int | float)}
