"""A made-up architecture, described in a user's own code, obeys every law without a change to the package."""

from collections.abc import Generator
from pathlib import Path

import pytest
from transformers import AutoConfig

import my_former
import pruning_adapter as pa
from conformance import Conformance, logits, make_case
from pruning_adapter.architectures import register, registry
from pruning_adapter.errors import CheckpointError
from tiny import FAMILIES, Tiny

SIZES = {"num_labels": 3}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Generator[None]:
    """What the user's code does once, taken back after this module's tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_SPECS", dict(registry._SPECS))
        patch.setitem(
            FAMILIES,
            "my_former",
            Tiny(
                config="MyFormerConfig",
                model="MyFormerForSequenceClassification",
                sizes=SIZES,
                blocks="depth",
                module=my_former,
            ),
        )
        register(my_former.SPEC)
        AutoConfig.register("my_former", my_former.MyFormerConfig, exist_ok=True)
        yield


class TestMyFormer(Conformance):
    family = "my_former"

    def test_a_checkpoint_of_a_class_that_nobody_imported_is_refused(self, tmp_path: Path) -> None:
        model = self.model()
        pa.save_pruned(pa.prune_(model, make_case(model, "neurons")), tmp_path / "merged")
        config = tmp_path / "merged" / "config.json"
        config.write_text(config.read_text().replace("MyFormerForSequenceClassification", "MyFormerForNothing"))
        with pytest.raises(
            CheckpointError, match=r"'MyFormerForNothing', which is neither .* nor one that was imported"
        ):
            pa.load_pruned(tmp_path / "merged")

    def test_load_pruned_finds_the_users_class(self, tmp_path: Path) -> None:
        model, batch = self.model(), self.batch()
        pa.save_pruned(pa.prune_(model, make_case(model, "empty blocks")), tmp_path / "merged")
        loaded = pa.load_pruned(tmp_path / "merged")
        assert type(loaded) is my_former.MyFormerForSequenceClassification
        assert (logits(loaded, batch) == logits(model, batch)).all()
