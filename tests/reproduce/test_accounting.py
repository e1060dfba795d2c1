"""The paper's printed numbers, exactly, and that its own text cannot give them."""

from pruning_adapter.reproduce.accounting import account_for_bert_base
from pruning_adapter.reproduce.paper import COSTS


def test_the_papers_numbers_follow_from_the_configuration_alone() -> None:
    accounts = {account.name: account for account in account_for_bert_base()}
    assert accounts["full fine-tuning"].parameters == (109_483_778, 109_483_778)
    assert accounts["LoRA, rank 4 on query, key, value"].trainable == (259_584, 259_584)
    as_printed = accounts["Prune-LoRA as the tables count"]
    assert as_printed.trainable[0] <= 308_736 <= as_printed.trainable[1]
    assert as_printed.parameters[0] <= 101_291_714 <= as_printed.parameters[1]


def test_the_text_cannot_give_what_the_tables_print() -> None:
    text = next(account for account in account_for_bert_base() if account.name == "Prune-LoRA as the text says")
    assert text.trainable == (341_504, 386_560)
    assert text.parameters == (101_127_682, 101_172_738)
    assert not text.trainable[0] <= COSTS["prune-lora"]["trainable"] <= text.trainable[1]
    assert not text.parameters[0] <= COSTS["prune-lora"]["parameters"] <= text.parameters[1]
