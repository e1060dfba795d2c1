"""What each GPU must hold to score, prune and train a large language model whose weights are spread over GPUs.

    python examples/memory_of_a_large_model.py
    python examples/memory_of_a_large_model.py --gpus 16 --keep 0.75 --rank 32 --length 1024
    python examples/memory_of_a_large_model.py --config path/to/config.json

Models are built on PyTorch's meta device, where tensors have shapes and no memory: parameters are those of the real
modules before and after surgery. What autograd keeps is what a forward saves, run on tensors without memory that pass
for those of a processor, whose attention keeps what flash attention keeps on a GPU.
"""

import argparse
import copy
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from peft import get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

import pruning_adapter as pa
from pruning_adapter.architectures.identity import count_parameters, identify
from pruning_adapter.architectures.sites import find_all_sites
from pruning_adapter.importance.gates import Gate, gated_sites
from pruning_adapter.planning import RankPlan
from pruning_adapter.planning.rank_plan import TARGETS

GIB = 2**30
BF16, FP32 = 2, 4
OVERHEAD = 2.0
"""GiB of a CUDA context, NCCL's buffers and what the allocator cannot use: a guess, the only one here."""
LLAMA_70B: dict[str, Any] = {
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
"""Llama 3 70B."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Bytes that autograd keeps of a forward, by example of a given length."""

    blocks: int
    """Inside all blocks."""
    inputs: int
    """Inputs of all blocks."""
    rest: int
    """Outside: logits and their softmax, for the most part."""
    layers: int

    @property
    def checkpointed(self) -> float:
        """With the inputs of all blocks, and the inside of one at a time."""
        return self.inputs + self.blocks / self.layers + self.rest


def build(config: Any) -> nn.Module:
    """The model in bfloat16, without memory."""
    with torch.device("meta"):
        # Surgery writes into the config what it removed.
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.bfloat16, attn_implementation="sdpa")


def halve(model: nn.Module, keep: float) -> pa.PruningPlan:
    """A plan that keeps a share of each block's key/value groups and neurons, for its sizes alone."""
    identity = identify(model)
    gone = {
        kind: {number: list(range(_kept(site, keep), site.units)) for number, site in enumerate(sites)}
        for kind, sites in (("heads", identity.sites), ("neurons", identity.feed_forwards))
    }
    return pa.PruningPlan.from_pruned_heads(
        identity, gone["heads"], pruned_neurons=gone["neurons"], dense_parameters=count_parameters(model)
    )


def _kept(site: Any, share: float) -> int:
    """Units of a site, in whole groups of heads."""
    size = site.group_size if site.kind == "heads" else 1
    return max(1, round(site.units / size * share)) * size


@contextmanager
def counting(found: list[int], weights: set[int]) -> Generator[None]:
    """Add up the bytes of what autograd saves, each storage once, weights left out."""
    seen: set[int] = set()
    held: list[Any] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # Storages without memory have no address of their own.
        if storage._cdata not in seen and storage._cdata not in weights:
            seen.add(storage._cdata)
            held.append(storage)
            found.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def pretend_(model: nn.Module) -> None:
    """Put tensors without memory, which pass for those of a processor, in place of those on the meta device."""
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            fake = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), requires_grad=weight.requires_grad)
            setattr(module, name, fake)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def kept_by(config: Any, length: int, *, prepare: Any) -> Kept:
    """What autograd keeps of one example, from models of one and of two blocks: the rest is proportional."""
    sizes: list[int] = []
    for layers in (1, 2):
        small = type(config).from_dict({**config.to_dict(), "num_hidden_layers": layers})
        model, context = prepare(build(small))
        found: list[int] = []
        # What passes for a weight is of another class, as packed weights are, which our LoRA leaves to PEFT.
        plain = patch("pruning_adapter.adapter.linear.has_plain_weight", return_value=True)
        with FakeTensorMode(), plain:
            pretend_(model)
            weights = {weight.untyped_storage()._cdata for weight in (*model.parameters(), *model.buffers())}
            ids = torch.zeros(1, length, dtype=torch.long)
            with counting(found, weights), context:
                model(input_ids=ids, labels=ids)
        sizes.append(sum(found))
    block, layers = sizes[1] - sizes[0], config.num_hidden_layers
    return Kept(
        blocks=block * layers,
        inputs=layers * length * config.hidden_size * BF16,
        rest=sizes[0] - block,
        layers=layers,
    )


