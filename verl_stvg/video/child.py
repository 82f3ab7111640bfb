"""Decoding in a process of its own, so that a video which hangs or crashes the decoder costs one clip and some seconds.

A decoder is a hundred thousand lines of C that read what anybody put on the internet. A thread cannot be stopped while
it is in there, and a segmentation fault takes its process along, a training run with it. So a child does the work: it
is started once and kept, takes requests over a pipe, and writes pixels straight into a file of the caller's. A child
that does not answer in time is killed; the next request starts another.

The time grows with the work, see `Limit`. The child finds in the packets of the video how much that is. It tells its
parent the limit before it begins to decode, and both keep to it.

The child neither outlives its parent nor its time, nor does it take all the memory, see `verl_stvg.video.serve`. It is
a plain subprocess that does not import the main module of its parent, which in a Ray worker would start Ray again.
"""

import json
import logging
import math
import mmap
import os
import queue
import select
import signal
import subprocess
import tempfile
import time
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np

from verl_stvg.base import python
from verl_stvg.video.decode import DecoderError, VideoError, VideoInfo, needed_frames
from verl_stvg.video.film import TimelessVideo
from verl_stvg.video.limit import Limit
from verl_stvg.video.plan import SamplingPlan

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
"""Time for a child to import its decoder, on a machine that is busy."""
MEMORY = 4 * 2**30 + 80 * 2**20 * (os.cpu_count() or 1)
"""Bytes of address space that decoding one video may take: 4 GiB, and a stack and a heap for a thread per processor.

16 reference pictures of 4K take 0.2 GiB, of `MAX_AREA` 1.5 GiB. Threads reserve more than they use.
"""
SHARED = 2**24
"""Bytes of the memory that frames of a block come through; more only where one frame is larger."""
_RAISE = "raise the limit (data.video_cache.timeout in training, --timeout of `verl-stvg cache build`)"
_READ = "read it from a faster disk"
_START = "import json; from verl_stvg.video.serve import serve; serve(**json.loads(sys.argv[1]))"
_ERRORS = {error.__name__: error for error in (TimelessVideo, VideoError, DecoderError, OSError)}


