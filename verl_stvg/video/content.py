"""The hash of a file's bytes, by itself or on the way while something else reads the file.

XXH3 of 128 bits, as 32 hexadecimal digits.
"""

import os
from typing import BinaryIO

import xxhash

_CHUNK = 2**20  # bytes


def hash_file(path: str) -> str:
    """Hash of a file's bytes."""
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


class Hashed:
    """A file that is hashed while it is read, so that its bytes are fetched once.

    Whoever reads it may seek: what goes on where the hashed part ends counts, and `digest` reads the rest.

    Args:
        file: to read, unbuffered, at its beginning.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._digest, self._hashed, self._place = file, xxhash.xxh3_128(), 0, 0
        self.name = file.name

    def read(self, size: int = -1) -> bytes:
        """As a file's."""
        data = self._file.read(size)
        begin, self._place = self._place, self._place + len(data)
        if begin <= self._hashed < self._place:
            self._digest.update(memoryview(data)[self._hashed - begin :])
            self._hashed = self._place
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As a file's."""
        self._place = self._file.seek(offset, whence)
        return self._place

    def tell(self) -> int:
        """As a file's."""
        return self._place

    def digest(self) -> str:
        """Hash of all bytes."""
        self.seek(self._hashed)
        while self.read(_CHUNK):
            pass
        return self._digest.hexdigest()


Opened = BinaryIO | Hashed
"""A file that is open for reading."""
