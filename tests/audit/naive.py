"""The tree of RFC 9162 §2.1 as its text says it, recursively and from the leaves: slow, and nothing of ours."""

import hashlib
from functools import cache


def leaves(count: int) -> list[bytes]:
    """Some leaves, each other than the rest."""
    return [f"leaf {number}".encode() for number in range(count)]


class NaiveTree:
    """MTH, PATH and PROOF over some leaves."""

    def __init__(self, data: list[bytes]) -> None:
        self.hashes = [hashlib.sha256(b"\x00" + each).digest() for each in data]
        self._mth = cache(self._compute)

    def root(self, size: int) -> bytes:
        """MTH(D[0:size])"""
        return self._mth(0, size)

    def _compute(self, start: int, end: int) -> bytes:
        n = end - start
        if n == 0:
            return hashlib.sha256().digest()
        if n == 1:
            return self.hashes[start]
        k = largest_power_of_two_smaller_than(n)
        left, right = self._mth(start, start + k), self._mth(start + k, end)
        return hashlib.sha256(b"\x01" + left + right).digest()

    def path(self, m: int, size: int) -> list[bytes]:
        """PATH(m, D[0:size])"""
        return self._path(m, 0, size)

    def _path(self, m: int, start: int, end: int) -> list[bytes]:
        n = end - start
        if n == 1:
            return []
        k = largest_power_of_two_smaller_than(n)
        if m < k:
            return [*self._path(m, start, start + k), self._mth(start + k, end)]
        return [*self._path(m - k, start + k, end), self._mth(start, start + k)]

    def proof(self, m: int, size: int) -> list[bytes]:
        """PROOF(m, D[0:size])"""
        return self._subproof(m, 0, size, b=True)

    def _subproof(self, m: int, start: int, end: int, *, b: bool) -> list[bytes]:
        n = end - start
        if m == n:
            return [] if b else [self._mth(start, end)]
        k = largest_power_of_two_smaller_than(n)
        if m <= k:
            return [*self._subproof(m, start, start + k, b=b), self._mth(start + k, end)]
        return [*self._subproof(m - k, start + k, end, b=False), self._mth(start, start + k)]

    def tiles(self, size: int) -> dict[tuple[int, int], bytes]:
        """Every tile of C2SP tlog-tiles, by level and number."""
        tiles: dict[tuple[int, int], bytes] = {}
        level = 0
        while count := size >> 8 * level:
            width = 1 << 8 * level
            hashes = [self._mth(n * width, (n + 1) * width) for n in range(count)]
            for first in range(0, count, 256):
                tiles[level, first // 256] = b"".join(hashes[first : first + 256])
            level += 1
        return tiles


def largest_power_of_two_smaller_than(n: int) -> int:
    """k < n <= 2k"""
    k = 1
    while 2 * k < n:
        k *= 2
    return k
