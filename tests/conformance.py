"""The laws that every supported family obeys. A new family inherits them all by naming its tiny model.

Equality is claimed in float64 on tiny random models whose biases and norms are random too.
"""

import copy
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

import pruning_adapter as pa
from pruning_adapter.adapter.carry import carry_, take_out_
from pruning_adapter.adapter.linear import QuickLinear
from pruning_adapter.architectures.identity import count_parameters, fingerprint_weights, identify, pruned_state
from pruning_adapter.architectures.shapes import ModelIdentity, SiteShape
from pruning_adapter.architectures.sites import find_all_sites, find_feed_forwards, find_sites, spec_of
from pruning_adapter.checkpoint import save_stock
from pruning_adapter.checkpoint.merged import merge
from pruning_adapter.costs.macs import count_macs, count_model_macs
from pruning_adapter.errors import ArchitectureError, PlanError
from pruning_adapter.evaluation.cost import count_trainable
from pruning_adapter.planning.rank_plan import ALL_ROLES
from pruning_adapter.surgery import fuse
from pruning_adapter.training.padding_free import leave_out_padding_
from tiny import FAMILIES, Task, make_batch, make_model, randomize_

CASES = ("heads", "neurons", "heads and neurons", "even groups", "empty blocks")
"""What is pruned: see `make_case`."""
TIGHT = {"rtol": 0.0, "atol": 1e-12}
# Transformers computes some losses and norms in float32, whatever the model's type.
FLOAT32 = {"rtol": 1e-5, "atol": 1e-8}
PEFT_TASKS: dict[Task, str | None] = {
    "classification": "SEQ_CLS",
    "causal": "CAUSAL_LM",
    "sequence to sequence": "SEQ_2_SEQ_LM",
    "sound": None,
    "image": None,
}


