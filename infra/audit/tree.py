"""The Merkle tree of RFC 9162 §2.1 in tiles of C2SP tlog-tiles: roots, proofs, growth, verification.

https://www.rfc-editor.org/rfc/rfc9162#section-2.1 · https://c2sp.org/tlog-tiles

A node of height ``h`` and number ``n`` is the hash over the leaves from ``n * 2**h`` to ``(n + 1) * 2**h``.
Tile ``(level, number)`` holds the nodes of height ``8 * level`` from ``256 * number`` on, 256 where it is
full; whatever lies between two levels is hashed anew from the tile below. Everything asked of the tree of a
size is made of complete nodes only, so a tile that has grown since serves older sizes too.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from hmac import compare_digest
from typing import NamedTuple

HASH_BYTES = 32
TILE_HEIGHT = 8
TILE_WIDTH = 2**TILE_HEIGHT
TILE_BYTES = TILE_WIDTH * HASH_BYTES
EMPTY_ROOT = sha256(b"").digest()


class ProofInvalid(Exception):
    """A proof does not hold, or what is asked for cannot be proven; says why."""


class TileMissing(Exception):
    """A tile that the tree of this size must have is absent, or too short."""


class Tile(NamedTuple):
    """Which tile."""

    level: int
    number: int


class _Node(NamedTuple):
    height: int
    number: int


class _Range(NamedTuple):
    """The leaves from ``start`` up to ``end``, as RFC 9162 writes D[start:end]."""

    start: int
    end: int

    @property
    def split(self) -> int:
        """Where its right half begins: after the largest power of two smaller than its length."""
        return self.start + (1 << (self.end - self.start - 1).bit_length() - 1)


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf with ``data``."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node above ``left`` and ``right``."""
    return sha256(b"\x01" + left + right).digest()


# --- what must be read --------------------------------------------------------------------------------------


def tiles_of_root(size: int) -> set[Tile]:
    """The tiles from which `root_of` is worked out."""
    return _tiles([_Range(0, _checked_size(size))])


def tiles_of_inclusion(index: int, size: int) -> set[Tile]:
    """The tiles from which `inclusion_proof` is worked out. Raises `ProofInvalid`."""
    return _tiles(_inclusion_ranges(index, size))


def tiles_of_consistency(old: int, new: int) -> set[Tile]:
    """The tiles from which `consistency_proof` is worked out. Raises `ProofInvalid`."""
    return _tiles(_consistency_ranges(old, new))


def edge_tiles(size: int) -> set[Tile]:
    """The partial tiles at the right edge: all that `grown` needs, and `root_of` as well."""
    return tiles_of_root(size)


# --- what is worked out from tiles --------------------------------------------------------------------------


def root_of(size: int, tiles: Mapping[Tile, bytes]) -> bytes:
    """The root of the tree of the first ``size`` leaves. Raises `TileMissing`."""
    return _range_hash(_Range(0, size), tiles) if _checked_size(size) else EMPTY_ROOT


def inclusion_proof(index: int, size: int, tiles: Mapping[Tile, bytes]) -> list[bytes]:
    """PATH(index, D[0:size]) of RFC 9162 §2.1.3.1. Raises `ProofInvalid`, `TileMissing`."""
    return [_range_hash(part, tiles) for part in _inclusion_ranges(index, size)]


def consistency_proof(old: int, new: int, tiles: Mapping[Tile, bytes]) -> list[bytes]:
    """PROOF(old, D[0:new]) of RFC 9162 §2.1.4.1; empty for equal sizes.

    Raises `ProofInvalid`, `TileMissing`.
    """
    return [_range_hash(part, tiles) for part in _consistency_ranges(old, new)]


def grown(size: int, edge: Mapping[Tile, bytes], leaf_hashes: Iterable[bytes]) -> dict[Tile, bytes]:
    """Every tile that changes when ``leaf_hashes`` follow the first ``size`` leaves, as it is then.

    ``edge`` holds at least `edge_tiles` of ``size``. Raises `TileMissing`.
    """
    changed: dict[Tile, bytes] = {}
    added = list(leaf_hashes)
    if any(len(each) != HASH_BYTES for each in added):
        raise ValueError(f"a hash has {HASH_BYTES} bytes")
    level = 0
    while added:
        number, width = divmod(_checked_size(size) >> TILE_HEIGHT * level, TILE_WIDTH)
        before = _tile_start(Tile(level, number), width, edge) if width else b""
        hashes = before + b"".join(added)
        added = []
        for start in range(0, len(hashes), TILE_BYTES):
            tile = hashes[start : start + TILE_BYTES]
            changed[Tile(level, number)] = tile
            number += 1
            if len(tile) == TILE_BYTES:
                added.append(_complete_hash(tile))
        level += 1
    return changed


# --- verification -------------------------------------------------------------------------------------------