class Decoder:
    """Decodes in child processes with a time limit. Threads may share it; a forked process starts children of its own.

    Args:
        decoder: see `verl_stvg.video.decode.read_frames`.
        timeout: seconds for each request, and more for large files and long videos, see `Limit`; enforced with SIGKILL.
        workers: requests that may run at once, each in its child; further ones wait.
        threads: of each decoder; 0 for as many as it likes.
        memory: bytes of address space that a request may take besides the frames it gives. Decoders that are a
            ``package.module:function`` are not bound: on a GPU they reserve more than there is.
    """

    def __init__(
        self, decoder: str = "pyav", timeout: float = 60.0, workers: int = 1, threads: int = 0, memory: int = MEMORY
    ):
        self.decoder, self.timeout, self.workers, self.threads, self.memory = decoder, timeout, workers, threads, memory
        self._forget()

    def probe(self, path: str | Path) -> VideoInfo:
        """`verl_stvg.video.decode.probe` in a child.

        Raises:
            VideoError: the video cannot be used, crashes the decoder, takes too long or too much memory.
            DecoderError: the decoder cannot be used at all.
        """
        return VideoInfo.of(self._call({"path": os.path.abspath(path)})["info"])

    def examine(self, path: str | Path) -> tuple[VideoInfo, str]:
        """`probe`, and the hash of the file's bytes (`verl_stvg.video.content`); the file is opened once for both.

        Raises:
            VideoError: the video cannot be used, crashes the decoder, takes too long or too much memory.
            DecoderError: the decoder cannot be used at all.
        """
        answer = self._call({"path": os.path.abspath(path), "content": True})
        return VideoInfo.of(answer["info"]), answer["content"]

    def read(self, path: str | Path, plan: SamplingPlan, needs: tuple[float, float] | None = None) -> np.ndarray:
        """`verl_stvg.video.decode.read_frames` in a child: uint8 array (T, H, W, 3).

        Args:
            path: of the video.
            plan: which frames, and their size.
            needs: start and end in seconds of what must be there; None: all of the plan.

        Raises:
            VideoError: the video cannot be used, crashes the decoder, takes too long or too much memory.
            DecoderError: the decoder cannot be used at all.
            OSError: no space for the pixels in the temporary folder.
            ValueError: no frame of the plan is on show in the span that is needed.
        """
        with tempfile.NamedTemporaryFile(prefix="verl-stvg-") as file:
            self.read_into(path, plan, file.name, needs=needs)
            return np.fromfile(file.name, np.uint8).reshape(plan.num_frames, plan.height, plan.width, 3)

    def try_out(self, path: str | Path, plan: SamplingPlan) -> None:
        """See that the frames of a plan decode, without taking their pixels into this process.

        Raises:
            VideoError: the video cannot be used, crashes the decoder, takes too long or too much memory.
            DecoderError: the decoder cannot be used at all.
            OSError: no space for the pixels in the temporary folder.
        """
        with tempfile.NamedTemporaryFile(prefix="verl-stvg-") as file:
            self.read_into(path, plan, file.name)

    def block(self, path: str | Path, start: int, stop: int, size: tuple[int, int]) -> np.ndarray:
        """Frames ``start`` to ``stop - 1`` of a video as shown, decoded by PyAV: uint8 RGB (T, H, W, 3).

        A child that is asked for the blocks of one video in turn goes through the file once, see
        `verl_stvg.video.decode.Blocks`. The frames come through memory that both processes see, some at a time.

        Args:
            path: of the video.
            start: frame of the video.
            stop: frame of the video.
            size: (height, width) of the video, see `probe`.

        Raises:
            VideoError: the video cannot be used, crashes the decoder, takes too long or too much memory.
        """
        path, frames = os.path.abspath(path), np.empty((stop - start, *size, 3), np.uint8)
        step = max(1, SHARED // max(1, math.prod(frames.shape[1:])))
        for first in range(0, len(frames), step):
            part = frames[first : first + step]
            self._call({"path": path, "start": start + first, "shape": part.shape}, part)
        return frames

    def read_into(
        self,
        path: str | Path,
        plan: SamplingPlan,
        out_path: str | Path,
        offset: int = 0,
        needs: tuple[float, float] | None = None,
    ) -> None:
        """Write the frames of a plan into a file, uint8 (T, H, W, 3) from ``offset`` on.

        After an error there may be anything in that part of the file.

        Args:
            path: of the video.
            plan: which frames, and their size.
            out_path: of the file; made, or made longer, if need be.
            offset: in bytes.
            needs: see `verl_stvg.video.decode.read_frames`.

        Raises:
            VideoError: the video cannot be used, crashes the decoder, takes too long or too much memory.
            DecoderError: the decoder cannot be used at all.
            OSError: the file cannot be written.
            ValueError: no frame of the plan is on show in the span that is needed.
        """
        needed_frames(plan, needs)
        out_path = os.path.abspath(out_path)
        file = os.open(out_path, os.O_RDWR | os.O_CREAT, 0o666)
        try:  # all of it now: a child that meets a full disk in a memory map dies of SIGBUS
            os.posix_fallocate(file, offset, plan.num_frames * plan.height * plan.width * 3)
        finally:
            os.close(file)
        request = {
            "path": os.path.abspath(path),
            "plan": vars(plan),
            "needs": needs and [float(time) for time in needs],
        }
        self._call({**request, "out": out_path, "offset": offset})

    def close(self) -> None:
        """End the children, when they have answered. A later request starts new ones."""
        idle = self._idle
        for child in [idle.get() for _ in range(self.workers)]:
            if child is not None:
                child.kill()
            idle.put(None)

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __reduce__(self):
        return Decoder, (self.decoder, self.timeout, self.workers, self.threads, self.memory)

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._idle: queue.LifoQueue[_Child | None] = queue.LifoQueue()  # None: a child yet to be started
        for _ in range(self.workers):
            self._idle.put(None)

    def _call(self, request: dict, out: np.ndarray | None = None) -> dict:
        """The answer to a request; the frames that were asked for come into `out`."""
        if self._owner != os.getpid():  # forked: the children answer to another
            self._forget()
        idle = self._idle
        child, unharmed = idle.get(), False
        try:
            if child is None or child.process.poll() is not None:
                child = _Child(self)
            path = request["path"]
            limit = Limit(self.timeout, os.path.getsize(path) if os.path.isfile(path) else 0)
            shared = None if out is None else child.shared(out.nbytes)
            answer = child.ask(request, limit)
            unharmed = "spent" not in answer
            if out is not None and shared is not None and "error" not in answer:
                out[:] = shared.reshape(out.shape)
        finally:
            if child is not None and not unharmed:
                child.kill()
            idle.put(child if unharmed else None)
        for note in answer["notes"]:
            logger.warning("%s", note)
        if "error" in answer:
            raise _ERRORS[answer["error"]](answer["message"])
        return answer


@cache
def shared_decoder(threads: int = 1) -> Decoder:
    """The decoder of this process for whoever looks at one video after another: builds, checks, tracks and pages."""
    return Decoder(threads=threads)


class _Child:
    """A running child, as its parent sees it."""

    def __init__(self, settings: Decoder):
        memory = None if ":" in settings.decoder else settings.memory
        self.memory = os.fdopen(os.memfd_create("verl-stvg-frames"), "r+b", buffering=0)
        self.pixels, shared = np.empty(0, np.uint8), self.memory.fileno()
        arguments = {"decoder": settings.decoder, "threads": settings.threads, "memory": memory, "shared": shared}
        self.process = subprocess.Popen(
            python.code(_START, json.dumps({**arguments, "parent": os.getpid()})),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=[shared],
            env=python.environment(path=True),
        )
        assert self.process.stdin and self.process.stdout  # they are pipes
        self.requests, self.answers = self.process.stdin, self.process.stdout
        self.ready, self.heard = False, b""

    def shared(self, count: int) -> np.ndarray:
        """So many bytes of the memory that the child writes frames into."""
        if len(self.pixels) < count:
            self.memory.truncate(max(count, SHARED))
            self.pixels = _mapped(self.memory.fileno())
        return self.pixels[:count]

    def ask(self, request: dict, limit: Limit) -> dict:
        """Answer to a request; one that names an error if the child dies of it or takes too long.

        Args:
            request: see `_Worker.handle`.
            limit: until the child has seen how much there is to decode, and gives another.
        """
        if not self.ready:
            greeting = self._answer(START_SECONDS)
            if isinstance(greeting, str):
                raise DecoderError(f"the decoding process does not start ({greeting}); see its messages above")
            if greeting is None:
                raise DecoderError(f"the decoding process does not start within {START_SECONDS:g} s; is the disk slow?")
            if "error" in greeting:
                raise DecoderError(greeting["message"])
            self.ready = True
        self.requests.write(json.dumps({**request, "limit": asdict(limit)}).encode() + b"\n")
        answer = self._answer(limit.seconds)
        while isinstance(answer, dict) and "limit" in answer:  # a damaged file is gone through more than once
            limit = Limit(**answer["limit"])
            answer = self._answer(limit.seconds)
        if isinstance(answer, str):
            raise VideoError(f"{request['path']}: the decoder gives no answer, {answer}; encode the video again")
        if answer is None:
            remedy = _RAISE if "plan" in request else _READ
            raise VideoError(
                f"{request['path']}: the decoder gives no answer within {limit}; if the file plays, {remedy}, else "
                "encode the video again"
            )
        return answer

    def _answer(self, seconds: float) -> dict | str | None:
        """The next line that the child says; why there is none, or None if the time is over: it is dead then."""
        deadline = time.monotonic() + seconds
        pipe = self.answers.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while b"\n" not in self.heard:
            if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
                self.kill()
                return None
            part = os.read(pipe, 1 << 16)
            if not part:
                self.kill()
                code = self.process.returncode
                if code == -signal.SIGALRM:  # its own alarm was first: this process was stopped, or slept
                    return None
                how = f"killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit status {code}"
                return f"its process ended: {how}"
            self.heard += part
        line, _, self.heard = self.heard.partition(b"\n")
        return json.loads(line)

    def kill(self) -> None:
        """End the process if it has not ended, and free what it held."""
        self.process.kill()
        self.process.wait()
        self.requests.close()
        self.answers.close()
        self.memory.close()


def _mapped(file: int) -> np.ndarray:
    """All bytes of a file that is memory."""
    return np.frombuffer(mmap.mmap(file, 0), np.uint8)
