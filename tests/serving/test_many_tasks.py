"""One base, many tasks: what `PrunedTasks` gives is what each adapter gives alone, and the base never changes."""

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

import pruning_adapter as pa
from conformance import PEFT_TASKS, logits, make_case, make_plan
from pruning_adapter.architectures.identity import fingerprint_weights
from pruning_adapter.errors import AdapterError, CheckpointError, DataError
from pruning_adapter.evaluation.cost import count_trainable
from pruning_adapter.planning.rank_plan import ALL_ROLES, RankPlan
from tiny import FAMILIES, make_batch, make_model, randomize_
from tiny_encoder import make_texts, save_tiny_encoder

LABELS = {"colour": ("red", "green"), "size": ("small", "medium", "large", "huge"), "weight": ("score",)}
TEXTS = [text for text, _ in make_texts("what is asked", 17, 3)]


def save_pack(folder: Path, model: Any, plan: pa.PruningPlan, *, seed: int = 0, **options: Any) -> Path:
    """What training leaves of a task: an adapter whose every weight is random."""
    adapted: Any = get_peft_model(model, pa.PruneLoraConfig(pruning=plan, **options))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        randomize_(adapted, only_trainable=True)
    assert count_trainable(adapted)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def alone(base: Any, folder: Path) -> Any:
    """The plain road to a task's model."""
    adapted: Any = PeftModel.from_pretrained(base, folder)
    return adapted.merge_and_unload().eval()


def bits(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), f"{name} changed"


def storages(model: torch.nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in model.parameters() if tensor.numel()}


def everywhere(plan: pa.PruningPlan) -> RankPlan:
    """LoRA on all that is left."""
    return RankPlan(
        model=plan.model,
        kept_heads=plan.kept_heads,
        kept_neurons=plan.kept_neurons,
        ranks=tuple(2 if kept else 0 for kept in plan.kept_heads),
        feed_forward_ranks=tuple(2 if kept else 0 for kept in plan.kept_neurons),
        roles=ALL_ROLES,
    )


# All families


