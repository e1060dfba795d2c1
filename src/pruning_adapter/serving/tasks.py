"""`PrunedTasks`: several tasks, each with a pruning plan of its own, on one dense base that is in memory once."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning_adapter.architectures.identity import identify, pruned_state
from pruning_adapter.architectures.limits import limits_of
from pruning_adapter.architectures.sites import base_of
from pruning_adapter.checkpoint.merged import align_
from pruning_adapter.errors import AdapterError, DataError
from pruning_adapter.evaluation.predict import predict
from pruning_adapter.serving.build import build, bytes_of, prepare
from pruning_adapter.serving.pack import PREFIX, TaskPack, check_pack_fits, read_pack
from pruning_adapter.surgery.prune import check_nothing_shared
from pruning_adapter.training.base_model import give_padding_, load_base, load_tokenizer
from pruning_adapter.training.examples import Example
from pruning_adapter.training.tokenize import tokenize

__all__ = ["Predictions", "PrunedTasks"]

Text = str | tuple[str, str]
LONGEST = 10**6
"""Tokens; tokenizers that know no limit of their model name a far larger number."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a task's model says about texts, in their order."""

    logits: NDArray[np.float32]
    """`(texts, classes)`; one column of values where a number is predicted."""
    label_names: tuple[str, ...]
    """Of the classes, in the order of the columns."""

    @property
    def labels(self) -> list[str] | list[float]:
        """The name of the likeliest class of every text, or the number predicted for it."""
        if len(self.label_names) == 1:
            return self.logits[:, 0].tolist()
        return [self.label_names[number] for number in self.logits.argmax(axis=1)]


