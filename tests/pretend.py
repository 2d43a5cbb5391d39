"""A second device in pure Python: it finds tensors left on the wrong side where there is no GPU.

    pretend.install()
    system = mocogan.train(clips, config, device="pretend", steps=3)

A tensor of the device "pretend" holds an ordinary CPU tensor, its `host`, and every operation is
computed on that, so results equal the CPU's. But the two sides don't mix, as CUDA's don't:

- An operation on tensors of both sides fails. Numbers may come from the CPU as tensors without
  dimensions, but not be *written* there; a tensor of the device may be indexed by CPU integers.
- Nothing is drawn on the device from a random source of the CPU.
- `.numpy()` needs `.cpu()` before it.

`count_reads` counts how often the host looked at a value of the device, and from which line: on
a GPU each of these waits until the device has done all that it was asked for.

What it can't find: nothing is cast under autocast, memory is not limited, and no operation is too
exotic for the device. The hooks it needs are experimental in torch; `available` tells whether this
torch has them.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch

NAME = "pretend"
FOLDER_OF_TORCH = str(Path(torch.__file__).parent)


def available() -> bool:
    "Has this torch the hooks for a device written in Python?"
    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


# A tensor on the device -----------------------------------------------------------------------


class PretendTensor(torch.Tensor):
    "A tensor that says it is on the device; `host` is the CPU tensor with its values."

    host: torch.Tensor
    # Operations come to __torch_dispatch__, below autograd; nothing is to be done above it.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> "PretendTensor":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.host = host
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return perform(operation, args, kwargs or {})

    # These two let Module.to exchange a parameter in place, so that optimisers keep theirs.
    def __tensor_flatten__(self):
        return ["host"], None

    @staticmethod
    def __tensor_unflatten__(parts, context, size, stride):
        return PretendTensor(parts["host"])

    def __repr__(self, **options) -> str:
        return f"PretendTensor({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> list:
        note_read()
        return self.detach().host.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError(
            f"can't convert {NAME}:0 device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )

    __array__ = numpy


def to_host(x):
    "An argument with its tensors of the device replaced by those that hold their values."
    if isinstance(x, PretendTensor):
        return x.host
    if isinstance(x, (list, tuple)):
        return type(x)(map(to_host, x))
    return x


def tensors_in(arguments) -> Iterator[torch.Tensor]:
    "All tensors among arguments, those in lists as well."
    for x in arguments:
        if isinstance(x, torch.Tensor):
            yield x
        elif isinstance(x, (list, tuple)):
            yield from tensors_in(x)


# What the host reads --------------------------------------------------------------------------

_counters: list[Counter] = []


def note_read() -> None:
    "Count one look of the host at a value, under the first line outside torch and this file."
    if not _counters:
        return
    frame = sys._getframe(1)
    while frame and frame.f_code.co_filename.startswith((FOLDER_OF_TORCH, __file__)):
        frame = frame.f_back
    # gradients of a device are computed in a thread of torch, where no line is above
    place = "backward"
    if frame:
        place = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
    for counter in _counters:
        counter[place] += 1


@contextmanager
def count_reads() -> Iterator[Counter]:
    "While it is open, its Counter takes the places from which the host read, and how often."
    counter = Counter()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)


# One operation --------------------------------------------------------------------------------

# Between the sides
TRANSFERS = {"_to_copy", "copy_", "_copy_from"}
# An operation of these may name places by integers, or by a mask, of the CPU
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
PLACES = {torch.int64, torch.int32, torch.bool, torch.uint8}
# These take no number of the CPU either
JOINS = {"cat", "stack"}
# The host must wait for values, or for a shape that depends on values
READS = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "bincount"}
READS |= {"_unique", "_unique2", "unique_dim", "unique_consecutive"}


@dataclass(frozen=True)
class Traits:
    "What has to be known of an operation, looked up once."

    name: str
    written: tuple[int | str, ...]  # arguments that it changes, by position or by name
    changes_shape: bool  # of what it was given, like unsqueeze_

    @staticmethod
    @cache
    def of(operation) -> "Traits":
        schema = operation._schema
        written = tuple(
            argument.name if argument.kwarg_only else k
            for k, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
        name = schema.name.split("::")[1]
        return Traits(name, written, torch.Tag.inplace_view in operation.tags)


def is_pretend(device) -> bool:
    return device is not None and torch.device(device).type == NAME


def refuse_strangers(name: str, args: tuple, kwargs: dict, written: list) -> None:
    "RuntimeError, as CUDA's, for tensors that are not on the device beside some that are."
    strangers = [
        x for x in tensors_in((*args, *kwargs.values())) if not isinstance(x, PretendTensor)
    ]
    if not strangers:
        return
    allowed = []
    if name in INDEXING and isinstance(args[0], PretendTensor):
        allowed = [x for x in tensors_in(args[1:2]) if x.dtype in PLACES]
    strangers = [
        x
        for x in strangers
        if any(x is y for y in written)
        or (x.ndim > 0 or name in JOINS)
        and not any(x is y for y in allowed)
    ]
    if strangers:
        shapes = ", ".join(str(tuple(x.shape)) for x in strangers)
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{NAME}:0 and cpu! ({name}; shapes on the cpu: {shapes})"
        )


def refuse_foreign_rng(name: str, kwargs: dict) -> None:
    "RuntimeError, as CUDA's, for drawing on the device from a random source of the CPU."
    if (rng := kwargs.get("generator")) is not None:
        raise RuntimeError(
            f"Expected a '{NAME}' device type for generator but found '{rng.device.type}' ({name})"
        )


def waits(name: str, args: tuple, kwargs: dict) -> bool:
    "Must the host wait for the device before it can go on?"
    if name in READS:
        return True
    if name in INDEXING:
        return any(x.dtype in (torch.bool, torch.uint8) for x in tensors_in(args[1:2]))
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in ("copy_", "_copy_from"):
        target = args[0 if name == "copy_" else 1]
        return not isinstance(target, PretendTensor)
    device = kwargs.get("device")
    return name == "_to_copy" and device is not None and not is_pretend(device)


def perform(operation, args: tuple, kwargs: dict):
    "An operation with tensors of the device: checked, computed on the CPU, results put back."
    traits = Traits.of(operation)
    name = traits.name
    written = [args[k] if isinstance(k, int) else kwargs.get(k) for k in traits.written]
    written = list(tensors_in(written))
    if name not in TRANSFERS:
        refuse_strangers(name, args, kwargs, written)
        refuse_foreign_rng(name, kwargs)
    if _counters and waits(name, args, kwargs):
        note_read()
    if name == "_thnn_fused_gru_cell":
        return gru_cell(*args)

    on_host = {key: to_host(x) for key, x in kwargs.items() if key != "pin_memory"}
    device = kwargs.get("device")
    stays = device is None or is_pretend(device)
    if device is not None and stays:
        on_host["device"] = torch.device("cpu")
    result = operation(*to_host(args), **on_host)

    if traits.changes_shape:
        # what was given has to take over the new shape of its host
        with no_dispatch():
            operation(*args, **kwargs)
    return to_device(result, written) if stays else result


def to_device(result, written: list[torch.Tensor]):
    "A result as tensors of the device; what was written in place comes back as it was given."
    if isinstance(result, (list, tuple)):
        return type(result)(to_device(x, written) for x in result)
    if not isinstance(result, torch.Tensor):
        return result
    for x in written:
        if to_host(x) is result:
            if x.shape != result.shape:
                raise NotImplementedError(f"the {NAME} device can't resize what out= names")
            return x
    return PretendTensor(result)


def gru_cell(inputs, hidden, state, input_bias=None, hidden_bias=None):
    "A step of a GRU after its matrix products, which devices do in one operation, CPUs in many."
    inputs = inputs if input_bias is None else inputs + input_bias
    hidden = hidden if hidden_bias is None else hidden + hidden_bias
    (reset_in, update_in, new_in), (reset, update, new) = inputs.chunk(3, 1), hidden.chunk(3, 1)
    reset, update = torch.sigmoid(reset + reset_in), torch.sigmoid(update + update_in)
    new = torch.tanh(new_in + new * reset)
    return (state - new) * update + new, state.new_empty(0)


# Made known to torch --------------------------------------------------------------------------


class DeviceModule:
    "What torch asks of `torch.pretend`."

    def is_initialized(self):
        return True

    def is_available(self):
        return True

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def synchronize(self, device=None):
        pass

    def manual_seed_all(self, seed):
        pass  # what draws without a source of its own draws from the CPU's

    def get_rng_state(self, device=None):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None):
        pass

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def _is_in_bad_fork(self):
        return False


def factory(operation) -> Callable:
    "An operation that makes a tensor from numbers (zeros, arange, randn), for the device."
    name = Traits.of(operation).name

    def make(*args, device=None, pin_memory=None, **kwargs):
        refuse_foreign_rng(name, kwargs)
        return PretendTensor(operation(*args, device=torch.device("cpu"), **kwargs))

    return make


FACTORIES = """
empty.memory_format empty_strided empty_permuted zeros ones full eye eye.m scalar_tensor
arange arange.start arange.start_step linspace logspace tril_indices triu_indices
rand rand.generator randn randn.generator normal.float_float randperm randperm.generator
randint randint.low randint.generator randint.low_generator hann_window hann_window.periodic
""".split()

_installed: list[torch.library.Library] = []
_lock = threading.Lock()


def install() -> None:
    """From now on this process has the device. It can't be taken away again.

    Raises RuntimeError after the process's first backward: autograd has counted its devices then.
    """
    with _lock:
        if _installed:
            return
        backend_registration._setup_privateuseone_for_python_backend(
            NAME, backend_module=DeviceModule()
        )
        library = torch.library.Library("aten", "IMPL")
        for name in FACTORIES:
            packet, _, overload = name.partition(".")
            operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(name, factory(operation), "PrivateUse1")
        library.impl("_copy_from", copy_from, "PrivateUse1")
        library.impl("_thnn_fused_gru_cell", gru_cell, "AutogradPrivateUse1")
        anything = torch.library.Library("_", "IMPL")
        anything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        _installed.extend([library, anything])
        try:
            torch.ones(1, device=NAME, requires_grad=True).sum().backward()
        except RuntimeError as error:
            raise RuntimeError(
                "install the pretend device before the first backward"
            ) from error


def copy_from(source, target, non_blocking=False):
    "Copies between the sides that torch makes itself, in torch.tensor(..., device=...)."
    to_host(target).copy_(to_host(source))
    return target