def save_packs(family: str, folder: Path, cases: tuple[str, ...]) -> dict[str, Path]:
    """A pack for each of these plans; LoRA is on all that is left, or on attentions alone."""
    found: dict[str, Path] = {}
    for number, case in enumerate(cases):
        model = make_model(family)
        plan = make_plan(model, {}) if case == "nothing" else make_case(model, case)
        ranks = None if case == "empty blocks" else everywhere(plan)
        task = PEFT_TASKS[FAMILIES[family].task]
        found[case] = save_pack(folder / case, model, plan, ranks=ranks, seed=number, task_type=task)
    return found


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_task_gives_to_the_bit_what_its_adapter_merged_alone_gives_and_the_base_stays(
    family: str, tmp_path: Path
) -> None:
    """Where nothing is removed, all that LoRA is merged into is the base's own."""
    base, batch = make_model(family), make_batch(FAMILIES[family].task)
    packs = save_packs(family, tmp_path, ("heads and neurons", "empty blocks", "nothing"))
    expected = {name: logits(alone(make_model(family), folder), batch) for name, folder in packs.items()}
    before, config, trains = bits(base), base.config.to_dict(), [weight.requires_grad for weight in base.parameters()]
    tasks = pa.PrunedTasks(base, packs, cache=2)
    for name in [*packs, *packs, "nothing", "empty blocks"]:
        assert torch.equal(logits(tasks.model(name), batch), expected[name]), name
        assert len(tasks.cached) <= 2
    assert_same_bits(bits(base), before)
    assert base.config.to_dict() == config
    assert fingerprint_weights(base) == fingerprint_weights(make_model(family))
    assert [weight.requires_grad for weight in base.parameters()] == trains


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_lora_beside_the_weights_gives_to_the_bit_what_the_adapter_gives(family: str, tmp_path: Path) -> None:
    base, batch = make_model(family), make_batch(FAMILIES[family].task)
    before = bits(base)
    (folder,) = save_packs(family, tmp_path, ("even groups",)).values()
    found = pa.PrunedTasks(base, {"task": folder}, merge=False).model("task")
    adapted: Any = PeftModel.from_pretrained(make_model(family), folder)
    assert torch.equal(logits(found, batch), logits(adapted, batch))
    assert_same_bits(bits(base), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        *({"bias": "all"}, {"use_dora": True}, {"use_rslora": True}, {"lora_bias": True}),
        *({"bias": "all", "lora_bias": True}, {"bias": "lora_only", "lora_bias": True}),
    ],
)
def test_kinds_of_lora_are_as_alone_and_the_base_stays(
    options: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    base = make_model("bert", dtype=dtype)
    before = bits(base)
    folder = save_pack(tmp_path / "pack", make_model("bert", dtype=dtype), make_plan(base, {0: [1]}), **options)
    merged = alone(make_model("bert", dtype=dtype), folder)
    tasks = pa.PrunedTasks(base, {"task": folder}, cache=0)
    for _ in range(2):
        assert_same_bits(bits(tasks.model("task")), bits(merged))
        assert_same_bits(bits(base), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bases_type_is_kept_and_lora_is_added_in_its_own(dtype: torch.dtype, tmp_path: Path) -> None:
    base, batch = make_model("bert", dtype=dtype), make_batch()
    folder = save_pack(tmp_path / "pack", make_model("bert", dtype=dtype), make_case(base, "heads"))
    found = pa.PrunedTasks(base, {"task": folder}).model("task")
    merged = alone(make_model("bert", dtype=dtype), folder)
    assert_same_bits(bits(found), bits(merged))
    assert {name: tensor.dtype for name, tensor in bits(found).items()} == {
        name: tensor.dtype for name, tensor in bits(merged).items()
    }
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert torch.equal(logits(found, batch), logits(merged, batch))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_is_neither_cut_nor_trained_is_the_bases_memory(family: str, tmp_path: Path) -> None:
    base = make_model(family)
    (folder,) = save_packs(family, tmp_path, ("empty blocks",)).values()
    tasks = pa.PrunedTasks(base, {"task": folder})
    model = tasks.model("task")
    shared = storages(base) & storages(model)
    assert {weight.data_ptr() for weight in base.get_input_embeddings().parameters()} <= shared
    dense, merged = base.state_dict(), alone(make_model(family), folder).state_dict()
    for name, tensor in model.state_dict().items():
        same = name in dense and dense[name].shape == tensor.shape and torch.equal(dense[name], merged[name])
        assert not same or tensor.data_ptr() == dense[name].data_ptr(), f"{name} was copied for nothing"


# Memory and cache


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("many-tasks") / "encoder")


@pytest.fixture(scope="module")
def packs(encoder: Path) -> dict[str, Path]:
    """Three tasks with heads and neurons of their own: two classes, four classes, and a number."""
    found: dict[str, Path] = {}
    for number, (name, labels) in enumerate(LABELS.items()):
        model = load_classifier(encoder, labels)
        plan = make_plan(model, {number: [number, 3]}, {0: list(range(number, 24, 2))})
        found[name] = save_pack(encoder.parent / name, model, plan, seed=number, task_type="SEQ_CLS")
    return found


def load_classifier(encoder: Path, labels: tuple[str, ...]) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        encoder,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        ignore_mismatched_sizes=True,
        problem_type="regression" if len(labels) == 1 else "single_label_classification",
    ).eval()


def test_the_cache_keeps_the_last_few_and_no_more(encoder: Path, packs: dict[str, Path]) -> None:
    tasks = pa.PrunedTasks(encoder, packs, cache=2)
    first, second = tasks.model("colour"), tasks.model("size")
    assert tasks.model("colour") is first
    assert tasks.cached == ("size", "colour")
    tasks.model("weight")
    assert tasks.cached == ("colour", "weight")
    assert tasks.model("colour") is first
    assert tasks.model("size") is not second
    assert tasks.cached == ("colour", "size")
    none = pa.PrunedTasks(encoder, packs, cache=0)
    assert none.model("colour") is not none.model("colour")
    assert none.cached == ()
    with pytest.raises(AdapterError, match="cache is -1"):
        pa.PrunedTasks(encoder, packs, cache=-1)


def test_any_sequence_of_requests_leaves_the_base_and_the_answers_as_they_were(
    encoder: Path, packs: dict[str, Path]
) -> None:
    batch = {name: value for name, value in make_batch().items() if name != "labels"}
    tasks, generator = pa.PrunedTasks(encoder, packs, cache=2), random.Random(0)
    before, fingerprint = bits(tasks.base), fingerprint_weights(tasks.base)
    expected = {name: logits(tasks.model(name), batch) for name in packs}
    for _ in range(30):
        name = generator.choice(tasks.names)
        if generator.random() < 0.2:
            tasks.remove(name)
            tasks.add(name, packs[name])
        lately = [known for known in tasks.cached if known != name][-1:]
        assert torch.equal(logits(tasks.model(name), batch), expected[name])
        assert tasks.cached == (*lately, name)
    assert_same_bits(bits(tasks.base), before)
    assert fingerprint_weights(tasks.base) == fingerprint


