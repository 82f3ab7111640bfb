"""Draws that depend on the seed and on what is drawn alone: not on order, platform or the version of a library."""

import hashlib
from collections.abc import Iterable, Mapping


def uniform(seed: int, uid: str) -> float:
    """A number above 0 and below 1 that belongs to a seed and a uid."""
    digest = hashlib.blake2b(f"{seed}/{uid}".encode(), digest_size=6).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**48


def shuffled(seed: int, uids: Iterable[str]) -> list[str]:
    """The uids in an order of chance; a subset of them has the same order."""
    return sorted(uids, key=lambda uid: (uniform(seed, uid), uid))


def shares(counts: Mapping[tuple, int], size: int) -> dict[tuple, int]:
    """Parts of `size` in proportion to `counts`, by largest remainder; no part is larger than its count."""
    total = sum(counts.values())
    size = min(size, total)
    if not size:
        return dict.fromkeys(counts, 0)
    parts = {name: size * count // total for name, count in counts.items()}
    order = sorted(counts, key=lambda name: (-(size * counts[name] % total), str(name)))
    for name in order[: size - sum(parts.values())]:
        parts[name] += 1
    return parts
