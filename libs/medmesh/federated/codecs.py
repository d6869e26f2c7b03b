"""How an update travels: whole, or as its difference from the round's model in fewer bytes, with error feedback.

What a codec cannot say this round is kept as the hospital's residual and added to the next round's difference (Seide et al. 2014,
"1-bit SGD"; Karimireddy et al. 2019, "Error feedback fixes SignSGD", algorithm 2), so that nothing is lost for good.

    fp16, bf16    the difference, rounded
    int8          blocks of 4,096 numbers, each with a float32 scale: q = d / s, rounded, s = max|d| / 127 (0.2510 of float32)
    topk          of each block of 65,536 numbers the largest `codec_share` in magnitude, by place and value (Stich et al. 2018)

Rounding is at random, up as often as the number is near the upper neighbour, so that on the mean nothing is added (Gupta et al. 2015, "Deep
learning with limited numerical precision"). What is drawn comes from a key that the code whose numbers they are does not know; the same key
draws the same, so that what is made once more has the same bytes.

Encoded updates are safetensors files, too: `codec/<part>/<tensor>` beside tensors that travel as they are. Integer tensors always do, and
so do floats of another width than 32 bits. Everything here goes through files a piece at a time, whatever the model's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from medmesh.contracts.plan import Plan, TensorSignature
from medmesh.errors import Problem
from medmesh.federated.streams import Reader, Writer
from medmesh.learning.weights import BYTES, finite, header
from medmesh.memo import by_identity

PREFIX = "codec/"
BLOCK = 4096
"""Numbers that share a scale."""
SPARSE = 1 << 16
"""Numbers among which the largest are chosen: a place fits into 16 bits."""
_STEP = 1 << 18

Parts = dict[str, np.ndarray]
"""What one piece of a tensor becomes, by part."""


class Dice:
    """Numbers from 0 to 65,535, each as often: AES-256-CTR over zeros under a key of 32 bytes that is used for one update."""

    def __init__(self, key: bytes) -> None:
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def draw(self, count: int) -> np.ndarray:
        """The next `count` of them."""
        return np.frombuffer(self._stream.update(bytes(2 * count)), np.uint16)

    def up(self, share: np.ndarray) -> np.ndarray:
        """For each share, from 0 up to 1, whether it is drawn: so often."""
        return self.draw(share.size).reshape(share.shape) < share * np.float32(65536)


Into = Callable[[np.ndarray, Dice], Parts]


def kept(count: int, share: str) -> int:
    """How many of `count` neighbouring numbers top-k sends; at least one."""
    return max(1, math.ceil(count * Decimal(share)))


def _sparse(count: int, share: str) -> int:
    whole, rest = divmod(count, SPARSE)
    return whole * kept(SPARSE, share) + (kept(rest, share) if rest else 0)


@by_identity()
def sent(plan: Plan) -> tuple[TensorSignature, ...]:
    """What a hospital sends in a training round of a plan, as it travels."""
    from medmesh.federated.aggregation import upload_signature

    return wire(upload_signature(plan), plan.codec, plan.codec_share, frozenset(tensor.name for tensor in plan.signature))


def _coded(tensor: TensorSignature, model: Container[str] | None) -> bool:
    """Whether a tensor travels as a difference: the model has it, too."""
    return tensor.dtype == "F32" and math.prod(tensor.shape) > 0 and (model is None or tensor.name in model)


def wire(
    signature: Iterable[TensorSignature], codec: str, share: str = "0.01", model: Container[str] | None = None
) -> tuple[TensorSignature, ...]:
    """The tensors of an encoded update: what travels for tensors of this signature; those that `model` has not travel as they are."""
    made: list[TensorSignature] = []
    for tensor in signature:
        count = math.prod(tensor.shape)
        parts: dict[str, tuple[int, Any]] = {}
        if _coded(tensor, model):
            match codec:
                case "fp16" | "bf16":
                    parts = {"half": (count, "F16" if codec == "fp16" else "BF16")}
                case "int8":
                    parts = {"q": (count, "I8"), "scale": (-(-count // BLOCK), "F32")}
                case "topk":
                    parts = {"place": (_sparse(count, share), "U16"), "value": (_sparse(count, share), "F32")}
        if parts:
            made += [
                TensorSignature.model_construct(name=f"{PREFIX}{part}/{tensor.name}", shape=(number,), dtype=dtype)
                for part, (number, dtype) in parts.items()
            ]
        else:
            made.append(tensor)
    return tuple(made)


def wire_bytes(signature: Iterable[TensorSignature]) -> int:
    """Bytes of these tensors, header aside."""
    return sum(math.prod(tensor.shape) * BYTES[tensor.dtype] for tensor in signature)


# --- the codecs, on one piece of a difference (float32, at most `_STEP` numbers, whole blocks but at the end) -------------------------


def _half(d: np.ndarray, dice: Dice) -> Parts:
    limit = np.float32(np.finfo(np.float16).max)
    d = np.clip(d, -limit, limit)
    near = d.astype(np.float16)
    low = np.where(near <= d, near, np.nextafter(near, np.float16(-np.inf)))
    high = np.nextafter(low, np.float16(np.inf))
    below = low.astype(np.float32)
    return {"half": np.where(dice.up((d - below) / (high.astype(np.float32) - below)), high, low)}


def _unhalf(parts: Parts, count: int) -> np.ndarray:
    return parts["half"].astype(np.float32)


def _brain(d: np.ndarray, dice: Dice) -> Parts:
    bits = np.ascontiguousarray(d).view(np.uint32)
    return {"half": ((bits + dice.draw(d.size)) >> np.uint32(16)).astype(np.uint16)}


def _unbrain(parts: Parts, count: int) -> np.ndarray:
    return (parts["half"].astype(np.uint32) << np.uint32(16)).view(np.float32)


def _blocks(d: np.ndarray, size: int) -> np.ndarray:
    return np.pad(d, (0, -len(d) % size)).reshape(-1, size)


def _int8(d: np.ndarray, dice: Dice) -> Parts:
    blocks = _blocks(d, BLOCK)
    scale = (np.abs(blocks).max(axis=1) / np.float32(127)).astype(np.float32)
    exact = blocks / np.where(scale == 0, np.float32(1), scale)[:, None]
    q = np.floor(exact)
    q += dice.up(exact - q)
    return {"q": np.clip(q, -127, 127).astype(np.int8).reshape(-1)[: len(d)], "scale": scale}


def _unint8(parts: Parts, count: int) -> np.ndarray:
    made = _blocks(parts["q"].astype(np.float32), BLOCK) * parts["scale"][:, None]
    result: np.ndarray = made.reshape(-1)[:count]
    return result


def _topk(share: str) -> Into:
    def encode(d: np.ndarray, _: Dice) -> Parts:  # what is sent is sent whole
        places, values = [], []
        for start in range(0, len(d), SPARSE):
            part = d[start : start + SPARSE]
            # Sorted stably, so that of equal ones the first are chosen everywhere.
            chosen = np.sort(np.argsort(-np.abs(part), kind="stable")[: kept(len(part), share)])
            places.append(chosen.astype(np.uint16))
            values.append(part[chosen])
        return {"place": np.concatenate(places), "value": np.concatenate(values)}

    return encode


def _untopk(share: str) -> Callable[[Parts, int], np.ndarray]:
    def decode(parts: Parts, count: int) -> np.ndarray:
        made, taken = np.zeros(count, np.float32), 0
        for start in range(0, count, SPARSE):
            length = min(SPARSE, count - start)
            number = kept(length, share)
            places = parts["place"][taken : taken + number].astype(np.int64)
            if places.size and (places[-1] >= length or (np.diff(places) <= 0).any()):
                raise Problem("weights.malformed")
            made[start + places] = parts["value"][taken : taken + number]
            taken += number
        return made

    return decode


def _codec(name: str, share: str) -> tuple[Into, Callable[[Parts, int], np.ndarray]]:
    return {
        "fp16": (_half, _unhalf),
        "bf16": (_brain, _unbrain),
        "int8": (_int8, _unint8),
        "topk": (_topk(share), _untopk(share)),
    }[name]


def _part_lengths(name: str, count: int, share: str) -> dict[str, tuple[int, Any]]:
    """Of one piece of `count` numbers: how many entries each part has, and of which kind."""
    match name:
        case "int8":
            return {"q": (count, np.int8), "scale": (-(-count // BLOCK), np.float32)}
        case "topk":
            return {"place": (_sparse(count, share), np.uint16), "value": (_sparse(count, share), np.float32)}
        case _:
            return {"half": (count, np.float16 if name == "fp16" else np.uint16)}


# --- files ----------------------------------------------------------------------------------------------------------------------------


def _named(tensors: Iterable[TensorSignature]) -> dict[str, TensorSignature]:
    return {tensor.name: tensor for tensor in tensors}


def _steps(tensor: TensorSignature) -> Iterator[int]:
    """Numbers in each piece of a tensor."""
    count = math.prod(tensor.shape)
    yield from (min(_STEP, count - start) for start in range(0, count, _STEP))


def _floats(reader: Reader, name: str, count: int) -> np.ndarray:
    return np.frombuffer(reader.next(name, 4 * count), np.float32)


def encode(
    codec: str,
    signature: Iterable[TensorSignature],
    base: Path,
    update: Path,
    residual: Path | None,
    target: Path,
    left: Path,
    *,
    share: str,
    key: bytes,
) -> None:
    """Write the encoded `update` to `target` and the new residual to `left`, rounded by `key` (32 bytes). `update` has the tensors of
    `signature`, `residual` those of the last encoding's `left`: the encoded ones. All are safetensors files."""
    tensors = tuple(signature)
    model = header(base)
    coded = tuple(tensor for tensor in tensors if _coded(tensor, model))
    (into, back), dice = _codec(codec, share), Dice(key)
    with (
        Reader(base) as before,
        Reader(update) as after,
        Reader(residual or update) as rest,
        Writer(target, _named(wire(tensors, codec, share, model))) as out,
        Writer(left, _named(coded)) as kept_back,
    ):
        for tensor in tensors:
            if tensor not in coded:
                for count in _steps(tensor):
                    out.append(tensor.name, after.next(tensor.name, count * BYTES[tensor.dtype]))
                continue
            for count in _steps(tensor):
                d = _floats(after, tensor.name, count) - _floats(before, tensor.name, count)
                if residual is not None:
                    d += _floats(rest, tensor.name, count)
                parts = into(d, dice)
                for part, array in parts.items():
                    out.append(f"{PREFIX}{part}/{tensor.name}", array.tobytes())
                kept_back.append(tensor.name, (d - back(parts, count)).tobytes())