def test_bytes_are_counted_once_and_grow_by_what_is_cut_or_merged(encoder: Path, packs: dict[str, Path]) -> None:
    tasks = pa.PrunedTasks(encoder, packs, cache=3)

    def size(tensors: Any) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    held = size([*tasks.base.parameters(), *tasks.base.buffers()])
    held += sum((folder / "adapter_model.safetensors").stat().st_size for folder in packs.values())
    # A file has a header as well.
    assert held - 20_000 * len(packs) < tasks.nbytes <= held
    before = tasks.nbytes
    model = tasks.model("colour")
    shared, saved = storages(tasks.base), [id(weight) for weight in model.classifier.parameters()]
    own = [
        tensor
        for name, tensor in model.named_parameters()
        if tensor.untyped_storage().data_ptr() not in shared and "LayerNorm" not in name and id(tensor) not in saved
    ]
    # Norms and task head are the pack's.
    assert tasks.nbytes - before == size(own)
    assert size(own) < size(model.parameters()) - size(tasks.base.get_input_embeddings().parameters())
    tasks.model("colour")
    assert tasks.nbytes - before == size(own)
    tasks.remove("colour")
    assert tasks.nbytes < before


def test_rows_that_lie_in_one_piece_are_views(tmp_path: Path) -> None:
    base = make_model("bert")
    plan = make_plan(base, {0: [2, 3], 1: [1]})
    # Nothing is merged into keys.
    ranks = RankPlan(
        model=plan.model,
        kept_heads=plan.kept_heads,
        kept_neurons=plan.kept_neurons,
        ranks=(2, 2, 2),
        feed_forward_ranks=(0, 0, 0),
        roles=("query", "value"),
    )
    folder = save_pack(tmp_path / "pack", make_model("bert"), plan, ranks=ranks)
    found: Any = pa.PrunedTasks(base, {"task": folder}).model("task")
    layers, dense = found.bert.encoder.layer, base.bert.encoder.layer
    assert layers[0].attention.self.key.weight.data_ptr() == dense[0].attention.self.key.weight.data_ptr()
    assert layers[1].attention.self.key.weight.data_ptr() != dense[1].attention.self.key.weight.data_ptr()
    assert layers[2].attention.self.key.weight.data_ptr() == dense[2].attention.self.key.weight.data_ptr()
    assert layers[0].attention.self.query.weight.untyped_storage().nbytes() == 16 * 32 * 8


def test_moving_casting_or_unfreezing_a_tasks_model_does_not_reach_the_base(
    encoder: Path, packs: dict[str, Path]
) -> None:
    tasks = pa.PrunedTasks(encoder, packs)
    before = bits(tasks.base)
    tasks.model("colour").to(torch.bfloat16).train().requires_grad_(True)
    tasks.model("size").double()
    assert_same_bits(bits(tasks.base), before)
    assert not any(parameter.requires_grad for parameter in tasks.base.parameters())
    trained = copy.deepcopy(tasks.model("weight"))
    randomize_(trained)
    assert_same_bits(bits(tasks.base), before)


# Tasks side by side


def test_tasks_of_other_sizes_and_label_names_live_side_by_side(encoder: Path, packs: dict[str, Path]) -> None:
    tasks = pa.PrunedTasks(encoder, packs, cache=3)
    assert tasks.names == tuple(LABELS)
    for name, labels in LABELS.items():
        model = tasks.model(name)
        assert model.config.id2label == dict(enumerate(labels))
        assert model.num_labels == model.config.num_labels == model.classifier.out_features == len(labels)
        assert tasks.predict(name, TEXTS).logits.shape == (len(TEXTS), len(labels))
    assert set(tasks.predict("size", TEXTS).labels) <= set(LABELS["size"])
    values = tasks.predict("weight", TEXTS)
    assert values.labels == values.logits[:, 0].tolist()


