"""What the paper prints (arXiv:2303.14704), as data, to stand beside what is measured."""

__all__ = ["ACCURACY", "COSTS", "TASKS"]

TASKS = ("mnli", "mrpc", "qnli", "rte", "sst2", "wnli")

ACCURACY: dict[str, dict[str, float]] = {
    "full": {"mnli": 84.56, "mrpc": 80.14, "qnli": 91.54, "rte": 62.45, "sst2": 92.43, "wnli": 40.85},
    "lora": {"mnli": 77.24, "mrpc": 68.38, "qnli": 88.05, "rte": 60.65, "sst2": 91.63, "wnli": 43.66},
    "prune-lora": {"mnli": 78.16, "mrpc": 68.38, "qnli": 87.28, "rte": 59.93, "sst2": 91.06, "wnli": 56.34},
}
"""Table 1: per cent of the development set, BERT-base."""

COSTS: dict[str, dict[str, float]] = {
    "full": {"memory": 418.7e6, "parameters": 109.48e6, "trainable": 109.48e6, "time": 49},
    "lora": {"memory": 419.6e6, "parameters": 109.7e6, "trainable": 259.6e3, "time": 36},
    "prune-lora": {"memory": 392.4e6, "parameters": 101.29e6, "trainable": 308.7e3, "time": 32},
}
"""Tables 2, 3 and 4: inference memory in bytes, parameters, trained parameters, training time on MNLI (relative)."""
