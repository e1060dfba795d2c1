"""The laws that every supported family obeys. A new family inherits them all by naming its tiny model.

Equality is claimed in float64 on tiny random models whose biases and norms are random too.
"""

import copy
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import pruning_adapter as pa
from pruning_adapter.architectures.identity import count_parameters, fingerprint_weights, identify
from pruning_adapter.architectures.sites import find_sites
from pruning_adapter.checkpoint.rebuild import patches_can_be_applied
from pruning_adapter.errors import PlanError
from pruning_adapter.evaluation.cost import count_trainable
from tiny import make_batch, make_model, randomize_

PLANS = {
    "uneven": {0: [1, 3], 1: [0], 2: [0, 1, 2]},
    "one block": {1: [2]},
    "an empty block": {0: [0, 1, 2, 3], 2: [3]},
}
TIGHT = {"rtol": 0.0, "atol": 1e-12}

# Another process: what it computes from the files alone.
LOAD_ALL = """
import sys, torch, pruning_adapter as pa
from pruning_adapter.checkpoint.rebuild import patches_can_be_applied
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
folder, *names = sys.argv[1:]
torch.set_num_threads(1)
batch, found = load_file(folder + "/batch.safetensors"), {}
with torch.no_grad():
    for name in names:
        path = folder + "/" + name
        found["ours " + name] = pa.load_pruned(path)(**batch).logits
        if patches_can_be_applied():
            found["auto " + name] = AutoModelForSequenceClassification.from_pretrained(path)(**batch).logits
save_file(found, folder + "/logits.safetensors")
"""