def for_importance(model: nn.Module) -> tuple[nn.Module, Any]:
    """Frozen, with a gate on every head and neuron."""
    for weight in model.parameters():
        weight.requires_grad_(False)
    sites = find_all_sites(model)
    gates = [Gate(site.units, batch=1, per_token=False, dtype=torch.float32) for site in sites]
    return model.eval(), gated_sites(sites, gates)


def report(title: str, rows: dict[str, float]) -> float:
    """Print a table of bytes; returns their sum in GiB."""
    print(f"\n{title}")
    for name, size in rows.items():
        print(f"  {name:<58} {size / GIB:8.2f} GiB")
    total = sum(rows.values()) / GIB
    print(f"  {'together':<58} {total:8.2f} GiB")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="config.json of another model of a supported family; Llama 3 70B without it")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--keep", type=float, default=0.5, help="share of groups and neurons that stay")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA on all linear maps")
    parser.add_argument("--length", type=int, default=2048, help="tokens of an example; one example a GPU and step")
    given = parser.parse_args()
    config = AutoConfig.from_pretrained(given.config) if given.config else LlamaConfig(**LLAMA_70B)
    gpus, length = given.gpus, given.length

    model = build(config)
    dense = sum(weight.numel() for weight in model.parameters())
    block = sum(weight.numel() for weight in model.model.layers[0].parameters())
    ends = sum(model.get_parameter(name).numel() for name in ("model.embed_tokens.weight", "lm_head.weight"))
    units = sum(site.units for site in (*identify(model).sites, *identify(model).feed_forwards))
    print(f"dense: {dense:,} parameters, {dense * BF16 / GIB:.1f} GiB in bfloat16; {units:,} heads and neurons")
    kept = kept_by(config, length, prepare=for_importance)
    overhead = OVERHEAD * GIB
    score = {
        f"weights, a {gpus}th each": dense * BF16 / gpus,
        "two blocks and both embeddings, whole while they are used": (2 * block + ends) * BF16,
        "gates and their sums (float32, float64)": units * (FP32 + FP32 + 2 * 8),
        f"what autograd keeps of {length} tokens": kept.blocks + kept.rest,
        "context and buffers (guessed)": overhead,
    }
    report("Importance, per GPU", score)

    plan = halve(model, given.keep)
    pa.prune_(model, plan, allow_other_weights=True)
    left = sum(weight.numel() for weight in model.parameters())
    block = sum(weight.numel() for weight in model.model.layers[0].parameters())
    print(f"\npruned: {left:,} parameters, {left / dense:.1%}; the plan says {plan.parameters:,}")
    largest = max(weight.numel() for weight in model.parameters())
    shards = {"two files of 2 GB and the largest tensor": 2 * 2e9 + largest * BF16}
    report("prune_checkpoint, on the host of one process", shards)

    def with_lora(small: nn.Module) -> tuple[Any, Any]:
        own = halve(small, given.keep)
        pa.prune_(small, own, allow_other_weights=True)
        return adapt(small, own, given.rank).train(), nullcontext()

    adapted = adapt(model, plan, given.rank)
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    kept = kept_by(config, length, prepare=with_lora)
    print(f"\nLoRA of rank {given.rank} on all linear maps: {trained:,} parameters")
    train = {
        f"frozen weights, a {gpus}th each": left * BF16 / gpus,
        "two blocks and both embeddings, whole while they are used": (2 * block + ends) * BF16,
        "LoRA in float32, its gradient, two moments of AdamW (in each)": trained * 4 * FP32,
        f"what autograd keeps of {length} tokens, with checkpointing": kept.checkpointed,
        "context and buffers (guessed)": overhead,
    }
    report("Training, per GPU", train)
    del train[f"what autograd keeps of {length} tokens, with checkpointing"]
    report(
        "  the same without checkpointing",
        {**train, f"what autograd keeps of {length} tokens": kept.blocks + kept.rest},
    )


def adapt(model: nn.Module, plan: pa.PruningPlan, rank: int) -> Any:
    """LoRA of one rank on every linear map of every block."""
    ranks = RankPlan(
        model=plan.model,
        kept_heads=plan.kept_heads,
        kept_neurons=plan.kept_neurons,
        ranks=(rank,) * len(plan.kept_heads),
        feed_forward_ranks=(rank,) * len(plan.kept_neurons),
        roles=TARGETS["all-linear"],
    )
    config = pa.PruneLoraConfig(
        pruning=plan, ranks=ranks, task_type="CAUSAL_LM", train_norms=False, allow_other_weights=True
    )
    return get_peft_model(model, config, low_cpu_mem_usage=True)


if __name__ == "__main__":
    main()