def test_a_task_is_to_the_bit_what_its_merged_folder_serves(
    encoder: Path, packs: dict[str, Path], tmp_path: Path
) -> None:
    """In float32, weights and config: it may be saved in turn."""
    tasks = pa.PrunedTasks(encoder, packs)
    for name, labels in LABELS.items():
        pa.save_pruned(PeftModel.from_pretrained(load_classifier(encoder, labels), packs[name]), tmp_path / "merged")
        pa.save_pruned(tasks.model(name), tmp_path / "again")
        merged, again = pa.load_pruned(tmp_path / "merged"), pa.load_pruned(tmp_path / "again")
        assert_same_bits(again.state_dict(), merged.state_dict())
        assert again.config.to_dict() | {"_name_or_path": ""} == merged.config.to_dict() | {"_name_or_path": ""}
        batch = {key: value for key, value in make_batch().items() if key != "labels"}
        assert torch.equal(logits(tasks.model(name), batch), logits(merged, batch))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs"])
def test_predictions_are_the_models_in_the_order_of_the_texts(
    encoder: Path, packs: dict[str, Path], pairs: bool, batch_size: int
) -> None:
    # In float64, in which a text beside others gives what it gives alone.
    base, tokenizer = load_classifier(encoder, LABELS["size"]).double(), AutoTokenizer.from_pretrained(encoder)
    tasks = pa.PrunedTasks(base, packs, tokenizer=tokenizer)
    texts: Any = list(zip(TEXTS, TEXTS[::-1], strict=True)) if pairs else TEXTS
    for name in ("size", "colour", "size"):
        found, model = tasks.predict(name, texts, batch_size=batch_size), tasks.model(name)
        for text, row, label in zip(texts, found.logits, found.labels, strict=True):
            inputs = tokenizer(*(text if pairs else (text,)), return_tensors="pt")
            expected = logits(model, inputs)[0]
            np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)
            assert label == LABELS[name][int(expected.argmax())]
    assert tasks.predict("size", []).logits.shape == (0, 4)


def test_long_texts_are_cut_where_it_is_asked(encoder: Path, packs: dict[str, Path]) -> None:
    tasks = pa.PrunedTasks(encoder, packs)
    long, cut = " ".join(["w1 w2 w3"] * 100), "w1 w2 w3 w1"
    found = tasks.predict("size", [long, cut], max_length=6).logits
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    assert tasks.predict("size", [long]).logits.shape == (1, 4)


def test_tasks_come_and_go(encoder: Path, packs: dict[str, Path], tmp_path: Path) -> None:
    packs = {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in packs.items()}
    tasks = pa.PrunedTasks(encoder)
    assert tasks.names == ()
    with pytest.raises(AdapterError, match=r"no task 'colour'; there is: none yet"):
        tasks.model("colour")
    for name, folder in packs.items():
        tasks.add(name, folder)
    expected = tasks.predict("colour", TEXTS).logits
    # A pack is in memory once it was added.
    shutil.rmtree(packs["colour"])
    tasks.model("size"), tasks.model("weight")
    np.testing.assert_array_equal(tasks.predict("colour", TEXTS).logits, expected)
    tasks.remove("colour")
    assert tasks.names == ("size", "weight")
    assert "colour" not in tasks.cached
    with pytest.raises(AdapterError, match=r"no task 'sise'; there is: 'size', 'weight'. Was 'size' meant\?"):
        tasks.predict("sise", TEXTS)
    with pytest.raises(AdapterError, match="no task 'colour'"):
        tasks.remove("colour")
    with pytest.raises(AdapterError, match="a task 'size' already"):
        tasks.add("size", packs["size"])


# What is refused


def test_an_adapter_of_a_corrected_base_is_refused_with_the_way_out(
    encoder: Path, packs: dict[str, Path], tmp_path: Path
) -> None:
    model: Any = load_classifier(encoder, ("a", "b"))
    scores = pa.measure_importance(model, [make_batch() | {"labels": torch.arange(6) % 2}])
    plan = pa.plan_pruning(scores, keep_ratio=0.7, reconstruct="lstsq")
    own = pa.reconstruct_(model, plan, [make_batch()])
    folder = save_pack(tmp_path / "corrected", own, plan, task_type="SEQ_CLS")
    tasks = pa.PrunedTasks(encoder, packs)
    with pytest.raises(AdapterError, match=r'reconstruct="lstsq".*--reconstruct none --prune-after 0.*merged/'):
        tasks.add("corrected", folder)
    assert tasks.names == tuple(packs)


