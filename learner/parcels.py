"""What the processes of a learner send each other, as bytes: values, tensors, states of generators.

No pickles: what is read makes no objects but these, so whoever gets between the processes can tell
them lies, but not have them run code.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import torch
import torch.distributed as dist
from msgspec.msgpack import Ext
from safetensors.torch import load, save
from torch import Tensor

_TENSOR, _GENERATOR = 1, 2
Kind = TypeVar("Kind")


def packed(value: Any) -> bytes:
    """Return a value as bytes; TypeError when something in it has no form here."""
    return _encoder.encode(value)


def unpacked(data: bytes, kind: type[Kind] | Any = Any) -> Any:
    """Return the value of bytes, a ``kind``; msgspec.MsgspecError when they are none.

    What is in a field of any type comes as plain values, tensors and generators.
    """
    return msgspec.msgpack.decode(data, type=kind, ext_hook=_of_ext)


def broadcast(data: bytes | None) -> bytes:
    """Return the bytes that process 0 gave; the others give None."""
    length = torch.tensor([len(data or b"")])
    dist.broadcast(length, src=0)
    held = torch.empty(int(length), dtype=torch.uint8) if data is None else _bytes(data)
    dist.broadcast(held, src=0)
    return held.numpy().tobytes()


def gather(data: bytes, processes: int) -> list[bytes]:
    """Return the bytes that each process gave, by its rank."""
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(processes)]
    dist.all_gather(lengths, torch.tensor([len(data)]))
    longest = max(int(one) for one in lengths)  # all have to be of one length
    mine = _bytes(data.ljust(longest, b"\0"))
    found = [torch.empty_like(mine) for _ in range(processes)]
    dist.all_gather(found, mine)
    return [
        one[: int(length)].numpy().tobytes() for one, length in zip(found, lengths, strict=True)
    ]


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _as_ext(value: Any) -> Ext:
    if isinstance(value, Tensor):
        return Ext(_TENSOR, save({"": value.detach().cpu().contiguous()}))
    if isinstance(value, torch.Generator):
        return Ext(_GENERATOR, value.get_state().numpy().tobytes())
    raise TypeError(
        f"a {type(value).__name__} cannot be sent to the other processes; give plain values, "
        "structs, tensors or generators"
    )


def _of_ext(code: int, data: memoryview) -> Tensor | torch.Generator:
    if code == _TENSOR:
        return load(bytes(data))[""]
    if code == _GENERATOR:
        generator = torch.Generator()
        generator.set_state(_bytes(bytes(data)))
        return generator
    raise ValueError(f"a value of kind {code} came from another process; give all one release")


_encoder = msgspec.msgpack.Encoder(enc_hook=_as_ext)