def check_inclusion(index: int, size: int, leaf_hash: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """RFC 9162 §2.1.3.2. Raises `ProofInvalid` unless the leaf is number ``index`` of ``root``'s tree."""
    _refuse_outside(index, size)
    _refuse_no_hashes([leaf_hash, root, *proof])
    number, last = index, size - 1
    calculated = leaf_hash
    for sibling in proof:
        if last == 0:
            raise ProofInvalid(f"the inclusion proof has too many hashes: {len(proof)}")
        if number & 1 or number == last:
            calculated = node_hash(sibling, calculated)
            number, last = _up_to_right_child(number, last)
        else:
            calculated = node_hash(calculated, sibling)
        number, last = number >> 1, last >> 1
    if last != 0:
        raise ProofInvalid(f"the inclusion proof has too few hashes: {len(proof)}")
    if not compare_digest(calculated, root):
        raise ProofInvalid(f"leaf {index} is not in the tree of size {size}: the proof leads to another root")


def check_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """RFC 9162 §2.1.4.2. Raises `ProofInvalid` unless the old tree is the beginning of the new one."""
    _refuse_backwards(old, new)
    _refuse_no_hashes([old_root, new_root, *proof])
    if old == new:
        if proof:
            raise ProofInvalid("a consistency proof between equal sizes is empty")
        if not compare_digest(old_root, new_root):
            raise ProofInvalid(f"two roots for the tree of size {old}")
        return
    if not proof:
        raise ProofInvalid("the consistency proof has too few hashes: 0")
    first, *siblings = proof if old & (old - 1) else [old_root, *proof]
    number, last = old - 1, new - 1
    while number & 1:
        number, last = number >> 1, last >> 1
    old_calculated = new_calculated = first
    for sibling in siblings:
        if last == 0:
            raise ProofInvalid(f"the consistency proof has too many hashes: {len(proof)}")
        if number & 1 or number == last:
            old_calculated = node_hash(sibling, old_calculated)
            new_calculated = node_hash(sibling, new_calculated)
            number, last = _up_to_right_child(number, last)
        else:
            new_calculated = node_hash(new_calculated, sibling)
        number, last = number >> 1, last >> 1
    if last != 0:
        raise ProofInvalid(f"the consistency proof has too few hashes: {len(proof)}")
    if not compare_digest(old_calculated, old_root):
        raise ProofInvalid(f"the tree of size {new} does not continue that of size {old}: another old root")
    if not compare_digest(new_calculated, new_root):
        raise ProofInvalid(f"the tree of size {new} does not continue that of size {old}: another new root")


def _up_to_right_child(number: int, last: int) -> tuple[int, int]:
    while not number & 1 and number:
        number, last = number >> 1, last >> 1
    return number, last


# --- ranges of leaves, nodes, tiles -------------------------------------------------------------------------


def _inclusion_ranges(index: int, size: int) -> list[_Range]:
    _refuse_outside(index, size)
    path: list[_Range] = []
    part = _Range(0, size)
    while part.end - part.start > 1:
        left, right = _Range(part.start, part.split), _Range(part.split, part.end)
        part, sibling = (left, right) if index < part.split else (right, left)
        path.append(sibling)
    return path[::-1]


def _consistency_ranges(old: int, new: int) -> list[_Range]:
    _refuse_backwards(old, new)
    path: list[_Range] = []
    part = _Range(0, new)
    while part.end != old:
        left, right = _Range(part.start, part.split), _Range(part.split, part.end)
        part, sibling = (left, right) if old <= part.split else (right, left)
        path.append(sibling)
    if part.start > 0:  # else it is the old tree as a whole, whose root the verifier has
        path.append(part)
    return path[::-1]


def _complete_nodes(part: _Range) -> Iterator[_Node]:
    """The complete nodes that ``part`` is made of, from left to right."""
    start = part.start
    while start < part.end:
        height = (part.end - start).bit_length() - 1
        yield _Node(height, start >> height)
        start += 1 << height


def _place(node: _Node) -> tuple[Tile, int, int]:
    """The tile that holds what is below ``node``, the first of its hashes there, and how many they are."""
    level, within = divmod(node.height, TILE_HEIGHT)
    number, first = divmod(node.number << within, TILE_WIDTH)
    return Tile(level, number), first, 1 << within


def _tiles(parts: Iterable[_Range]) -> set[Tile]:
    return {_place(node)[0] for part in parts for node in _complete_nodes(part)}


def _range_hash(part: _Range, tiles: Mapping[Tile, bytes]) -> bytes:
    *lefts, calculated = [_stored_hash(node, tiles) for node in _complete_nodes(part)]
    for left in reversed(lefts):
        calculated = node_hash(left, calculated)
    return calculated


def _stored_hash(node: _Node, tiles: Mapping[Tile, bytes]) -> bytes:
    tile, first, count = _place(node)
    return _complete_hash(_tile_start(tile, first + count, tiles)[first * HASH_BYTES :])


def _tile_start(tile: Tile, width: int, tiles: Mapping[Tile, bytes]) -> bytes:
    hashes = tiles.get(tile, b"")
    if len(hashes) < width * HASH_BYTES:
        raise TileMissing(
            f"tile {tile.level}/{tile.number} has {len(hashes) // HASH_BYTES} hashes, not {width}"
        )
    return hashes[: width * HASH_BYTES]


def _complete_hash(hashes: bytes) -> bytes:
    """The node above a power of two of concatenated ``hashes``."""
    while len(hashes) > HASH_BYTES:
        hashes = b"".join(
            sha256(b"\x01" + hashes[start : start + 2 * HASH_BYTES]).digest()
            for start in range(0, len(hashes), 2 * HASH_BYTES)
        )
    return hashes


# --- refusals -----------------------------------------------------------------------------------------------


def _checked_size(size: int) -> int:
    if size < 0:
        raise ValueError(f"a tree has no size {size}")
    return size


def _refuse_outside(index: int, size: int) -> None:
    if not 0 <= index < size:
        raise ProofInvalid(f"a tree of size {size} has no leaf {index}")


def _refuse_backwards(old: int, new: int) -> None:
    if old < 1:
        raise ProofInvalid(f"nothing is proven about a tree of size {old}")
    if new < old:
        raise ProofInvalid(f"a tree of size {new} cannot continue one of size {old}")


def _refuse_no_hashes(hashes: Iterable[bytes]) -> None:
    for each in hashes:
        if len(each) != HASH_BYTES:
            raise ProofInvalid(f"a hash has {HASH_BYTES} bytes, not {len(each)}")
