"""Recipes: how a model is trained, as data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from pruning_adapter.errors import TrainingError

__all__ = ["METHODS", "RECIPES", "Method", "Recipe", "adjust_recipe", "find_recipe"]

Method = Literal["full", "lora", "prune-lora"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about training and choosing that is not the model, the data, the method, the budget or the seed."""

    name: str
    epochs: float
    learning_rate: Mapping[Method, float]
    """Peak learning rate of AdamW, by method: low-rank matrices need a higher one than full weights."""
    weight_decay: float
    batch_size: int
    warmup_share: float
    """Share of all steps in which the learning rate rises linearly; then it falls linearly to zero."""
    max_length: int
    """Tokens after which an example is cut off."""
    group_by_length: bool
    """Batches of similar length, padded to their longest, instead of random ones."""
    adapter_dropout: float | None
    """Dropout of attention and hidden states while adapters train; None leaves the model's own. Full fine-tuning always
    keeps the model's own."""
    lora_rank: int
    """Rank of the method "lora", and of "prune-lora" without a rank plan."""
    lora_dropout: float
    lora_scaling: float
    """lora_alpha / r, the same at every rank."""
    lora_init: Literal["kaiming", "gaussian"]
    """How A starts; B starts at zero."""
    prune_after: float
    """Share of the training after which "prune-lora" measures importance and prunes: until then LoRA trains the dense
    model. 0 prunes before training."""
    scorer: Literal["gradient", "obs"]
    """What importance is: the gradient with respect to a gate, or what least squares cannot make up for."""
    order: Literal["first", "second"]
    """Absolute gradients or squared ones, for "gradient"."""
    normalization: Literal["block", "model"]
    """Among which units the rules that count heads compare."""
    reconstruct: Literal["none", "bias", "lstsq"]
    """How the kept weights are corrected for what is gone."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


RECIPES = {
    # The paper's text (arXiv:2303.14704): 30 epochs, 2e-5, weight decay 0.01, batch 32. It says nothing of a schedule,
    # so the Trainer's linear decay without warm-up is taken; nor of dropout, so the model's own stays.
    "paper": Recipe(
        name="paper",
        epochs=30,
        learning_rate={"full": 2e-5, "lora": 2e-5, "prune-lora": 2e-5},
        weight_decay=0.01,
        batch_size=32,
        warmup_share=0.0,
        max_length=128,
        group_by_length=False,
        adapter_dropout=None,
        lora_rank=4,
        lora_dropout=0.0,
        lora_scaling=1.0,
        lora_init="gaussian",
        prune_after=0.0,
        scorer="gradient",
        order="first",
        normalization="block",
        reconstruct="none",
    ),
    # With all-MiniLM-L6-v2, LoRA learns at 1e-3 (docs/recipes.md has the numbers and their limits). Three epochs,
    # because on a CPU time is what runs out.
    "default": Recipe(
        name="default",
        epochs=3,
        learning_rate={"full": 1e-4, "lora": 1e-3, "prune-lora": 1e-3},
        weight_decay=0.01,
        batch_size=32,
        warmup_share=0.06,
        max_length=128,
        group_by_length=True,
        adapter_dropout=0.0,
        lora_rank=8,
        lora_dropout=0.0,
        lora_scaling=2.0,
        lora_init="kaiming",
        prune_after=0.2,
        scorer="obs",
        order="first",
        normalization="model",
        reconstruct="lstsq",
    ),
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        TrainingError: unknown; the message lists them.
    """
    if name not in RECIPES:
        raise TrainingError(f"Recipe {name!r} is unknown; there are {', '.join(RECIPES)}.")
    return RECIPES[name]


def adjust_recipe(name: str, *, epochs: float | None = None, learning_rate: float | None = None) -> Recipe:
    """The recipe of that name, with what was asked for in place of its own.

    Raises:
        TrainingError: see `find_recipe`.
    """
    recipe = find_recipe(name)
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs)
    if learning_rate is not None:
        recipe = replace(recipe, learning_rate=dict.fromkeys(METHODS, learning_rate))
    return recipe