@contextmanager
def one_thread() -> Generator[None]:
    """Bit-identity is promised for the same number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def make_plan(model: Any, pruned: dict[int, list[int]]) -> pa.PruningPlan:
    return pa.PruningPlan.from_pruned_heads(
        identify(model), pruned, dense_parameters=count_parameters(model), allow_empty_blocks=True
    )


def make_gates(plan: pa.PruningPlan) -> list[Tensor]:
    return [
        torch.tensor([float(head in kept) for head in range(heads)], dtype=torch.float64)
        for kept, heads in zip(plan.kept_heads, plan.model.heads, strict=True)
    ]


def hooks_of(model: torch.nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


class Conformance:
    """Subclass it as `Test<Family>` and set `family`."""

    family: str

    def model(self, **options: Any) -> PreTrainedModel:
        return make_model(self.family, **options)

    # Gates

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_gates_at_one_change_nothing_and_leave_nothing_behind(self, attention: str) -> None:
        model, batch = self.model(attention=attention), make_batch()
        before, hooks = logits(model, batch), hooks_of(model)
        with pa.gated(model, [torch.ones(site.units) for site in find_sites(model)]):
            torch.testing.assert_close(logits(model, batch), before, rtol=0, atol=0)
            assert hooks_of(model) == hooks + len(find_sites(model))
        assert hooks_of(model) == hooks

    @pytest.mark.parametrize("pruned", PLANS.values(), ids=PLANS)
    @pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_gating_to_zero_equals_pruning(self, attention: str, padded: bool, pruned: dict[int, list[int]]) -> None:
        model, batch = self.model(attention=attention), make_batch(padded=padded)
        plan = make_plan(model, pruned)
        with pa.gated(model, make_gates(plan)):
            gated = logits(model, batch)
        assert not torch.allclose(gated, logits(model, batch))
        torch.testing.assert_close(logits(pa.prune_(model, plan), batch), gated, **TIGHT)

    def test_head_mask_is_not_what_we_rely_on(self) -> None:
        """Transformers 5 swallows `head_mask` and ignores it, where it does not refuse it."""
        model, batch = self.model(), make_batch()
        mask = torch.zeros(len(find_sites(model)), 4, dtype=torch.float64)
        try:
            with torch.no_grad():
                masked = cast(Any, model)(**batch, head_mask=mask).logits
        except TypeError:
            return
        torch.testing.assert_close(masked, logits(model, batch), rtol=0, atol=0)

    # Importance

    def test_the_gates_gradient_equals_finite_differences(self) -> None:
        model, batch = self.model(), {name: value[:1] for name, value in make_batch().items()}
        scores = pa.measure_importance(model, [batch], allow_one_class=True)
        tokens, step = int(batch["attention_mask"].sum()), 1e-5
        for block, site in enumerate(find_sites(model)):
            for head in range(site.units):
                losses: list[Tensor] = []
                for sign in (1, -1):
                    gates = [torch.ones(s.heads, dtype=torch.float64) for s in find_sites(model)]
                    gates[block][head] += sign * step
                    with torch.no_grad(), pa.gated(model, gates):
                        losses.append(cast(Any, model)(**batch).loss)
                slope = (losses[0] - losses[1]) / (2 * step) / tokens
                assert abs(float(slope)) == pytest.approx(float(scores.heads[block][head]), abs=1e-9)

    @pytest.mark.parametrize("reduction", ["example", "token"])
    def test_scores_depend_neither_on_batch_size_nor_on_padding(self, reduction: Any) -> None:
        model, batch = self.model(), make_batch()
        whole = pa.measure_importance(model, [batch], reduction=reduction)
        rows = [{name: value[row : row + 1] for name, value in batch.items()} for row in range(6)]
        for row in rows:
            length = int(row["attention_mask"].sum())
            row.update({name: row[name][:, :length] for name in ("input_ids", "attention_mask")})
        one_by_one = pa.measure_importance(model, rows, reduction=reduction)
        assert one_by_one.tokens == whole.tokens
        for together, apart in zip(whole.heads, one_by_one.heads, strict=True):
            torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-13)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_lower_precision_keeps_the_scores(self, dtype: torch.dtype) -> None:
        batch = make_batch(size=12)
        exact = torch.cat(pa.measure_importance(self.model(attention="sdpa"), [batch]).heads)
        rough = torch.cat(pa.measure_importance(self.model(attention="sdpa", dtype=dtype), [batch]).heads)
        error = (rough - exact).norm() / exact.norm()
        # bfloat16 keeps 8 bits, and the error adds up over three blocks.
        assert error < (1e-5 if dtype == torch.float32 else 0.1)

    def test_measuring_leaves_the_model_as_it_was(self) -> None:
        model, batch = self.model(), make_batch()
        model.train()
        frozen, quiet = next(model.parameters()), find_sites(model)[1].block
        frozen.requires_grad_(False)
        quiet.eval()
        state = [parameter.requires_grad for parameter in model.parameters()], [m.training for m in model.modules()]
        broken = {name: value for name, value in batch.items() if name != "labels"}
        for batches in ([batch], [batch, broken]):
            try:
                pa.measure_importance(model, batches)
            except ValueError as error:
                assert "labels" in str(error)  # noqa: PT017 (one of the two passes)
            after = [parameter.requires_grad for parameter in model.parameters()], [m.training for m in model.modules()]
            assert after == state
            assert hooks_of(model) == 0
            assert all(parameter.grad is None for parameter in model.parameters())

    # Surgery

    def test_pruning_in_two_steps_equals_pruning_at_once(self) -> None:
        batch, first, second = make_batch(), {0: [0], 1: [1, 2]}, {0: [3], 2: [0, 1, 2, 3]}
        both = {0: [0, 3], 1: [1, 2], 2: [0, 1, 2, 3]}
        stepwise, swapped, at_once = self.model(), self.model(), self.model()
        for model, steps in ((stepwise, (first, second)), (swapped, (second, first)), (at_once, (both,))):
            for step in steps:
                pa.prune_(model, make_plan(model, step))
        for model in (stepwise, swapped):
            torch.testing.assert_close(logits(model, batch), logits(at_once, batch), rtol=0, atol=0)
            assert model.config.pruning == at_once.config.pruning

    def test_pruning_nothing_is_the_identity(self) -> None:
        model, batch = self.model(), make_batch()
        before = logits(model, batch)
        assert torch.equal(logits(pa.prune_(model, make_plan(model, {})), batch), before)

    @pytest.mark.parametrize("pruned", PLANS.values(), ids=PLANS)
    def test_predicted_parameters_equal_counted_ones(self, pruned: dict[int, list[int]]) -> None:
        model = self.model()
        plan = make_plan(model, pruned)
        assert count_parameters(pa.prune_(model, plan)) == plan.parameters

    def test_surgery_keeps_dtype_bias_and_requires_grad_and_updates_counts(self) -> None:
        model = self.model(dtype=torch.bfloat16)
        site = find_sites(model)[0]
        site.module(site.spec.projections[0].path).get_parameter("weight").requires_grad_(False)
        pa.prune_(model, make_plan(model, PLANS["uneven"]))
        query = find_sites(model)[0].module(site.spec.projections[0].path)
        assert query.get_parameter("weight").shape == (16, 32)
        assert query.get_parameter("bias").shape == (16,)
        assert query.get_parameter("weight").dtype == torch.bfloat16
        assert query.get_parameter("weight").is_contiguous()
        assert not query.get_parameter("weight").requires_grad
        assert query.get_parameter("bias").requires_grad
        assert cast(Any, query).out_features == 16
        for follow in site.spec.follow:
            told = getattr(find_sites(model)[0].block.get_submodule(follow.module), follow.attribute)
            assert told == {"heads": 2, "rows": 16}[follow.counts]

    def test_gradients_flow_and_copies_work_after_surgery(self) -> None:
        model, batch = self.model(), make_batch()
        copied = copy.deepcopy(pa.prune_(model, make_plan(model, PLANS["an empty block"])))
        cast(Any, copied)(**batch).loss.backward()
        assert torch.equal(logits(copied, batch), logits(model, batch))
        used = [parameter for name, parameter in copied.named_parameters() if "pooler" not in name]
        assert all(parameter.grad is not None for parameter in used)

    def test_a_plan_for_another_model_is_refused_before_a_weight_moves(self) -> None:
        model, batch = self.model(), make_batch()
        before = logits(model, batch)
        with pytest.raises(PlanError, match=r"other weights.*allow_other_weights=True"):
            pa.prune_(model, make_plan(self.model(seed=1), {0: [1]}))
        wider = {"dim": 64} if self.family == "distilbert" else {"hidden_size": 64}
        other_sizes = make_plan(self.model(**wider), {0: [1]})
        with pytest.raises(PlanError, match="Score this model and plan anew"):
            pa.prune_(model, other_sizes, allow_other_weights=True)
        assert torch.equal(logits(model, batch), before)
        pa.prune_(model, make_plan(self.model(seed=1), {0: [1]}), allow_other_weights=True)
        assert find_sites(model)[0].units == 3

    def test_the_fingerprint_depends_neither_on_dtype_nor_on_the_task_head(self) -> None:
        model = self.model(dtype=torch.float32)
        expected = fingerprint_weights(model)
        assert expected is not None
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            assert fingerprint_weights(copy.deepcopy(model).to(dtype)) == expected
        assert fingerprint_weights(model.base_model) == expected
        assert fingerprint_weights(self.model(seed=1, dtype=torch.float32)) != expected

    # Adapter

    def adapted(self, pruned: dict[int, list[int]], *, base: Any = None) -> tuple[Any, pa.RankPlan]:
        base = base or self.model()
        scores = pa.measure_importance(base, [make_batch()])
        plan = make_plan(base, pruned)
        ranks = pa.plan_ranks(scores, plan, top_blocks=1, high=3, low=2)
        config = pa.PruneLoraConfig(pruning=plan, ranks=ranks, task_type="SEQ_CLS")
        return get_peft_model(base, config), ranks

    @pytest.mark.parametrize("pruned", PLANS.values(), ids=PLANS)
    def test_a_fresh_adapter_changes_nothing(self, pruned: dict[int, list[int]]) -> None:
        batch, dense = make_batch(), self.model()
        model, _ = self.adapted(pruned)
        model.eval()
        torch.testing.assert_close(
            logits(model, batch), logits(pa.prune_(dense, make_plan(dense, pruned)), batch), **TIGHT
        )

    @pytest.mark.parametrize("pruned", PLANS.values(), ids=PLANS)
    def test_predicted_trainable_parameters_equal_counted_ones(self, pruned: dict[int, list[int]]) -> None:
        model, ranks = self.adapted(pruned)
        head = sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and "classifier" in name
        )
        assert head > 0
        assert count_trainable(model) == ranks.trainable_parameters + head

    @pytest.mark.parametrize("pruned", PLANS.values(), ids=PLANS)
    def test_merged_equals_unmerged_and_disabling_gives_the_pruned_base(self, pruned: dict[int, list[int]]) -> None:
        batch, dense = make_batch(), self.model()
        model, _ = self.adapted(pruned)
        model.eval()
        randomize_(model, only_trainable=True)
        trained = logits(model, batch)
        pruned_base = logits(pa.prune_(dense, make_plan(dense, pruned)), batch)
        assert not torch.allclose(trained, pruned_base)
        with model.disable_adapter():
            torch.testing.assert_close(logits(model, batch), pruned_base, **TIGHT)
        torch.testing.assert_close(logits(model.merge_and_unload(), batch), trained, **TIGHT)

    @pytest.mark.parametrize("pruned", PLANS.values(), ids=PLANS)
    def test_an_adapter_reloads_onto_a_fresh_full_size_base(self, pruned: dict[int, list[int]], tmp_path: Path) -> None:
        batch, base = make_batch(), self.model()
        base.save_pretrained(tmp_path / "base")
        model, _ = self.adapted(pruned)
        model.eval()
        randomize_(model, only_trainable=True)
        model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        fresh = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
        torch.testing.assert_close(logits(loaded, batch), logits(model, batch), **TIGHT)
        kept = [site.units for site in find_sites(loaded)]
        assert kept == [4 - len(pruned.get(block, [])) for block in range(3)]

    # Checkpoint

    def test_a_merged_model_is_the_same_in_another_process(self, tmp_path: Path) -> None:
        batch, models = make_batch(), dict[str, Any]()
        save_file(batch, tmp_path / "batch.safetensors")
        for name, pruned in PLANS.items():
            models[name], _ = self.adapted(pruned)
            models[name].eval()
            randomize_(models[name], only_trainable=True)
            pa.save_pruned(models[name], tmp_path / name)
        subprocess.run([sys.executable, "-c", LOAD_ALL, str(tmp_path), *PLANS], check=True, capture_output=True)
        found = load_file(tmp_path / "logits.safetensors")
        for name in PLANS:
            with one_thread():
                here = logits(pa.load_pruned(tmp_path / name), batch)
            assert torch.equal(found[f"ours {name}"], here)
            if patches_can_be_applied():
                assert torch.equal(found[f"auto {name}"], here)
            torch.testing.assert_close(here, logits(models[name], batch), **TIGHT)
