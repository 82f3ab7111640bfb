"""Opens video files: the container, the film in it, and its packets one after the other.

The film is the container's best video stream that is no attached picture.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition

from verl_stvg.video.content import Opened
from verl_stvg.video.film import MAX_AREA, TimelessVideo, VideoError

_UNREADABLE = 100  # packets in a row that cannot be read: the rest of the file is missing


@contextlib.contextmanager
def opened(path: Path, file: Opened | None = None) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """A container and the film in it.

    Args:
        path: of the file.
        file: of that path if it is open already; it stays open.

    Raises:
        VideoError: not readable, without a film, or with pictures over `MAX_AREA`.
    """
    if not path.is_file():
        raise _missing(path)
    try:
        if file is not None:
            file.seek(0)
        container = av.open(str(path) if file is None else _Unclosed(file), "r", metadata_errors="ignore")
    except FFmpegError as error:
        raise _unreadable(path, error) from error
    with container:
        stream = _film(path, container)
        context = stream.codec_context
        if context is None:
            raise VideoError(f"{path}: its pictures are coded in a way that nobody knows; download or encode it again")
        if context.width * context.height > MAX_AREA:
            raise VideoError(
                f"{path}: pictures of {context.width}x{context.height} are over {MAX_AREA} pixels; make a smaller copy"
            )
        context.options = {"max_pixels": str(MAX_AREA)}
        yield container, stream


class _Unclosed:
    """An open file as PyAV reads one, which would close it with the container."""

    def __init__(self, file: Opened):
        self.name, self.read, self.tell = os.fspath(file.name), file.read, file.tell
        self._seek = file.seek

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As a file's; where FFmpeg asks for a place that no file has, a negative number says so to it."""
        try:
            return self._seek(offset, whence)
        except OSError as error:
            return -(error.errno or errno.EINVAL)


def _missing(path: Path) -> VideoError:
    return VideoError(f"{path}: no such video; check the row's path and the folder the rows are relative to")


def _unreadable(path: Path, error: FFmpegError | OSError) -> VideoError:
    """What is wrong with a file that cannot be opened."""
    head = b""
    with contextlib.suppress(OSError), path.open("rb") as file:
        head = file.read(512)
    if head[4:8] in (b"ftyp", b"mdat", b"wide", b"free", b"skip"):
        return TimelessVideo(
            f"{path}: not a readable video (its index, moov, is missing: the download or the recording was cut off); "
            "download it again, or mend it with untrunc and a whole file of the same device"
        )
    reason = error.strerror or error
    if head.lstrip()[:1] in (b"<", b"{"):
        reason = "it holds text, perhaps the message of a server"
    if not head and path.stat().st_size == 0:
        reason = "it is empty"
    return VideoError(f"{path}: not a readable video ({reason}); download or encode it again")


def _film(path: Path, container: InputContainer) -> av.VideoStream:
    films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not films:
        what = "only a cover picture" if container.streams.video else "no video stream"
        raise VideoError(f"{path}: holds {what}; download or encode it again")
    best = container.streams.best("video")
    return next((film for film in films if film == best), films[0])


def packets(container: InputContainer, stream: av.VideoStream) -> Iterator[tuple[int, av.Packet | FFmpegError]]:
    """Packets of a film in the order of the file with their numbers; an error in place of each that cannot be read.

    An error has the number of the packet that comes next.
    """
    failures = number = 0
    while failures < _UNREADABLE:
        try:
            for packet in container.demux(stream):
                failures = 0
                if packet.size:  # an empty one would end decoding
                    yield number, packet
                    number += 1
            return
        except FFmpegError as error:
            failures += 1
            yield number, error


def open_file(path: Path) -> BinaryIO:
    """A file to read, unbuffered.

    Raises:
        VideoError: missing or unreadable.
    """
    if not path.is_file():
        raise _missing(path)
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise _unreadable(path, error) from error
