"""Several processes that work on one thing, as `torchrun` and `accelerate launch` start them.

One of them, the first, writes files; sums run over all. Where there is one process only, every function here does what
one would do without it, so that callers need not ask. Torch is imported when it is needed.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from pruning_adapter.errors import ProcessError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "Turn",
    "add_up_",
    "all_or_none",
    "alone",
    "become_the_only_one",
    "first_does",
    "first_says",
    "first_to_fail",
    "gather",
    "go_on_alone",
    "in_step",
    "is_first",
    "is_spread",
    "join",
    "process_count",
    "process_number",
    "started_number",
    "started_together",
    "take_from_first_",
]

Value = TypeVar("Value")
Item = TypeVar("Item")

_ALONE: ContextVar[bool] = ContextVar("pruning_adapter_alone", default=False)
_LONGEST_WAIT = timedelta(days=7)
"""While the first process works the others wait, and some of what it does takes long."""
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")


class _Failure(NamedTuple):
    """Sent by a process that cannot go on, in place of what the others wait for."""

    message: str


class Turn(NamedTuple):
    """What a process does while another works on an item; see `in_step`."""

    item: Any
    """None where this process has run out and need do nothing."""
    counts: bool
    """Whether the item is this process's own, and new."""


def process_count() -> int:
    """Processes that work together now: those of `torch.distributed`, or one."""
    if _ALONE.get():
        return 1
    import torch.distributed as distributed

    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_number() -> int:
    """The number of this process, from 0; its "rank"."""
    if process_count() == 1:
        return 0
    import torch.distributed as distributed

    return distributed.get_rank()


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return process_number() == 0


@contextmanager
def alone(really: bool = True) -> Generator[None]:
    """While the context lasts, this process takes no notice of the others (not `really`: nothing changes)."""
    before = _ALONE.set(_ALONE.get() or really)
    try:
        yield
    finally:
        _ALONE.reset(before)


def gather(value: Value) -> list[Value]:
    """The `value` of every process, in the order of their numbers. All processes must call.

    Raises:
        ProcessError: another process failed; see `all_or_none`.
    """
    if process_count() == 1:
        return [value]
    import torch.distributed as distributed

    found: list[Any] = [None] * process_count()
    # Torch pickles it, from one process of this very job to another.
    distributed.all_gather_object(found, value, group=_patient_group())
    for number, said in enumerate(found):
        if isinstance(said, _Failure) and not isinstance(value, _Failure):
            raise ProcessError(f"Process {number} of {len(found)} failed: {said.message}")
    return cast("list[Value]", found)


def first_says(value: Value) -> Value:
    """The `value` of the first process. All processes must call: what they decide by it, they decide alike."""
    return gather(value if is_first() else None)[0]  # pyright: ignore[reportReturnType]


def first_does(work: Callable[[], Value]) -> Value | None:
    """Let the first process do something alone, such as writing files, while the others wait.

    Returns:
        What `work` gives, in the first process; None in the others.

    Raises:
        ProcessError: in the others, if `work` failed in the first.
    """
    found: Value | None = None
    with all_or_none():
        if is_first():
            with alone():
                found = work()
    return found


@contextmanager
def all_or_none() -> Generator[None]:
    """All processes wait for each other at the end; if one of them fails, all do.

    What is raised inside is raised again after the others were told, who get a `ProcessError` where they wait next.
    """
    try:
        yield
    except ProcessError:
        raise
    # An interrupt and an exit too: the others would wait for days.
    except BaseException as error:
        said = str(error) if isinstance(error, Exception) else ""
        gather(_Failure(said or type(error).__name__))
        raise
    gather(None)


def add_up_(tensors: Sequence["Tensor"]) -> None:
    """Replace each tensor by its sum over all processes, in place. All must call with the same shapes."""
    if process_count() == 1 or not tensors:
        return
    import torch
    import torch.distributed as distributed

    shapes = gather([tuple(tensor.shape) for tensor in tensors])
    if any(shape != shapes[0] for shape in shapes):
        raise ProcessError("The processes add up tensors of different shapes: they do not work on the same model.")
    # NCCL sums on GPUs alone, gloo on processors.
    device = torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
    for tensor in tensors:
        summed = tensor.to(device).contiguous()
        distributed.all_reduce(summed)
        tensor.copy_(summed)


