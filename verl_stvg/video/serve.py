"""The decoding process that `verl_stvg.video.child` starts: takes requests from one pipe, answers into another.

It imports neither torch nor verl, and ends with the pipe it reads from, or when it sees that its parent is gone. Before
each request it sets an alarm that the kernel enforces, whatever the decoder holds. (A death signal of the parent would
not do: it comes when the *thread* that started the child ends.) Its address space is bounded while it works.
"""

import importlib
import json
import logging
import math
import mmap
import os
import re
import resource
import select
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from av.error import FFmpegError

from verl_stvg.video.container import open_file
from verl_stvg.video.content import Hashed
from verl_stvg.video.decode import Blocks, DecoderError, VideoError, load_decoder, probe, read_frames
from verl_stvg.video.limit import Limit
from verl_stvg.video.plan import SamplingPlan

_GRACE = 1.0  # seconds by which the child's own alarm comes after its parent's
_LOOK = 2000  # milliseconds between looks for the parent
_NO_MEMORY = re.compile("(annot|an't) allocate memory|Insufficient memory|bad_alloc")  # the system, torch, OpenCV, C++


def serve(decoder: str, threads: int, memory: int | None, shared: int, parent: int) -> None:
    """Answer requests until the pipe ends or the parent is gone; what a child process runs.

    Args:
        decoder: see `verl_stvg.video.child.Decoder`.
        threads: likewise.
        memory: bytes of address space that a request may take; None for no bound.
        shared: descriptor of the memory that both processes see, into which frames of blocks come.
        parent: process ID.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    try:
        load_decoder(decoder)
        _send(answers, {})
    except DecoderError as error:
        _send(answers, {"error": "DecoderError", "message": str(error)})
    notes, worker = _Notes(), _Worker(decoder, threads, memory, shared, answers)
    logging.getLogger("verl_stvg").addHandler(notes)
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while os.getppid() == parent:
        if not poll.poll(_LOOK):
            continue
        line = sys.stdin.buffer.readline()
        if not line:
            return
        answer = worker.handle(json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(answers, {**answer, "notes": notes.messages})
        notes.messages = []


class _Notes(logging.Handler):
    """What the child logs while it works on a request, for its parent to log."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _send(pipe: int, answer: dict) -> None:
    os.write(pipe, json.dumps(answer).encode() + b"\n")


