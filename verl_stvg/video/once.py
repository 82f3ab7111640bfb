"""Work that many ask for and that is done once: a bounded cache whose concurrent callers wait for one computation."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any


class Once:
    """Results by key; the least recently used are dropped when their sizes exceed a bound, failures are not kept.

    Args:
        max_bytes: of all results together; the newest is kept whatever its size.
        size: bytes of one result.

    Attributes:
        computed: how many results were computed, that is, not taken from the cache.
    """

    def __init__(self, max_bytes: int, size: Callable[[Any], int]):
        self.max_bytes = max_bytes
        self.computed = 0
        self._size = size
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, Future] = OrderedDict()
        self._sizes: OrderedDict[Hashable, int] = OrderedDict()  # of the finished ones
        self._held = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The result for a key; computed by the first caller, waited for by the others. Do not change it."""
        with self._lock:
            future = self._entries.get(key)
            first = future is None
            if first:
                future = self._entries[key] = Future()
            self._entries.move_to_end(key)
            if key in self._sizes:
                self._sizes.move_to_end(key)
        if first:
            try:
                result = compute()
            except BaseException as error:
                with self._lock:
                    del self._entries[key]
                future.set_exception(error)
            else:
                future.set_result(result)
                with self._lock:
                    self.computed += 1
                    self._keep(key, self._size(result))
        return future.result()

    def _keep(self, key: Hashable, size: int) -> None:
        self._sizes[key] = size
        self._held += size
        while self._held > self.max_bytes and len(self._sizes) > 1:
            oldest, freed = self._sizes.popitem(last=False)
            del self._entries[oldest]
            self._held -= freed