@contextmanager
def one_thread() -> Generator[None]:
    """Bit-identity is promised for the same number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def make_plan(model: Any, pruned: dict[int, list[int]], neurons: dict[int, list[int]] | None = None) -> pa.PruningPlan:
    return pa.PruningPlan.from_pruned_heads(
        identify(model),
        pruned,
        pruned_neurons=neurons,
        dense_parameters=count_parameters(model),
        allow_empty_blocks=True,
    )


def make_case(model: Any, case: str) -> pa.PruningPlan:
    """A plan that removes the units that a case is about, uneven from block to block.

    Heads go as whole groups where several share a key and a value, and one by one where all share the same; "even
    groups" removes one query head of every group.
    """
    identity = identify(model)
    heads: dict[int, list[int]] = {}
    neurons: dict[int, list[int]] = {}
    if case in ("heads", "heads and neurons"):
        heads = {block: uneven_heads(site, block) for block, site in enumerate(identity.sites)}
    if case == "even groups":
        size = [site.group_size for site in identity.sites]
        heads = {block: list(range(0, site.units, size[block])) for block, site in enumerate(identity.sites)}
        # One head of every group, but never the last: with as many groups as heads, every second head.
        heads = {block: gone if size[block] > 1 else gone[::2] for block, gone in heads.items()}
    if case in ("neurons", "heads and neurons"):
        neurons = {
            block: list(range(block % 2, site.units, 2 + block)) for block, site in enumerate(identity.feed_forwards)
        }
    if case == "empty blocks":
        last = len(identity.sites) - 1
        heads = {0: list(range(identity.sites[0].units)), last: list(range(identity.sites[last].units))}
        neurons = {1: list(range(identity.feed_forwards[1].units)), 2: [0]}
    return make_plan(model, heads, neurons)


def uneven_heads(site: SiteShape, block: int) -> list[int]:
    if site.groups == 1:
        return [[1, 3], [0], [0, 1, 2]][block % 3]
    if site.group_size > 1:
        return [[0, 1], [], [2, 3]][block % 3]
    return [[1, 3], [0], [0, 1, 2], [], [2]][block % 5]


def make_gates(plan: pa.PruningPlan) -> list[Tensor]:
    """Gates that are zero for the heads that a plan removes."""
    return zeros_and_ones(plan.model.sites, plan.kept_heads)


def make_neuron_gates(plan: pa.PruningPlan) -> list[Tensor]:
    """Gates that are zero for the neurons that a plan removes."""
    return zeros_and_ones(plan.model.feed_forwards, plan.kept_neurons)


def zeros_and_ones(sites: tuple[SiteShape, ...], kept: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    return [
        torch.tensor([float(unit in set(units)) for unit in range(site.units)], dtype=torch.float64)
        for site, units in zip(sites, kept, strict=True)
    ]


def hooks_of(model: torch.nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def backends(family: str) -> list[str]:
    """The attention backends of a family that run on a CPU."""
    return ["eager", "sdpa"] if FAMILIES[family].model_class._supports_sdpa else ["eager"]


def delta_of(model: torch.nn.Module) -> dict[str, float]:
    """How much LoRA adds to every weight: the sum of squares."""
    return {
        name: float(module.get_delta_weight("default").square().sum())
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


class Conformance:
    """Subclass it as `Test<Family>` and set `family`."""

    family: str

    def model(self, **options: Any) -> PreTrainedModel:
        return make_model(self.family, **options)

    def batch(self, **options: Any) -> dict[str, Tensor]:
        return make_batch(FAMILIES[self.family].task, **options)

    def rows(self) -> list[dict[str, Tensor]]:
        """The examples of `batch`, one by one and without padding."""
        rows: list[dict[str, Tensor]] = []
        for row in range(6):
            one = {name: value[row : row + 1] for name, value in self.batch().items()}
            if "attention_mask" in one:
                length = int(one["attention_mask"].sum())
                texts = [name for name, value in one.items() if value.shape == one["attention_mask"].shape]
                one |= {name: one[name][:, :length] for name in texts}
            if FAMILIES[self.family].task in ("sequence to sequence", "sound"):
                one["labels"] = one["labels"][:, : int((one["labels"] != -100).sum())]
            rows.append(one)
        return rows

    # Padding

    @pytest.mark.parametrize("case", ["heads and neurons", "empty blocks"])
    def test_leaving_out_padding_changes_nothing_but_padding(self, case: str) -> None:
        """Outputs and gradients; families that cannot do it say so."""
        # Eager attention computes its softmax in float32 in some families.
        models: list[Any] = [self.model(attention=backends(self.family)[-1]) for _ in range(2)]
        for model in models:
            pa.prune_(model, make_case(model, case))
        if not all(stack.padding_free for stack in spec_of(models[0]).stacks):
            with pytest.raises(ArchitectureError, match="cannot leave out padding"):
                leave_out_padding_(models[0])
            return
        leave_out_padding_(models[1])
        for padded in (True, False):
            found: list[list[Tensor]] = []
            for model in models:
                outputs = model(**self.batch(padded=padded))
                outputs.loss.backward()
                gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
                found.append([outputs.logits.detach(), *gradients])
            for plain, packed in zip(*found, strict=True):
                torch.testing.assert_close(packed, plain, rtol=1e-10, atol=1e-12)

    # The description

    def test_the_tiny_model_has_what_the_laws_speak_of(self) -> None:
        model = self.model()
        identity = identify(model)
        assert set(identity.heads) == {4}
        assert set(identity.neurons) == {24}
        assert len(identity.sites) >= 3
        found = [name for name, _ in model.named_modules() if name.endswith(spec_of(model).norms)]
        assert found, "no module is called like the family's norms"
        assert identity.norm_parameters > 0

    # Gates

    def test_gates_at_one_change_nothing_and_leave_nothing_behind(self) -> None:
        for attention in backends(self.family):
            model, batch = self.model(attention=attention), self.batch()
            before, hooks = logits(model, batch), hooks_of(model)
            heads = [torch.ones(site.units) for site in find_sites(model)]
            neurons = [torch.ones(site.units) for site in find_feed_forwards(model)]
            with pa.gated(model, heads, neurons):
                torch.testing.assert_close(logits(model, batch), before, rtol=0, atol=0)
                assert hooks_of(model) == hooks + len(heads) + len(neurons)
            assert hooks_of(model) == hooks

    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
    def test_gating_to_zero_equals_pruning(self, padded: bool, case: str) -> None:
        for attention in backends(self.family):
            model, batch = self.model(attention=attention), self.batch(padded=padded)
            plan = make_case(model, case)
            with pa.gated(model, make_gates(plan), make_neuron_gates(plan)):
                gated = logits(model, batch)
            assert not torch.allclose(gated, logits(model, batch))
            torch.testing.assert_close(logits(pa.prune_(model, plan), batch), gated, **TIGHT)

    def test_head_mask_is_not_what_we_rely_on(self) -> None:
        """Transformers 5 swallows `head_mask` and ignores it, where it does not refuse it."""
        model, batch = self.model(), self.batch()
        mask = torch.zeros(len(find_sites(model)), 4, dtype=torch.float64)
        try:
            with torch.no_grad():
                masked = cast(Any, model)(**batch, head_mask=mask).logits
        except TypeError:
            return
        torch.testing.assert_close(masked, logits(model, batch), rtol=0, atol=0)

    # Importance

    def test_the_gates_gradient_equals_finite_differences(self) -> None:
        model, batch = self.model(), {name: value[:1] for name, value in self.batch().items()}
        scores = pa.measure_importance(model, [batch], units=("heads", "neurons"), allow_one_class=True)
        ones = [torch.ones(site.units, dtype=torch.float64) for site in find_all_sites(model)]
        attentions = len(find_sites(model))
        # Some families compute norms or losses in float32 whatever the model is in; the step is wider there.
        exact = FAMILIES[self.family].task == "classification" and cast(Any, model)(**batch).loss.dtype == torch.float64
        step, tolerance = (1e-3, 1e-5) if exact else (3e-3, 3e-4)
        found = [*scores.heads, *scores.neurons]
        for number, site in enumerate(find_all_sites(model)):
            for unit in range(0, site.units, 1 if site.kind == "heads" else 11):
                losses: list[Tensor] = []
                for sign in (1, -1):
                    gates = [gate.clone() for gate in ones]
                    gates[number][unit] += sign * step
                    with torch.no_grad(), pa.gated(model, gates[:attentions], gates[attentions:]):
                        losses.append(cast(Any, model)(**batch).loss)
                slope = (losses[0] - losses[1]) / (2 * step) / scores.tokens
                assert abs(float(slope)) == pytest.approx(float(found[number][unit]), rel=1e-2, abs=tolerance)

    @pytest.mark.parametrize("order", ["first", "second"])
    def test_scores_depend_neither_on_batch_size_nor_on_padding(self, order: Any) -> None:
        model, units = self.model(), ("heads", "neurons")
        whole = pa.measure_importance(model, [self.batch()], units=units, order=order)
        one_by_one = pa.measure_importance(model, self.rows(), units=units, order=order)
        assert one_by_one.tokens == whole.tokens
        for kind in units:
            for together, apart in zip(whole.scores_of(kind), one_by_one.scores_of(kind), strict=True):
                torch.testing.assert_close(together, apart, **FLOAT32)

    def test_scores_per_token_depend_neither_on_batch_size_nor_on_padding(self) -> None:
        model = self.model()
        whole = pa.measure_importance(model, [self.batch()], reduction="token")
        one_by_one = pa.measure_importance(model, self.rows(), reduction="token")
        for together, apart in zip(whole.heads, one_by_one.heads, strict=True):
            torch.testing.assert_close(together, apart, **FLOAT32)

    def test_what_others_cannot_make_up_for_depends_neither_on_batch_size_nor_on_padding(self) -> None:
        model, units = self.model(), ("heads", "neurons")
        whole = pa.obs_importance(model, [self.batch()], units=units)
        one_by_one = pa.obs_importance(model, self.rows(), units=units)
        assert one_by_one.tokens == whole.tokens
        for kind in units:
            for together, apart in zip(whole.scores_of(kind), one_by_one.scores_of(kind), strict=True):
                torch.testing.assert_close(together, apart, **FLOAT32)
                assert bool((together >= 0).all())

    def test_one_pass_for_both_kinds_gives_what_two_passes_give(self) -> None:
        model, batch = self.model(), self.batch()
        both = pa.measure_importance(model, [batch], units=("heads", "neurons"))
        heads = pa.measure_importance(model, [batch])
        neurons = pa.measure_importance(model, [batch], units=("neurons",))
        assert (heads.kinds, neurons.kinds, both.kinds) == (("heads",), ("neurons",), ("heads", "neurons"))
        for one, other in zip([*both.heads, *both.neurons], [*heads.heads, *neurons.neurons], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_lower_precision_keeps_the_scores(self, dtype: torch.dtype) -> None:
        attention = backends(self.family)[-1]

        def measure(dtype: torch.dtype) -> Tensor:
            model = self.model(attention=attention, dtype=dtype)
            batch = {
                name: value.to(dtype) if value.is_floating_point() else value
                for name, value in self.batch(size=12).items()
            }
            scores = pa.measure_importance(model, [batch], units=("heads", "neurons"))
            return torch.cat([*scores.heads, *scores.neurons])

        exact = measure(torch.float64)
        error = (measure(dtype) - exact).norm() / exact.norm()
        # bfloat16 keeps 8 bits, and the error adds up over the blocks.
        assert error < (1e-4 if dtype == torch.float32 else 0.3)

    def test_measuring_leaves_the_model_as_it_was(self) -> None:
        model, batch = self.model(), self.batch()
        model.train()
        frozen, quiet, hooks = next(model.parameters()), find_sites(model)[1].block, hooks_of(model)
        frozen.requires_grad_(False)
        quiet.eval()
        state = [parameter.requires_grad for parameter in model.parameters()], [m.training for m in model.modules()]
        broken = {name: value for name, value in batch.items() if name != "labels"}
        for measure, batches in product((pa.measure_importance, pa.obs_importance), ([batch], [batch, broken])):
            try:
                measure(model, batches, units=("heads", "neurons"))
            except ValueError as error:
                assert "labels" in str(error)  # noqa: PT017 (one of the two passes)
            after = [parameter.requires_grad for parameter in model.parameters()], [m.training for m in model.modules()]
            assert after == state
            assert hooks_of(model) == hooks
            assert all(parameter.grad is None for parameter in model.parameters())

    # Surgery

    def test_pruning_in_two_steps_equals_pruning_at_once(self) -> None:
        batch = self.batch()
        first, second = make_case(self.model(), "heads"), make_case(self.model(), "neurons")
        third = make_case(self.model(), "empty blocks")
        stepwise, swapped = self.model(), self.model()
        for model, steps in ((stepwise, (first, second, third)), (swapped, (third, second, first))):
            for step in steps:
                pa.prune_(model, step)
        at_once = self.model()
        left = [set(a) & set(b) & set(c) for a, b, c in zip(first.kept, second.kept, third.kept, strict=True)]
        identity = identify(at_once)
        kept = [tuple(sorted(units)) for units in left]
        attentions = len(identity.sites)
        pa.prune_(
            at_once,
            pa.PruningPlan(
                model=identity,
                kept_heads=tuple(kept[:attentions]),
                kept_neurons=tuple(kept[attentions:]),
                dense_parameters=count_parameters(at_once),
                allow_empty_blocks=True,
            ),
        )
        for model in (stepwise, swapped):
            torch.testing.assert_close(logits(model, batch), logits(at_once, batch), rtol=0, atol=0)
            assert model.config.pruning == at_once.config.pruning

    @pytest.mark.parametrize("case", CASES)
    def test_one_product_for_query_key_and_value_gives_what_three_give(
        self, case: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fuse, "FEWEST_TOKENS", {})
        model = self.model()
        pa.prune_(model, make_case(model, case))
        alone = logits(model, self.batch())
        weights = {name: weight.clone() for name, weight in model.state_dict().items()}
        fuse.fuse_(model)
        torch.testing.assert_close(logits(model, self.batch()), alone, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)

    def test_pruning_nothing_is_the_identity(self) -> None:
        model, batch = self.model(), self.batch()
        before = logits(model, batch)
        assert torch.equal(logits(pa.prune_(model, make_plan(model, {})), batch), before)

    @pytest.mark.parametrize("case", CASES)
    def test_predicted_parameters_and_operations_equal_counted_ones(self, case: str) -> None:
        model = self.model(attention=backends(self.family)[-1])
        macs = count_model_macs(model)
        plan = pa.PruningPlan.from_json({**make_case(model, case).to_json(), "macs": macs.to_json()})
        dense = {length: count_macs(model, length=length) for length in (5, 13)}
        pa.prune_(model, plan)
        assert count_parameters(model) == plan.parameters
        for length, before in dense.items():
            assert plan.count_dense_macs(length) == before
            assert count_macs(model, length=length) == plan.count_macs(length) < before

    def test_surgery_keeps_dtype_bias_and_requires_grad_and_updates_counts(self) -> None:
        model = self.model(dtype=torch.bfloat16)
        for site in find_all_sites(model):
            site.module(site.projections[0].path).get_parameter("weight").requires_grad_(False)
        plan = make_case(model, "heads and neurons")
        biases = [getattr(site.module(site.projections[0].path), "bias", None) for site in find_all_sites(model)]
        pa.prune_(model, plan)
        for site, dense, kept, bias in zip(find_all_sites(model), plan.model.all_sites, plan.kept, biases, strict=True):
            written, output = cast(Any, site.module(site.projections[0].path)), cast(Any, site.module(site.spec.output))
            assert site.units == len(kept)
            assert written.weight.dtype == torch.bfloat16
            assert written.weight.is_contiguous()
            assert not written.weight.requires_grad
            assert output.weight.requires_grad
            assert dense.rows(site.projections[0].roles, kept) == (
                written.nf if hasattr(written, "nf") else written.out_features
            )
            assert (getattr(written, "bias", None) is None) == (bias is None)
            if bias is not None:
                assert written.bias.requires_grad
            groups = {unit // dense.group_size for unit in kept}
            told = {
                "heads": len(kept),
                "neurons": len(kept),
                "rows": len(kept) * dense.unit_size,
                "key_value_heads": len(groups),
                "heads_per_group": len(kept) // len(groups),
            }
            for follow in site.spec.follow:
                holder: Any = site.block.get_submodule(follow.module)
                for name in follow.attribute.split("."):
                    holder = getattr(holder, name)
                assert holder == told[follow.counts]

    def test_gradients_flow_and_copies_work_after_surgery(self) -> None:
        model, batch = self.model(), self.batch()
        pa.prune_(model, make_case(model, "empty blocks"))
        copied = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.data.zero_()
        reference = pa.prune_(self.model(), make_case(self.model(), "empty blocks"))
        assert torch.equal(logits(copied, batch), logits(reference, batch))
        copied.zero_grad()
        cast(Any, copied)(**batch).loss.backward()
        unused = ("pooler", "mask_token")
        used = [p for name, p in copied.named_parameters() if p.numel() and not any(part in name for part in unused)]
        dead = [parameter for parameter in used if parameter.requires_grad and parameter.grad is None]
        assert len(dead) <= self.never_reached(copied)

    def never_reached(self, model: Any) -> int:
        """Parameters before an empty sub-layer, which nothing reads any more: its norm, its projections' bias."""
        empty = [site for site in find_all_sites(model) if not site.units]
        return sum(len(list(site.block.parameters())) for site in empty)

    def test_a_plan_for_another_model_is_refused_before_a_weight_moves(self) -> None:
        model, batch = self.model(), self.batch()
        before = logits(model, batch)
        with pytest.raises(PlanError, match=r"other weights.*allow_other_weights=True"):
            pa.prune_(model, make_case(self.model(seed=1), "neurons"))
        more = {FAMILIES[self.family].blocks: 4}
        other_sizes = make_case(self.model(**more), "neurons")
        with pytest.raises(PlanError, match="Score this model and plan anew"):
            pa.prune_(model, other_sizes, allow_other_weights=True)
        assert torch.equal(logits(model, batch), before)
        pa.prune_(model, make_case(self.model(seed=1), "neurons"), allow_other_weights=True)
        assert find_feed_forwards(model)[0].units == 12

    def test_the_fingerprint_depends_neither_on_dtype_nor_on_the_task_head(self) -> None:
        model = self.model(dtype=torch.float32)
        expected = fingerprint_weights(model)
        assert expected is not None
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            assert fingerprint_weights(copy.deepcopy(model).to(dtype)) == expected
        assert fingerprint_weights(model.base_model) == expected
        assert fingerprint_weights(self.model(seed=1, dtype=torch.float32)) != expected

    # Values on disk

    def test_scores_plans_and_identities_survive_their_files(self, tmp_path: Path) -> None:
        model = self.model()
        scores = pa.measure_importance(model, [self.batch()], units=("heads", "neurons"))
        scores.save(tmp_path / "scores.json")
        again = pa.ImportanceScores.load(tmp_path / "scores.json")
        assert (again.model, again.macs, again.kept_neurons) == (scores.model, scores.macs, scores.kept_neurons)
        assert all(torch.equal(one, other) for one, other in zip(again.neurons, scores.neurons, strict=True))
        plan = make_case(model, "heads and neurons")
        plan.save(tmp_path / "plan.json")
        assert pa.PruningPlan.load(tmp_path / "plan.json") == plan
        assert ModelIdentity.from_json(identify(model).to_json()) == identify(model)

    def test_a_budget_of_operations_is_kept_by_the_pruned_model(self) -> None:
        model = self.model()
        scores = pa.measure_importance(model, [self.batch()], units=("heads", "neurons"))
        dense = count_macs(model, length=16)
        plan = pa.plan_pruning(scores, keep_macs=0.8, length=16)
        found = count_macs(pa.prune_(model, plan), length=16)
        assert found == plan.count_macs(16) <= 0.8 * dense

    # Adapter

    def adapted(
        self, case: str, *, target: Any = "all-linear", quick: bool = True, high: int = 3, base: Any = None
    ) -> tuple[Any, pa.RankPlan]:
        base = self.model() if base is None else base
        scores = pa.measure_importance(base, [self.batch()], units=("heads", "neurons"))
        plan = make_case(base, case)
        ranks = pa.plan_ranks(scores, plan, top_blocks=1, high=high, low=2, target=target)
        config = pa.PruneLoraConfig(
            pruning=plan,
            ranks=ranks,
            task_type=PEFT_TASKS[FAMILIES[self.family].task],
            quick_linear=quick,
        )
        return get_peft_model(base, config).eval(), ranks

    @pytest.mark.parametrize("case", CASES)
    def test_a_fresh_adapter_changes_nothing(self, case: str) -> None:
        batch, dense = self.batch(), self.model()
        model, _ = self.adapted(case)
        torch.testing.assert_close(
            logits(model, batch), logits(pa.prune_(dense, make_case(dense, case)), batch), **TIGHT
        )

    @pytest.mark.parametrize("size", [1, 6], ids=["thin products", "merged products"])
    def test_fewer_products_give_what_pefts_own_give(self, size: int) -> None:
        """Outputs and all gradients, on batches short enough for thin products and long enough for merged ones."""
        models = [self.adapted("heads and neurons", quick=quick)[0] for quick in (True, False)]
        assert any(isinstance(module, QuickLinear) for module in models[0].modules())
        randomize_(models[0], only_trainable=True)
        models[1].load_state_dict(models[0].state_dict())
        found: list[list[Tensor]] = []
        for model in models:
            outputs = model(**{name: value[:size] for name, value in self.batch().items()})
            outputs.loss.backward()
            gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
            found.append([outputs.logits.detach(), *gradients])
        for ours, pefts in zip(*found, strict=True):
            torch.testing.assert_close(ours, pefts, rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize("target", ["attention", "all-linear"])
    @pytest.mark.parametrize("case", ["heads and neurons", "even groups", "empty blocks"])
    def test_predicted_trainable_parameters_equal_counted_ones(self, case: str, target: str) -> None:
        model, ranks = self.adapted(case, target=target)
        heads = ("classifier", "score", *spec_of(model).heads)
        of_head = [
            parameter.numel()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name.partition(".modules_to_save")[0].endswith(heads)
        ]
        assert count_trainable(model) == ranks.trainable_parameters + sum(of_head)

    @pytest.mark.parametrize("case", CASES)
    def test_merged_equals_unmerged_and_disabling_gives_the_pruned_base(self, case: str) -> None:
        batch, dense = self.batch(), self.model()
        model, _ = self.adapted(case)
        randomize_(model, only_trainable=True)
        trained = logits(model, batch)
        pruned_base = logits(pa.prune_(dense, make_case(dense, case)), batch)
        assert not torch.allclose(trained, pruned_base)
        with model.disable_adapter():
            torch.testing.assert_close(logits(model, batch), pruned_base, **TIGHT)
        torch.testing.assert_close(logits(model.merge_and_unload(), batch), trained, rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize("case", ["heads and neurons", "empty blocks"])
    def test_an_adapter_reloads_onto_a_fresh_full_size_base(self, case: str, tmp_path: Path) -> None:
        batch, base = self.batch(), self.model()
        base.save_pretrained(tmp_path / "base")
        model, ranks = self.adapted(case)
        randomize_(model, only_trainable=True)
        model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        fresh = type(base).from_pretrained(tmp_path / "base", attn_implementation="eager")
        loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
        torch.testing.assert_close(logits(loaded, batch), logits(model, batch), **TIGHT)
        assert [site.units for site in find_sites(loaded)] == [len(kept) for kept in ranks.kept_heads]
        assert [site.units for site in find_feed_forwards(loaded)] == [len(kept) for kept in ranks.kept_neurons]

    @pytest.mark.parametrize("case", CASES)
    def test_an_adapter_comes_along_when_its_model_is_pruned(self, case: str) -> None:
        """Pruning the base and the adapter equals merging them and pruning what that gives."""
        batch = self.batch()
        dense, _ = self.adapted("nothing", high=2)
        randomize_(dense, only_trainable=True)
        merged = merge(dense)
        expected = logits(pa.prune_(merged, make_case(merged, case)), batch)
        pruned, ranks = self.adapted(case)
        assert max(ranks.all_ranks) == 3
        carry_(dense, pruned, make_case(self.model(), case))
        torch.testing.assert_close(logits(pruned, batch), expected, rtol=1e-10, atol=1e-10)

    def test_an_adapter_comes_along_from_pruning_to_pruning(self) -> None:
        """In two steps it is what it is in one."""
        batch = self.batch()
        dense, _ = self.adapted("nothing", high=2)
        randomize_(dense, only_trainable=True)
        merged = merge(dense)
        expected = logits(pa.prune_(merged, make_case(merged, "heads and neurons")), batch)
        before = dense
        for case in ("heads", "heads and neurons"):
            pruned, _ = self.adapted(case)
            carry_(before, pruned, make_case(self.model(), case))
            before = pruned
        torch.testing.assert_close(logits(before, batch), expected, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("high", [2, 3], ids=["rank lost", "rank kept"])
    def test_an_adapter_taken_out_of_its_base_leaves_the_whole_as_it_was(self, high: int) -> None:
        batch = self.batch()
        dense, _ = self.adapted("nothing")
        randomize_(dense, only_trainable=True)
        merged = merge(dense)
        plan = make_case(merged, "heads and neurons")
        expected = logits(pa.prune_(merged, plan), batch)
        pruned, _ = self.adapted("heads and neurons", base=merge(dense), high=high)
        carry_(dense, pruned, plan)
        assert not torch.allclose(logits(pruned, batch), expected)
        take_out_(pruned)
        torch.testing.assert_close(logits(pruned, batch), expected, rtol=1e-10, atol=1e-10)

    def plain_lora(self, base: Any, **options: Any) -> Any:
        """PEFT's own LoRA of one rank on everything that a plan can speak of, random."""
        identity = identify(base)
        whole = make_plan(base, {})
        ranks = pa.RankPlan(
            model=identity,
            kept_heads=whole.kept_heads,
            ranks=(3,) * len(identity.sites),
            feed_forward_ranks=(2,) * len(identity.feed_forwards),
            roles=ALL_ROLES,
        )
        task = PEFT_TASKS[FAMILIES[self.family].task]
        model = get_peft_model(base, pa.plain_lora_config(base, ranks, scaling=2.0, task_type=task, **options)).eval()
        randomize_(model, only_trainable=True)
        return model

    @pytest.mark.parametrize("case", CASES)
    def test_a_plain_adapter_can_be_sliced(self, case: str) -> None:
        """Slicing equals merging and then pruning."""
        batch, model = self.batch(), self.plain_lora(self.model())
        merged = merge(model)
        sliced = pa.slice_adapter(model, make_case(self.model(), case))
        expected = logits(pa.prune_(merged, make_case(merged, case)), batch)
        torch.testing.assert_close(logits(sliced, batch), expected, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("case", ["heads and neurons", "even groups", "empty blocks"])
    def test_a_lifted_adapter_adds_what_it_added_and_zeros_elsewhere(self, case: str, tmp_path: Path) -> None:
        """Slicing it again gives back what it was, also from its files; where units went it adds nothing."""
        batch = self.batch()
        pruned, _ = self.adapted(case)
        randomize_(pruned, only_trainable=True)
        base = self.model()
        lifted = pa.lift_adapter(pruned, base)
        assert type(lifted.peft_config["default"]) is LoraConfig
        lifted.save_pretrained(tmp_path, save_embedding_layers=False)
        again = PeftModel.from_pretrained(self.model(), tmp_path).eval()
        back = pa.slice_adapter(again, make_case(self.model(), case))
        torch.testing.assert_close(logits(back, batch), logits(pruned, batch), rtol=1e-10, atol=1e-10)
        found, whole = delta_of(pruned), delta_of(lifted)
        assert sum(found.values()) == pytest.approx(sum(whole.values()), rel=1e-10)

    # Checkpoint

    @pytest.mark.parametrize("case", ["heads and neurons", "even groups", "empty blocks"])
    def test_a_checkpoint_can_be_pruned_without_loading_it(self, case: str, tmp_path: Path) -> None:
        """To the bit what pruning the loaded model gives, and the same words about it in the config."""
        model = self.model()
        model.save_pretrained(tmp_path / "dense", max_shard_size="20KB")
        assert len(list((tmp_path / "dense").glob("*.safetensors"))) > 1
        plan = make_case(type(model).from_pretrained(tmp_path / "dense", dtype=torch.float64), case)
        pa.prune_checkpoint(tmp_path / "dense", plan, tmp_path / "streamed", shard_bytes=20_000)
        pa.save_pruned(pa.prune_(model, plan), tmp_path / "loaded")
        ours, expected = (pa.load_pruned(tmp_path / name) for name in ("streamed", "loaded"))
        assert ours.state_dict().keys() == expected.state_dict().keys()
        assert all(torch.equal(ours.state_dict()[name], weight) for name, weight in expected.state_dict().items())
        # Each was made from a model of another folder.
        said, should = (
            replace(state, dense=replace(state.dense, name="")) for state in map(pruned_state, (ours, expected))
        )
        assert said == should

    @pytest.mark.parametrize("case", ["even groups", "empty blocks"])
    def test_padded_with_zeros_it_is_a_dense_model_that_computes_the_same(self, case: str, tmp_path: Path) -> None:
        """With the dense model's shapes and nothing of ours in the config; see also tests/matrix.py."""
        dense, model = self.model(), self.model()
        pa.prune_(model, make_case(model, case))
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        save_stock(model, tmp_path)
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
        loaded = type(model).from_pretrained(tmp_path, attn_implementation="eager")
        assert pruned_state(loaded) is None
        assert {name: weight.shape for name, weight in loaded.state_dict().items()} == {
            name: weight.shape for name, weight in dense.state_dict().items()
        }
        torch.testing.assert_close(logits(loaded, self.batch()), logits(model, self.batch()), **TIGHT)

    @pytest.mark.parametrize("case", ["heads and neurons", "even groups", "empty blocks"])
    def test_a_merged_model_loads_again(self, case: str, tmp_path: Path) -> None:
        batch = self.batch()
        model, _ = self.adapted(case)
        randomize_(model, only_trainable=True)
        pa.save_pruned(model, tmp_path / "merged")
        expected = logits(pa.load_pruned(tmp_path / "merged", attn_implementation="eager"), batch)
        torch.testing.assert_close(expected, logits(model, batch), rtol=1e-11, atol=1e-11)
        if FAMILIES[self.family].module is transformers:
            stock = FAMILIES[self.family].model_class
            plain = stock.from_pretrained(tmp_path / "merged", attn_implementation="eager")
            # Weights stay where they lie in the file, where products may round otherwise.
            torch.testing.assert_close(logits(plain, batch), expected, **TIGHT)
            with torch.no_grad():
                outputs = plain(**batch, output_hidden_states=True)
            states = outputs.get("hidden_states", outputs.get("encoder_hidden_states"))
            # Blocks are still recognised as what they are.
            assert len(states) > 3