def take_from_first_(tensors: Sequence["Tensor"]) -> None:
    """Give each tensor the value that it has in the first process, in place. All must call with the same shapes."""
    if not is_first():
        for tensor in tensors:
            tensor.zero_()
    add_up_(tensors)


def in_step(items: Iterable[Item], *, needed: bool, repeat: bool) -> Iterator[Turn]:
    """This process's items one by one, for as long as any process has some.

    Args:
        items: as many as there are here; other processes may have more, or none.
        needed: whether the processes must keep in step; otherwise each goes through its items at its own speed.
        repeat: give a process that has run out its last item again, not to be counted, because a model whose weights
            are spread over the processes takes all of them to run.

    Raises:
        ProcessError: another process failed; or `repeat`, and one has no items at all.
    """
    if not needed or process_count() == 1:
        yield from (Turn(item, True) for item in items)
        return
    last: Any = None
    own = iter(items)
    while True:
        found = next(own, None)
        last = last if found is None else found
        states = gather((found is not None, last is not None))
        if not any(has for has, _ in states):
            return
        if repeat and not all(had for _, had in states):
            lacking = [number for number, (_, had) in enumerate(states) if not had]
            raise ProcessError(
                f"Process {lacking[0]} of {len(states)} has no batch. The model's weights are spread over the "
                "processes, so each must run along; give each at least one."
            )
        yield Turn(found if found is not None or not repeat else last, found is not None)


def is_spread(model: "nn.Module") -> bool:
    """Whether every process holds a part of the model's weights (FSDP2), so that it runs in all of them or in none."""
    if process_count() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule

    # Weights themselves do not tell: between a forward and a backward pass some are whole.
    return any(isinstance(module, FSDPModule) for module in model.modules())


def started_together() -> bool:
    """Whether a launcher such as `torchrun` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def started_number() -> int:
    """The number that a launcher gave this process, before it has joined the others."""
    return int(os.environ.get("RANK", "0")) if started_together() else 0


def join() -> None:
    """Meet the processes that a launcher started beside this one; nothing if there are none."""
    if not started_together() or process_count() > 1:
        return
    import torch
    from accelerate import PartialState

    # Chooses the backend and this process's GPU.
    PartialState(cpu=not torch.cuda.is_available())


def go_on_alone() -> bool:
    """Part, when all are done: the first process goes on as one that was started by itself.

    Returns:
        Whether this is the first; the others have nothing left to do.
    """
    if process_count() == 1:
        return True
    import torch.distributed as distributed

    first = is_first()
    gather(None)
    distributed.destroy_process_group()
    become_the_only_one()
    return first


def become_the_only_one() -> None:
    """Forget what a launcher said about other processes, so that no library waits for them."""
    for name in _LAUNCHED:
        os.environ.pop(name, None)


def first_to_fail() -> bool:
    """Whether no other process of this job said before that it fails: only one should tell why."""
    if not started_together():
        return True
    from torch.distributed import TCPStore

    try:
        port = int(os.environ["MASTER_PORT"])
        store = TCPStore(
            os.environ["MASTER_ADDR"], port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5)
        )
        return store.add(f"pruning-adapter/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except (RuntimeError, KeyError, ValueError):
        # The process that keeps the store is gone, or nobody has begun.
        return started_number() == 0


_PATIENT: list[tuple[Any, Any]] = []


def _patient_group() -> Any:
    """A group of all processes for messages: on the processor, and with a long time to answer."""
    import torch.distributed as distributed

    whole = distributed.group.WORLD
    if not _PATIENT or _PATIENT[0][0] is not whole:
        _PATIENT[:] = [(whole, distributed.new_group(backend="gloo", timeout=_LONGEST_WAIT))]
    return _PATIENT[0][1]