def test_an_adapter_of_a_base_that_trained_before_is_refused_with_the_way_out(encoder: Path, tmp_path: Path) -> None:
    model: Any = load_classifier(encoder, ("a", "b"))
    randomize_(model)
    folder = save_pack(tmp_path / "other", model, make_plan(model, {0: [1]}), task_type="SEQ_CLS")
    with pytest.raises(
        AdapterError, match=r"other weights.*--prune-after.*--reconstruct none --prune-after 0.*merged/"
    ):
        pa.PrunedTasks(encoder, {"other": folder})


def test_an_adapter_of_another_architecture_is_refused_with_both_names(encoder: Path, tmp_path: Path) -> None:
    model = make_model("distilbert")
    folder = save_pack(tmp_path / "other", model, make_plan(model, {0: [1]}), task_type="SEQ_CLS")
    with pytest.raises(AdapterError, match=r"belongs to distilbert.*held here is .*bert, 3 blocks x 4 heads"):
        pa.PrunedTasks(encoder, {"other": folder})


def test_adapters_without_a_plan_are_refused(encoder: Path, tmp_path: Path) -> None:
    adapted = get_peft_model(load_classifier(encoder, ("a", "b")), LoraConfig(target_modules=["query"]))
    adapted.save_pretrained(tmp_path / "lora", save_embedding_layers=False)
    with pytest.raises(AdapterError, match="of the kind LORA and has no pruning plan"):
        pa.PrunedTasks(encoder, {"lora": tmp_path / "lora"})