def decode(codec: str, signature: Iterable[TensorSignature], base: Path, encoded: Path, target: Path, *, share: str) -> None:
    """Write the model that an encoded update stands for: what the hospital trained, as far as the codec says. Raises `Problem`
    (`weights.malformed`)."""
    tensors = tuple(signature)
    with Writer(target, _named(tensors)) as out:
        for tensor, data in _decoded(codec, tensors, base, encoded, share):
            out.append(tensor.name, data)


def check_decoded(codec: str, signature: Iterable[TensorSignature], base: Path, encoded: Path, *, share: str) -> None:
    """Raise the `Problem` (`weights.malformed`, `weights.not_finite`) of an encoded update that `decode` makes no model of, or one with NaN
    or infinity. Nothing is written."""
    for tensor, data in _decoded(codec, signature, base, encoded, share):
        if not finite(data, tensor.dtype):
            raise Problem("weights.not_finite", tensor=tensor.name)


def _decoded(
    codec: str, signature: Iterable[TensorSignature], base: Path, encoded: Path, share: str
) -> Iterator[tuple[TensorSignature, bytes]]:
    """The tensors of the model, each in the pieces that follow each other in it."""
    _, back = _codec(codec, share)
    with Reader(base) as before, Reader(encoded) as sent, np.errstate(over="ignore", invalid="ignore"):
        for tensor in signature:
            coded = _coded(tensor, before.layout)
            for count in _steps(tensor):
                if not coded:
                    yield tensor, sent.next(tensor.name, count * BYTES[tensor.dtype])
                    continue
                parts: Parts = {
                    part: np.frombuffer(sent.next(f"{PREFIX}{part}/{tensor.name}", number * np.dtype(kind).itemsize), kind)
                    for part, (number, kind) in _part_lengths(codec, count, share).items()
                }
                yield tensor, (_floats(before, tensor.name, count) + back(parts, count)).astype(np.float32).tobytes()