class PrunedTasks:
    """Several tasks on one dense base: one copy of the base in memory, and a small pack for each task.

    The pack of a task is the folder that training calls `adapter/`: plan, LoRA, norms and task head. `model` cuts and
    merges a task's model out of the base when it is asked for, and keeps the last few. What is neither cut nor trained
    (embeddings always, whole matrices, parts of matrices that lie in one piece) stays in the base's memory. The base
    never changes, so do not change weights of the models in place: copy a model (copy.deepcopy) before training it.

    The adapter must belong to the base itself. Training by the recipe `default` corrects the base and makes it one of
    the run's own, which is refused here; `--reconstruct none --prune-after 0` does not. See docs/many-tasks.md.

        tasks = PrunedTasks("./encoder", {"mrpc": "runs/mrpc/adapter", "sst2": "runs/sst2/adapter"})
        tasks.predict("sst2", ["a fine film", "a dull film"]).labels
    """

    def __init__(
        self,
        base: Any,
        packs: Mapping[str, str | Path] | None = None,
        *,
        cache: int = 2,
        merge: bool = True,
        tokenizer: Any = None,
    ) -> None:
        """Args:
            base: a dense Transformers model, which is only read; or a folder or hub id, loaded in float32 as a sequence
                classifier. For other task heads and types give the model, on the device and of the class that the
                adapters were trained with.
            packs: folders of adapters by the name of their task; see `add`.
            cache: models that are kept, at the most; the least recently used goes first. 0 keeps none.
            merge: add LoRA to the weights it belongs to, which is quickest to run. Otherwise it stays beside them:
                models are PEFT's, and all matrices that are not cut are shared too.
            tokenizer: for `predict`; by default that of the base's folder or hub id.

        Raises:
            AdapterError: the base is pruned or has adapters in place; or see `add`.
            ArchitectureError: an unknown family, a quantised base, or one with tied weights in a block.
            CheckpointError: the base cannot be loaded; or see `add`.
        """
        if isinstance(cache, bool) or cache < 0:
            raise AdapterError(f"cache is {cache!r}; it is the number of models to keep, a whole number from 0.")
        self._fresh: tuple[str, ...] = ()
        self._source: str | None = None
        if isinstance(base, str | Path):
            self._source = str(base)
            with torch.random.fork_rng(devices=()):
                loaded = load_base(self._source, label_names=(), seed=None)
            # Shared parts then lie as those of a saved model do once it is loaded, and give the same bits.
            align_(loaded.model)
            self._fresh = loaded.fresh
            base = loaded.model.requires_grad_(False).eval()
        self.base: nn.Module = base
        """The dense model that all share. Only read it."""
        if base_of(self.base) is not self.base or any(hasattr(module, "base_layer") for module in self.base.modules()):
            raise AdapterError("The base has adapters in place; give the model without them.")
        if pruned_state(self.base) is not None:
            raise AdapterError("The base is pruned; give the dense one. Each task brings a plan of its own.")
        check_nothing_shared(self.base)
        self.identity = identify(self.base)
        """By which packs know their base."""
        self.cache = cache
        self.merge = merge
        self._given_tokenizer = tokenizer
        self._packs: dict[str, TaskPack] = {}
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        for name, folder in (packs or {}).items():
            self.add(name, folder)

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, in the order in which they were added."""
        return tuple(self._packs)

    @property
    def cached(self) -> tuple[str, ...]:
        """The tasks whose models are at hand, the least recently used first."""
        return tuple(self._models)

    @property
    def nbytes(self) -> int:
        """Bytes of the base, the packs and the models at hand together; memory that they share counts once."""
        return bytes_of(self._tensors())

    def add(self, name: str, folder: str | Path) -> None:
        """Read a pack into memory; the folder is not looked at again.

        Args:
            name: of the task; what `model` and `predict` are asked for.
            folder: that training calls `adapter/`.

        Raises:
            AdapterError: there is such a task already; or the adapter belongs to another base, to one of its run's own,
                or is of another kind.
            CheckpointError: no adapter there, damaged, or incomplete.
        """
        if name in self._packs:
            raise AdapterError(f"There is a task {name!r} already, from {self._packs[name].folder}; remove it first.")
        pack = read_pack(folder)
        check_pack_fits(pack, self.identity)
        self._check_nothing_random(pack)
        self._packs[name] = prepare(pack, self.base, self.identity)

    def remove(self, name: str) -> None:
        """Forget a task and its model.

        Raises:
            AdapterError: there is no such task; the message names those there are.
        """
        self._pack(name)
        del self._packs[name]
        self._models.pop(name, None)

    def model(self, name: str) -> Any:
        """The pruned model of a task, frozen and in evaluation mode, on the base's device.

        It computes what `PeftModel.from_pretrained(base, folder).merge_and_unload()` computes, and `save_pruned` saves
        it as any other.

        Raises:
            AdapterError: there is no such task; the message names those there are.
        """
        pack = self._pack(name)
        found = self._models.pop(name, None)
        # Room is made first, so that no more than `cache` are there even for a moment.
        while found is None and self._models and len(self._models) >= self.cache:
            self._models.popitem(last=False)
        if found is None:
            found = build(pack, self.base, self.identity, merge=self.merge)
        if self.cache:
            self._models[name] = found
        return found

    def predict(
        self, name: str, texts: Sequence[Text], *, batch_size: int = 64, max_length: int | None = None
    ) -> Predictions:
        """What a task's model says about texts, in the order given.

        Batches are made by length, so that little padding is computed.

        Args:
            name: of the task.
            texts: strings, or pairs of strings for a task about pairs.
            batch_size: texts that are computed at once.
            max_length: tokens after which a text is cut off (of a pair, the longer text first), as in training; by
                default as many as the model reads.

        Raises:
            AdapterError: there is no such task, or it is none of sequence classification.
            DataError: no tokenizer, something that is no text, or a `max_length` that cannot be.
        """
        task = self._pack(name).config.task_type
        if task != "SEQ_CLS":
            raise AdapterError(
                f"The task {name!r} is of the type {task}, and predict is for SEQ_CLS; call tasks.model({name!r})."
            )
        if isinstance(batch_size, bool) or batch_size < 1:
            raise DataError(f"batch_size is {batch_size!r}; it is a whole number from 1.")
        if isinstance(texts, str):
            raise DataError(f"texts is one string, {texts!r}; give a sequence of strings, or of pairs of strings.")
        examples = [Example(texts=_as_tuple(text, number), label=0) for number, text in enumerate(texts)]
        _check_one_kind(examples)
        model = self.model(name)
        names = tuple(str(label) for _, label in sorted(model.config.id2label.items()))
        if not examples:
            return Predictions(logits=np.empty((0, len(names)), dtype=np.float32), label_names=names)
        from transformers import DataCollatorWithPadding

        if getattr(self.tokenizer, "pad_token", None) is None:
            raise DataError(
                "The tokenizer has no token for padding. Give it one: tokenizer.pad_token = tokenizer.eos_token."
            )
        give_padding_(model, self.tokenizer)
        longest = self._longest(model, max_length)
        features = tokenize(examples, self.tokenizer, max_length=longest, label_names=names)
        collate = cast(Any, DataCollatorWithPadding(self.tokenizer))
        return Predictions(logits=predict(model, features, collate, batch_size=batch_size), label_names=names)

    @cached_property
    def tokenizer(self) -> Any:
        """What `predict` reads texts with: one for all tasks, because they share the embeddings.

        Raises:
            DataError: none was given, nor a folder to load it from.
            CheckpointError: the base's folder holds none.
        """
        if self._given_tokenizer is None and self._source is None:
            raise DataError("predict needs a tokenizer: PrunedTasks(model, packs, tokenizer=...).")
        given = self._given_tokenizer
        return load_tokenizer(cast(str, self._source)) if given is None else given

    def _longest(self, model: Any, asked: int | None) -> int:
        positions, named = limits_of(model).positions, int(self.tokenizer.model_max_length)
        if asked is not None:
            if positions is not None and asked > positions:
                raise DataError(f"max_length {asked} is more than the {positions} tokens this model reads.")
            return asked
        known = [length for length in (positions, named if named < LONGEST else None) if length is not None]
        found = min(known) if known else getattr(model.config, "max_position_embeddings", None)
        if not found:
            raise DataError("Neither the tokenizer nor the model says how long a text may be; give max_length.")
        return int(found)

    def _pack(self, name: str) -> TaskPack:
        if name not in self._packs:
            there = ", ".join(repr(known) for known in self._packs) or "none yet"
            near = get_close_matches(str(name), self._packs, n=1)
            meant = f" Was {near[0]!r} meant?" if near else ""
            raise AdapterError(f"There is no task {name!r}; there is: {there}.{meant}")
        return self._packs[name]

    def _check_nothing_random(self, pack: TaskPack) -> None:
        """A module that the base's checkpoint lacks is another one each time, unless the pack holds it."""
        for module in self._fresh:
            if not any(name.startswith(f"{PREFIX}{module}.") for name in pack.tensors):
                raise AdapterError(
                    f"The checkpoint {self._source} has no weights for {module!r}, and the adapter {pack.folder} does "
                    "not hold them either, so they would be random. Give the base as the model that the adapter was "
                    f"trained on, or train with modules_to_save=[{module!r}]."
                )

    def _tensors(self) -> Iterator[Tensor]:
        for model in (self.base, *self._models.values()):
            yield from chain(model.parameters(), model.buffers())
        for pack in self._packs.values():
            yield from pack.tensors.values()


def _as_tuple(text: Any, number: int) -> tuple[str, ...]:
    found = (text,) if isinstance(text, str) else text
    if isinstance(found, Iterable):
        texts = tuple(cast("Iterable[Any]", found))
        if len(texts) in (1, 2) and all(isinstance(each, str) for each in texts):
            return texts
    raise DataError(f"Text number {number} is {text!r}; give strings, or pairs of strings.")


def _check_one_kind(examples: Sequence[Example]) -> None:
    for number, example in enumerate(examples):
        if len(example.texts) != len(examples[0].texts):
            raise DataError(f"Text number {number} is {example.texts!r}; give either strings or pairs, not both.")