def test_a_damaged_pack_is_refused_and_nothing_is_lost(encoder: Path, packs: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tasks = pa.PrunedTasks(encoder, {"size": packs["size"]})
    expected = logits(tasks.model("size"), make_batch())
    weights = load_file(packs["colour"] / "adapter_model.safetensors")

    def damaged(**changes: Any) -> Path:
        folder = tmp_path / "damaged"
        shutil.copytree(packs["colour"], folder, dirs_exist_ok=True)
        for name, value in changes.items():
            (folder / f"adapter_{name}").with_suffix(".json" if name == "config" else ".safetensors").write_bytes(value)
        return folder

    lost = dict(list(weights.items())[1:])
    more = weights | {"base_model.model.bert.embeddings.word_embeddings.weight": torch.zeros(50, 32)}
    head = weights | {"base_model.model.classifier.weight": torch.zeros(2, 31)}
    for content, error, message in (
        (lost, CheckpointError, r"lacks the weight .*\(1 in all\)"),
        (more, CheckpointError, "word_embeddings.weight' that does not fit"),
        (head, AdapterError, "classifier.weight as 2 x 31, and this .* has 1 x 32"),
    ):
        folder = damaged()
        save_file(content, folder / "adapter_model.safetensors")
        with pytest.raises(error, match=message):
            tasks.add("damaged", folder)
    whole = (packs["colour"] / "adapter_model.safetensors").read_bytes()
    config = (packs["colour"] / "adapter_config.json").read_bytes()
    cut_plan = json.loads(config)
    del cut_plan["pruning"]["kept_heads"]
    for changes in ({"model": whole[:100]}, {"config": config[:100]}, {"config": json.dumps(cut_plan).encode()}):
        folder = damaged(**changes)
        with pytest.raises(CheckpointError):
            tasks.add("damaged", folder)
        shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json"):
        tasks.add("damaged", tmp_path / "nowhere")
    assert tasks.names == ("size",)
    assert torch.equal(logits(tasks.model("size"), make_batch()), expected)


def test_a_base_that_is_not_plain_and_dense_is_refused(encoder: Path, packs: dict[str, Path]) -> None:
    adapted = get_peft_model(load_classifier(encoder, ("a", "b")), LoraConfig(target_modules=["query"]))
    for wrapped in (adapted, adapted.base_model.model):
        with pytest.raises(AdapterError, match="adapters in place"):
            pa.PrunedTasks(wrapped)
    tasks = pa.PrunedTasks(encoder, packs)
    with pytest.raises(AdapterError, match="base is pruned"):
        pa.PrunedTasks(tasks.model("size"))


def test_what_starts_at_random_must_be_in_the_pack(encoder: Path, tmp_path: Path) -> None:
    model = load_classifier(encoder, ("a", "b"))
    folder = save_pack(tmp_path / "headless", model, make_plan(model, {0: [1]}), task_type=None)
    with pytest.raises(AdapterError, match=r"no weights for 'classifier'.*would be random"):
        pa.PrunedTasks(encoder, {"headless": folder})
    # A model brings a head of its own, and its labels.
    tasks = pa.PrunedTasks(model_of_that_head(encoder), {"headless": folder})
    assert tasks.model("headless").config.id2label == {0: "no", 1: "yes"}


def model_of_that_head(encoder: Path) -> Any:
    return load_classifier(encoder, ("no", "yes"))


def test_what_is_no_text_is_refused(encoder: Path, packs: dict[str, Path], tmp_path: Path) -> None:
    tasks = pa.PrunedTasks(encoder, packs)
    for texts, message in (
        ("w1 w2", "one string"),
        (["w1", 2], "number 1 is 2"),
        ([("w1", "w2", "w3")], "number 0"),
        (["w1", ("w1", "w2")], "number 1 is .*not both"),
    ):
        with pytest.raises(DataError, match=message):
            tasks.predict("size", texts)  # pyright: ignore
    with pytest.raises(DataError, match="batch_size is 0"):
        tasks.predict("size", TEXTS, batch_size=0)
    with pytest.raises(DataError, match="predict needs a tokenizer"):
        pa.PrunedTasks(tasks.base, packs).predict("size", TEXTS)
    causal = make_model("llama")
    folder = save_pack(tmp_path / "causal", make_model("llama"), make_case(causal, "heads"), task_type="CAUSAL_LM")
    with pytest.raises(AdapterError, match=r"type CAUSAL_LM.*tasks.model\('causal'\)"):
        pa.PrunedTasks(causal, {"causal": folder}).predict("causal", TEXTS)


def test_a_base_from_a_folder_leaves_the_callers_random_numbers_alone(encoder: Path, packs: dict[str, Path]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    tasks = pa.PrunedTasks(encoder, packs)
    tasks.model("size")
    assert torch.equal(torch.rand(3), expected)


# Long texts


def words_only(**options: Any) -> Any:
    """A tokenizer of words that puts nothing around them."""
    words = Tokenizer(WordLevel({"<unk>": 0, "<pad>": 1, "a": 2}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()  # type: ignore[misc]
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", **options)


@pytest.mark.parametrize("options", [{}, {"model_max_length": 512}], ids=["says nothing", "says too much"])
def test_long_texts_are_cut_off_where_the_models_positions_end(tmp_path: Path, options: dict[str, Any]) -> None:
    """RoBERTa's positions begin behind the padding's: of 20 there are 18 for tokens."""
    changes: dict[str, Any] = {"max_position_embeddings": 20, "pad_token_id": 1, "dtype": torch.float32}
    base = make_model("roberta", **changes)
    plan = make_plan(base, {0: [1]})
    folder = save_pack(tmp_path / "pack", make_model("roberta", **changes), plan, task_type="SEQ_CLS")
    tasks = pa.PrunedTasks(base, {"task": folder}, tokenizer=words_only(**options))
    long, cut = "a " * 100, "a " * 18
    found = tasks.predict("task", [long, cut, "a " * 17]).logits
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[1] - found[2]).max() > 1e-6
    np.testing.assert_allclose(tasks.predict("task", [cut], max_length=18).logits[0], found[1], rtol=1e-5)
    with pytest.raises(DataError, match="max_length 19 is more than the 18 tokens this model reads"):
        tasks.predict("task", [long], max_length=19)


def test_a_decoder_without_a_token_for_padding_predicts(encoder: Path, tmp_path: Path) -> None:
    def make() -> Any:
        auto = AutoModelForSequenceClassification
        return make_model("gpt2", dtype=torch.float32, auto=auto, pad_token_id=None, num_labels=3)

    model = make()
    tokenizer: Any = AutoTokenizer.from_pretrained(encoder)
    tokenizer.pad_token = None
    pack = save_pack(tmp_path / "pack", model, make_plan(model, {0: [1]}), task_type="SEQ_CLS")
    tasks = pa.PrunedTasks(make(), {"any": pack}, tokenizer=tokenizer)
    with pytest.raises(DataError, match=r"has no token for padding. Give it one: tokenizer\.pad_token"):
        tasks.predict("any", TEXTS)
    tokenizer.pad_token = "[SEP]"
    together, apart = tasks.predict("any", TEXTS), [tasks.predict("any", [text]).logits[0] for text in TEXTS]
    np.testing.assert_allclose(together.logits, np.stack(apart), atol=1e-5)
