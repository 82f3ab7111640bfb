"""The single-flight cache: one computation per key, bounded memory, failures raised and forgotten."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_stvg.video.once import Once


def test_concurrent_callers_share_one_computation():
    cache, started = Once(100, size=len), threading.Event()
    calls = []

    def compute():
        calls.append(1)
        started.set()
        time.sleep(0.2)
        return b"x" * 10

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: cache.get("key", compute), range(16)))
    assert len(calls) == cache.computed == 1
    assert all(r is results[0] for r in results)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60)), max_size=60), st.integers(1, 200))
def test_bounded_and_always_right(requests, bound):
    cache = Once(bound, size=len)
    for key, _ in requests:
        size = key * 7 + 1
        assert cache.get(key, lambda size=size: bytes(size)) == bytes(size)
        held = sum(len(f.result()) for f in cache._entries.values())
        assert held <= bound or len(cache) == 1
        assert next(reversed(cache._entries)) == key


def test_failures_are_raised_to_all_and_not_kept():
    cache = Once(100, size=len)
    with pytest.raises(ValueError, match="no"):
        cache.get("key", lambda: (_ for _ in ()).throw(ValueError("no")))
    assert cache.get("key", lambda: b"yes") == b"yes"


def test_a_new_result_costs_the_same_however_many_are_kept():
    measured = []
    cache = Once(10**6, size=lambda result: measured.append(result) or 1)
    for key in range(2000):
        cache.get(key, lambda key=key: key)
    assert measured == list(range(2000))  # each is measured once, by itself
    assert len(cache) == 2000
