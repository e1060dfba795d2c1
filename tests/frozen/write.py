"""Writes what a release leaves behind, for later ones to read: python tests/frozen/write.py (once a release)."""

import json
import os
import shutil
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

import pruning_adapter as pa
from pruning_adapter.evaluation.result import Measure, Quality, Result
from pruning_adapter.pipeline import Run
from pruning_adapter.settings import Settings
from tiny import make_batch, make_model
from tiny_encoder import make_texts, save_tiny_encoder
from trainer_states import pack_states


def write(folder: Path) -> None:
    """A base, every kind of file that speaks of it, a trained adapter, a merged model, and what that computes."""
    torch.set_num_threads(1)
    base, batch = make_model("bert", dtype=torch.float32), make_batch()
    base.save_pretrained(folder / "base")
    scores = pa.measure_importance(base, [batch], units=("heads", "neurons"), task="frozen", seed=0)
    scores.save(folder / "importance.json")
    plan = pa.plan_pruning(scores, keep_macs=0.6, length=16)
    plan.save(folder / "plan.json")
    ranks = pa.plan_ranks(scores, plan, top_blocks=1, high=3, low=2)
    ranks.save(folder / "ranks.json")
    Settings(demo=True, keep_macs=0.6, text_columns=("a", "b")).save(folder / "settings.json")
    make_result().save(folder / "result.json")
    make_table(plan).save(folder / "latency.json")
    torch.manual_seed(0)
    adapted: Any = get_peft_model(base, pa.PruneLoraConfig(pruning=plan, ranks=ranks, task_type="SEQ_CLS"))
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data.add_(0.1 * torch.randn_like(weight))
    adapted.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    pa.save_pruned(adapted, folder / "merged")
    with torch.no_grad():
        logits = adapted.eval()(**batch).logits
    save_file({"logits": logits, **batch}, folder / "logits.safetensors")


def make_result() -> Result:
    return Result(
        task={"name": "frozen", "train_examples": 6, "labels": ["a", "b", "c"]},
        model={"id": "made/up", "revision": None, "model_type": "bert", "fingerprint": "0"},
        method="prune-lora",
        scorer="gradient",
        seed=0,
        recipe={"name": "default"},
        quality={
            "validation": Quality(
                metrics={"accuracy": Measure(value=0.5, low=0.4, high=0.6)},
                examples=6,
                majority_rate=0.4,
                at_majority=False,
            )
        },
        cost={"parameters": 3},
        history=({"step": 1.0, "epoch": 1.0, "loss": 0.5},),
        notes=("a note",),
    )


def make_table(plan: pa.PruningPlan) -> pa.LatencyTable:
    return pa.LatencyTable(
        model=plan.model,
        curves=tuple(((1, 0.02), (site.units, 0.1)) for site in plan.model.all_sites),
        spread=0.01,
        batch=1,
        length=16,
        dtype="float32",
        device="cpu",
        machine={},
        roundings=((1, 1.0),),
    )


def write_run(folder: Path) -> None:
    """A whole run in the midst of which units went and weights were corrected, its model and data beside it."""
    folder.mkdir()
    torch.set_num_threads(1)
    with chdir(folder):
        config = save_tiny_encoder(Path("model")) / "config.json"
        said = json.loads(config.read_text(encoding="utf-8"))
        # What dropout draws is another thing with another PyTorch.
        said |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config.write_text(json.dumps(said, indent=2), encoding="utf-8")
        for name, count in (("train.csv", 48), ("dev.csv", 16)):
            rows = [f"{text},{('no', 'yes')[label]}" for text, label in make_texts(name, count, 2)]
            Path(name).write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
        chosen = {"model": "model", "model_name": "made/up", "train_file": "train.csv", "validation_file": "dev.csv"}
        chosen |= {"label_column": "label"}
        more = {"text_columns": ("text",), "epochs": 2.0, "learning_rate": 0.01, "keep_macs": 0.6}
        settings, out = Settings().changed({**chosen, **more}), Path("out")
        out.mkdir()
        settings.save(out / "settings.json")
        run = Run(settings, out, command="pruning-adapter run")
        run.measure()
        run.plan()
        run.sweep("macs").save(out / "sweep.json")
        run.train()
        run.evaluate(compare=False)
        pack_states(out / "start" / "checkpoint")
        # It is made of the rest.
        shutil.rmtree(out / "merged")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    target = Path(__file__).parent / pa.__version__
    missing = {part: make for part, make in ((target, write), (target / "run", write_run)) if not part.exists()}
    if not missing:
        raise SystemExit(f"{target} is there: what a release wrote is never written again")
    for part, make in missing.items():
        make(part)
