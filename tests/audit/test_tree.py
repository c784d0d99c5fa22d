"""The tree against RFC 9162's text, published vectors and another implementation."""

from collections.abc import Callable, Iterable
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymerkle import InmemoryTree  # type: ignore[import-untyped]

from infra.audit.tree import (
    EMPTY_ROOT,
    ProofInvalid,
    Tile,
    TileMissing,
    check_consistency,
    check_inclusion,
    consistency_proof,
    edge_tiles,
    grown,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    tiles_of_consistency,
    tiles_of_inclusion,
    tiles_of_root,
)
from tests.audit.naive import NaiveTree, leaves

SIZES = 300
NAIVE = NaiveTree(leaves(SIZES))


def tiles_of(hashes: Iterable[bytes]) -> dict[Tile, bytes]:
    return grown(0, {}, hashes)


def only(wanted: set[Tile], tiles: dict[Tile, bytes]) -> dict[Tile, bytes]:
    """No other tiles than those that were said to be needed."""
    return {tile: tiles[tile] for tile in wanted}


TILES = tiles_of(NAIVE.hashes)


def some(numbers: Iterable[int], low: int, high: int, everything: bool) -> list[int]:
    return list(range(low, high)) if everything else sorted({n for n in numbers if low <= n < high})


@pytest.mark.parametrize("size", range(1, SIZES + 1))
def test_a_tree_of_every_size_is_as_the_rfc_says(size: int) -> None:
    root = NAIVE.root(size)
    assert root_of(size, only(tiles_of_root(size), TILES)) == root
    is_thorough = size <= 20 or size in (255, 256, 257, SIZES)
    for index in some([0, 1, size // 3, size // 2, 255, 256, size - 2, size - 1], 0, size, is_thorough):
        proof = inclusion_proof(index, size, only(tiles_of_inclusion(index, size), TILES))
        assert proof == NAIVE.path(index, size)
        check_inclusion(index, size, NAIVE.hashes[index], proof, root)
    for old in some([1, 2, 3, size // 2, 128, 255, 256, 257, size - 1, size], 1, size + 1, is_thorough):
        proof = consistency_proof(old, size, only(tiles_of_consistency(old, size), TILES))
        assert proof == NAIVE.proof(old, size)
        check_consistency(old, size, NAIVE.root(old), root, proof)


def test_a_tree_of_three_levels_is_as_the_rfc_says() -> None:
    size = 66_000
    naive = NaiveTree(leaves(size))
    tiles = tiles_of(naive.hashes)
    assert tiles == naive.tiles(size)
    assert Tile(2, 0) in tiles
    for end in (65_535, 65_536, 65_537, 65_793, size):
        assert root_of(end, only(tiles_of_root(end), tiles)) == naive.root(end)
        for index in (0, 255, 40_000, end - 1):
            proof = inclusion_proof(index, end, only(tiles_of_inclusion(index, end), tiles))
            assert proof == naive.path(index, end)
            check_inclusion(index, end, naive.hashes[index], proof, naive.root(end))
        for old in (1, 256, 40_000, 65_535):
            proof = consistency_proof(old, end, only(tiles_of_consistency(old, end), tiles))
            assert proof == naive.proof(old, end)
            check_consistency(old, end, naive.root(old), naive.root(end), proof)


def test_published_roots() -> None:
    """The tree that Certificate Transparency's reference implementation is tested with."""
    data = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ]
    tiles = tiles_of(leaf_hash(bytes.fromhex(each)) for each in data)
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert [root_of(size, tiles).hex() for size in range(9)] == [
        EMPTY_ROOT.hex(),
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ]


def test_published_proofs() -> None:
    """From the same tests: leaf 5 of 8 and 2 of 3; from 6 to 8 leaves and from 2 to 5."""
    data = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ]
    tiles = tiles_of(leaf_hash(bytes.fromhex(each)) for each in data)
    assert [each.hex() for each in inclusion_proof(5, 8, tiles)] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert [each.hex() for each in inclusion_proof(2, 3, tiles)] == [
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    ]
    assert [each.hex() for each in consistency_proof(6, 8, tiles)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert [each.hex() for each in consistency_proof(2, 5, tiles)] == [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ]


def test_another_implementation_agrees() -> None:
    witness = InmemoryTree(algorithm="sha256")
    for each in leaves(SIZES):
        witness.append_entry(each)
    for size in range(1, SIZES + 1, 7):
        root = witness.get_root(size)
        assert root_of(size, TILES) == root
        for index in range(0, size, 13):
            leaf, *path = witness.prove_inclusion(index + 1, size).path
            assert (leaf, path) == (NAIVE.hashes[index], inclusion_proof(index, size, TILES))
        for old in range(1, size, 13):
            # It writes consistency proofs in another form, so its roots are what ours must lead to.
            check_consistency(old, size, witness.get_root(old), root, consistency_proof(old, size, TILES))


@pytest.mark.parametrize("steps", [[1] * 40, [255, 1, 1, 43], [256, 44], [300], [100, 0, 200], [17] * 17])
def test_a_tree_grows_to_the_same_tiles_in_any_steps(steps: list[int]) -> None:
    size = 0
    tiles: dict[Tile, bytes] = {}
    for step in steps:
        edge = only(edge_tiles(size), tiles)
        tiles |= grown(size, edge, NAIVE.hashes[size : size + step])
        size += step
        assert tiles == NAIVE.tiles(size)
        assert root_of(size, only(edge_tiles(size), tiles)) == NAIVE.root(size)


def test_only_changed_tiles_are_given() -> None:
    assert grown(7, TILES, []) == {}
    changed = grown(257, only(edge_tiles(257), tiles_of(NAIVE.hashes[:257])), [NAIVE.hashes[257]])
    assert changed.keys() == {Tile(0, 1)}


@pytest.mark.parametrize(
    "work",
    [
        lambda tiles: root_of(SIZES, tiles),
        lambda tiles: inclusion_proof(0, SIZES, tiles),
        lambda tiles: consistency_proof(1, SIZES, tiles),
        lambda tiles: grown(SIZES, tiles, [NAIVE.hashes[0]]),
    ],
    ids=["root", "inclusion", "consistency", "growth"],
)
@pytest.mark.parametrize("missing_hashes", [1, 256])
def test_a_missing_or_short_tile_is_named(
    work: Callable[[dict[Tile, bytes]], object], missing_hashes: int
) -> None:
    tiles = {tile: hashes[: -32 * missing_hashes] for tile, hashes in TILES.items()}
    with pytest.raises(TileMissing, match=r"tile \d/\d has \d+ hashes, not \d+"):
        work(tiles)


def test_what_is_no_hash_is_no_leaf() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        grown(0, {}, [b"short"])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (-1, 5), (5, 5), (9, 5), (0, -1)])
def test_there_is_no_proof_for_a_leaf_outside(index: int, size: int) -> None:
    with pytest.raises(ProofInvalid, match="has no leaf"):
        inclusion_proof(index, size, TILES)
    with pytest.raises(ProofInvalid, match="has no leaf"):
        check_inclusion(index, size, NAIVE.hashes[0], [], NAIVE.hashes[0])


@pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 5), (-1, 5), (6, 5), (1, 0)])
def test_there_is_no_proof_backwards_or_from_nothing(old: int, new: int) -> None:
    with pytest.raises(ProofInvalid):
        consistency_proof(old, new, TILES)
    with pytest.raises(ProofInvalid):
        check_consistency(old, new, EMPTY_ROOT, NAIVE.root(5), [])


