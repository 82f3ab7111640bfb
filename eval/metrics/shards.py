"""Spread the items of a benchmark over processes, in the two ways of the papers; both need no knowledge of the others.

Strided shares balance sets that are sorted by video length, contiguous ones keep the queries of a video together.
"""


def contiguous(count: int, shards: int) -> list[range]:
    """Return the item numbers of each shard: runs of ceil(count / shards); the last ones may be shorter or empty.

    Source: VideoChat-R1 `split_data`.

    Raises:
        ValueError: fewer than one shard, or a negative count.
    """
    _check(count, shards)
    size = -(-count // shards)
    return [range(min(i * size, count), min((i + 1) * size, count)) for i in range(shards)]


def strided(count: int, shards: int) -> list[range]:
    """Return the item numbers of each shard: every one of them takes every `shards`-th item.

    Source: VideoMind `infer_auto.py`.

    Raises:
        ValueError: fewer than one shard, or a negative count.
    """
    _check(count, shards)
    return [range(i, count, shards) for i in range(shards)]


def _check(count: int, shards: int) -> None:
    if count < 0 or shards < 1:
        raise ValueError(f"there are {count} items and {shards} shards; at least 0 and 1 are needed")