class _Worker:
    """Does the requests.

    Args:
        decoder: see `Decoder`.
        threads: see `Decoder`.
        memory: bytes, see `Decoder`; None for no bound.
        shared: file of the memory that both processes see.
        answers: pipe to the parent.
    """

    def __init__(self, decoder: str, threads: int, memory: int | None, shared: int, answers: int):
        self.decoder, self.threads, self.memory, self.shared, self.answers = decoder, threads, memory, shared, answers
        self.pixels = np.empty(0, np.uint8)
        self.blocks: Blocks | None = None
        self.space = 0  # address space before `blocks` was made, bytes

    def handle(self, request: dict) -> dict:
        """Do one of three things within a ``limit``.

        Without more than a ``path`` the video is probed; with ``content`` its bytes are hashed, too. A ``plan`` is
        decoded, of which ``needs`` at least, into the file ``out`` from ``offset`` on. A block of some ``shape``, the
        frames from ``start`` on, comes into the memory that both processes see.
        """
        path, limit = request["path"], Limit(**request["limit"])
        _set_alarm(limit)
        work = 0

        def begins(pictures: int, area: int) -> None:
            nonlocal work
            work += pictures
            longer = limit.for_work(work, area)
            _set_alarm(longer)
            _send(self.answers, {"limit": asdict(longer)})

        bounds = _Memory(self.memory)
        try:
            self._begin(request)
            if "start" in request and self.blocks is not None:
                out = self.pixels[: math.prod(request["shape"])].reshape(request["shape"])
                bounds = _Memory(self.memory, self.space)
                with bounds:
                    self.blocks.read(request["start"], out, begins)
                return {}
            if "content" in request:
                with bounds, open_file(Path(path)) as raw:
                    file = Hashed(raw)
                    return {"info": asdict(probe(path, begins, file)), "content": file.digest()}
            if "plan" not in request:
                with bounds:
                    return {"info": asdict(probe(path, begins))}
            plan = SamplingPlan(**request["plan"])
            shape = (plan.num_frames, plan.height, plan.width, 3)
            try:
                out = np.memmap(request["out"], np.uint8, "r+", request["offset"], shape)
            except OSError as error:
                return {"error": "OSError", "message": f"{request['out']}: cannot be written ({error})"}
            with bounds:
                read_frames(path, plan, request["needs"], self.decoder, self.threads, out, begins)
        except Exception as error:  # whatever a decoder raises, the next request finds a child
            if bounds.ran_out(error):
                bound = "there is" if self.memory is None else f"{self.memory / 2**30:.2g} GiB"
                reason = f"needs more memory to decode than {bound}; encode the video again, smaller"
                return {"error": "VideoError", "message": f"{path}: {reason}", "spent": True}
            if isinstance(error, (VideoError, DecoderError)):
                return {"error": type(error).__name__, "message": str(error)}
            reason = f"{type(error).__name__}: {error}"
            return {"error": "VideoError", "message": f"{path}: the decoder fails ({reason}); encode the video again"}
        return {}

    def _begin(self, request: dict) -> None:
        """Go on with the open pass if the request does; else end it."""
        if "plan" in request or "start" in request:
            try:  # here, because it may not fit into a small bound; a probe does without
                importlib.import_module("cv2")
            except ImportError as error:
                raise DecoderError(f"OpenCV cannot be imported ({error}); install it again") from error
        if "start" in request and len(self.pixels) < os.fstat(self.shared).st_size:
            self.pixels = np.frombuffer(mmap.mmap(self.shared, 0), np.uint8)
        open_at = None if self.blocks is None else (str(self.blocks.path), self.blocks.next)
        if open_at == (request["path"], request.get("start")):
            return
        self.blocks = None
        if "start" in request:
            self.blocks, self.space = Blocks(request["path"], self.threads), _address_space()[0]


def _set_alarm(limit: Limit) -> None:
    signal.setitimer(signal.ITIMER_REAL, limit.seconds + _GRACE)


class _Memory:
    """Bounds the address space of this process while it decodes; a lower bound that it was given stays.

    Args:
        more: bytes by which it may grow; None for no bound.
        size: bytes that it may grow from; None: what there is now.
    """

    def __init__(self, more: int | None, size: int | None = None):
        self.more, self.size, self.bound, self.before = more, size, None, 0

    def __enter__(self) -> None:
        self.given = resource.getrlimit(resource.RLIMIT_AS)
        if self.more is not None:
            size, self.before = _address_space()
            bounds = [(size if self.size is None else self.size) + self.more, self.given[0]]
            self.bound = min(bound for bound in bounds if bound != resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_AS, (self.bound, self.given[1]))

    def __exit__(self, *_) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self.given)

    def ran_out(self, error: Exception) -> bool:
        """Whether that error came because there was no more memory.

        What FFmpeg says about a file does not tell: it takes a picture that it has no room for as damage, and a damaged
        header that asks for the impossible as a lack of memory. So an error also counts if the address space never was
        as large before, and most of what it might grow by was taken.
        """
        judged = isinstance(error, (VideoError, DecoderError))
        cause = error.__cause__ if judged else error
        if not (judged and isinstance(cause, FFmpegError)):
            if isinstance(cause, MemoryError) or _NO_MEMORY.search(str(cause)):
                return True
        if self.bound is None or self.more is None:
            return False
        return _address_space()[1] > max(self.before, self.bound - self.more // 4)


def _address_space() -> tuple[int, int]:
    """Bytes of this process: now, and at most so far."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, most = (1024 * int(status.get(name, status["VmSize"]).split()[0]) for name in ("VmSize", "VmPeak"))
    return now, most