def test_equal_sizes_are_consistent_where_their_roots_are_equal() -> None:
    check_consistency(5, 5, NAIVE.root(5), NAIVE.root(5), [])
    with pytest.raises(ProofInvalid, match="two roots"):
        check_consistency(5, 5, NAIVE.root(5), NAIVE.root(6), [])
    with pytest.raises(ProofInvalid, match="is empty"):
        check_consistency(5, 5, NAIVE.root(5), NAIVE.root(5), [NAIVE.root(5)])


@pytest.mark.parametrize("size", [1, 2, 5, 8, 257])
def test_a_proof_of_another_length_never_holds(size: int) -> None:
    root, leaf = NAIVE.root(size), NAIVE.hashes[size - 1]
    proof = inclusion_proof(size - 1, size, TILES)
    for wrong in ([*proof, leaf], [leaf, *proof], proof[:-1], proof[1:]):
        if wrong != proof:
            with pytest.raises(ProofInvalid):
                check_inclusion(size - 1, size, leaf, wrong, root)
    proof = consistency_proof(size, size + 1, TILES)
    for wrong in ([*proof, leaf], [leaf, *proof], proof[:-1], proof[1:], []):
        with pytest.raises(ProofInvalid):
            check_consistency(size, size + 1, root, NAIVE.root(size + 1), wrong)


def test_a_hash_of_another_length_is_refused() -> None:
    for leaf, root, proof in [(b"", NAIVE.root(2), []), (NAIVE.hashes[0], b"x" * 31, []), (b"", b"", [b""])]:
        with pytest.raises(ProofInvalid, match="32 bytes"):
            check_inclusion(0, 2, leaf, proof, root)
        with pytest.raises(ProofInvalid, match="32 bytes"):
            check_consistency(1, 2, leaf, root, proof)


def changed_byte(data: bytes, at: int, by: int) -> bytes:
    return data[:at] + bytes([data[at] ^ by]) + data[at + 1 :]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_one_changed_byte_never_verifies(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, SIZES))
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size - 1))
    at, by = data.draw(st.integers(0, 31)), data.draw(st.integers(1, 255))

    parts = [NAIVE.hashes[index], NAIVE.root(size), *inclusion_proof(index, size, TILES)]
    one = data.draw(st.integers(0, len(parts) - 1))
    parts[one] = changed_byte(parts[one], at, by)
    with pytest.raises(ProofInvalid):
        check_inclusion(index, size, parts[0], parts[2:], parts[1])

    parts = [NAIVE.root(old), NAIVE.root(size), *consistency_proof(old, size, TILES)]
    one = data.draw(st.integers(0, len(parts) - 1))
    parts[one] = changed_byte(parts[one], at, by)
    with pytest.raises(ProofInvalid):
        check_consistency(old, size, parts[0], parts[1], parts[2:])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, SIZES), st.integers(1, SIZES), st.data())
def test_a_proof_never_holds_for_another_leaf_or_size(size: int, other: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    elsewhere = data.draw(st.integers(0, other - 1))
    proof = inclusion_proof(index, size, TILES)
    if index != elsewhere:
        with pytest.raises(ProofInvalid):
            check_inclusion(elsewhere, other, NAIVE.hashes[index], proof, NAIVE.root(other))
    if size != other:
        with pytest.raises(ProofInvalid):
            check_inclusion(index, size, NAIVE.hashes[index], proof, NAIVE.root(other))


def test_a_leaf_is_never_taken_for_a_node() -> None:
    left, right = NAIVE.hashes[:2]
    assert leaf_hash(left + right) != node_hash(left, right) == sha256(b"\x01" + left + right).digest()
