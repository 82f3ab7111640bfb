"""Decoding in a process of its own, so that a video which hangs or crashes the decoder costs one clip and some seconds.

A decoder is a hundred thousand lines of C that read what anybody put on the internet. A thread cannot be stopped while
it is in there, and a segmentation fault takes its process along, a training run with it. So a child does the work: it
is started once and kept, takes requests over a pipe, and writes pixels straight into a file of the caller's. A child
that does not answer in time is killed; the next request starts another.

The time grows with the work, see `Limit`. The child finds in the packets of the video how much that is. It tells its
parent the limit before it begins to decode, and both keep to it.

The child neither outlives its parent nor its time. It ends with the pipe it reads from, or when it sees that its parent
is gone; and before each request it sets an alarm that the kernel enforces, whatever the decoder holds. (A death signal
of the parent would not do: it comes when the *thread* that started the child ends.) It is a plain subprocess that
imports neither torch nor verl, and not the main module of its parent, which in a Ray worker would start Ray again.

Nor does it take all the memory: its address space is bounded while it works on a request (`MEMORY`).
"""

import json
import logging
import os
import queue
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np

from verl_stvg import python
from verl_stvg.video.decode import (
    DecoderError,
    VideoError,
    VideoInfo,
    load_decoder,
    needed_frames,
    probe,
    read_frames,
)
from verl_stvg.video.film import MAX_AREA, TimelessVideo
from verl_stvg.video.plan import SamplingPlan

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
"""Time for a child to import its decoder, on a machine that is busy."""
MEMORY = 4 * 2**30 + 80 * 2**20 * (os.cpu_count() or 1)
"""Bytes of address space that decoding one video may take: 4 GiB, and a stack and a heap for a thread per processor.

16 reference pictures of 4K take 0.2 GiB, of `MAX_AREA` 1.5 GiB. Threads reserve more than they use.
"""
_DISK_RATE = 20e6  # bytes per second that the slowest disk or network reads
_SLOW_RATE = 64e6  # pixels per second that any machine decodes
_LEAST_AREA = 2**16  # pixels; smaller pictures take as long, for the calls around them
_LONGEST = 12 * 3600.0  # seconds that decoding may take, whatever the packets claim
_RAISE = "raise the limit (data.video_cache.timeout in training, --timeout of `verl-stvg cache build`)"
_READ = "read it from a faster disk"
_GRACE = 1.0  # seconds by which the child's own alarm comes after its parent's
_LOOK = 2000  # milliseconds between looks for the parent
_NO_MEMORY = re.compile("(annot|an't) allocate memory|Insufficient memory|bad_alloc")  # the system, torch, OpenCV, C++
_START = "import json; from verl_stvg.video.child import _serve; _serve(**json.loads(sys.argv[1]))"
_ERRORS = {error.__name__: error for error in (TimelessVideo, VideoError, DecoderError, OSError)}


@dataclass(frozen=True)
class Limit:
    """How long a request may take, and why; `str` gives both.

    >>> str(Limit(60.0, 100_000_000, 27_000, 1280 * 720, 160e6))
    '687 s (60 s, 5 s to read 100 MB, 622 s to decode 27,000 pictures of 0.92 megapixels)'

    Attributes:
        timeout: seconds that any request may take.
        size: bytes of the video; a slow disk is no hang.
        pictures: how many have to be decoded; 0 where ``timeout`` is enough for them on any machine.
        area: of a picture, pixels.
        rate: pixels per second that this machine decodes; a quarter of it is enough.
    """

    timeout: float
    size: int = 0
    pictures: int = 0
    area: int = 0
    rate: float = _SLOW_RATE

    @property
    def reading(self) -> float:
        """Seconds to read the video."""
        return self.size / _DISK_RATE

    @property
    def decoding(self) -> float:
        """Seconds to decode the pictures."""
        pixels = self.pictures * min(max(self.area, _LEAST_AREA), MAX_AREA)
        return min(4 * pixels / self.rate, _LONGEST)

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.timeout + self.reading + self.decoding

    def for_work(self, pictures: int, area: int) -> "Limit":
        """The limit for so many pictures of that area. Measures this machine, unless there is little to do."""
        work = replace(self, pictures=pictures, area=area)
        return self if work.decoding <= self.timeout else replace(work, rate=decoding_rate())

    def __str__(self) -> str:
        parts = [_seconds(self.timeout)]
        if self.reading >= 1:
            parts.append(f"{_seconds(self.reading)} to read {self.size / 1e6:,.0f} MB")
        if self.pictures:
            area = f"{self.area / 1e6:.2g} megapixels"
            parts.append(f"{_seconds(self.decoding)} to decode {self.pictures:,} pictures of {area}")
        return _seconds(self.seconds) + (f" ({', '.join(parts)})" if len(parts) > 1 else "")


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


@cache
def decoding_rate() -> float:
    """Pixels per second of H.264 that one thread of this machine decodes; measured once per process, in 0.2 s.

    The clip is one that is hard to decode. x264's ``superfast`` spends 0.4 bits per pixel on it, as a camera does, with
    arithmetic coding and deblocking, which ``ultrafast`` leaves out (1.4 times as fast to decode). Slower presets
    predict a picture that only moves so well that little is left to decode (2.2 times as fast).
    """
    if "libx264" not in av.codecs_available:
        return _SLOW_RATE
    width, height, count = 640, 360, 24
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "yuv420p", Fraction(1, 30)
    encoder.options, encoder.thread_count = {"preset": "superfast"}, 1
    shape = (height // 4 + count, width // 4 + count, 3)
    texture = np.random.default_rng(0).integers(0, 255, shape, np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    packets = []
    for k in range(count):
        picture = np.ascontiguousarray(texture[k : k + height, 2 * k : 2 * k + width])
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts = k
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    begin = time.perf_counter()
    decoded = sum(len(decoder.decode(packet)) for packet in [*packets, None])
    return decoded * width * height / (time.perf_counter() - begin)


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
        self,
        decoder: str = "pyav",
        timeout: float = 60.0,
        workers: int = 1,
        threads: int = 0,
        memory: int = MEMORY,
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

    def read(self, path: str | Path, plan: SamplingPlan, needs: tuple[float, float] | None = None) -> np.ndarray:
        """`verl_stvg.video.decode.read_frames` in a child: uint8 array (T, H, W, 3).

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

    def _call(self, request: dict) -> dict:
        if self._owner != os.getpid():  # forked: the children answer to another
            self._forget()
        idle = self._idle
        child, unharmed = idle.get(), False
        try:
            if child is None or child.process.poll() is not None:
                child = _Child(self)
            path = request["path"]
            answer = child.ask(request, Limit(self.timeout, os.path.getsize(path) if os.path.isfile(path) else 0))
            unharmed = "spent" not in answer
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
def shared_decoder() -> Decoder:
    """The decoder of this process for whoever looks at one video after another: builds, checks and pages."""
    return Decoder(threads=1)


class _Child:
    """A running child, as its parent sees it."""

    def __init__(self, settings: Decoder):
        memory = None if ":" in settings.decoder else settings.memory
        arguments = {"decoder": settings.decoder, "threads": settings.threads, "memory": memory}
        self.process = subprocess.Popen(
            python.code(_START, json.dumps({**arguments, "parent": os.getpid()})),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=python.environment(path=True),
        )
        self.ready, self.heard = False, b""

    def ask(self, request: dict, limit: Limit) -> dict:
        """Answer to a request; one that names an error if the child dies of it or takes too long.

        Args:
            request: see `_handle`.
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
        self.process.stdin.write(json.dumps({**request, "limit": asdict(limit)}).encode() + b"\n")
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
        pipe = self.process.stdout.fileno()
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
        self.process.stdin.close()
        self.process.stdout.close()


# --- in the child -----------------------------------------------------------------------------------------------------


def _serve(decoder: str, threads: int, memory: int | None, parent: int) -> None:
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
    notes = _Notes()
    logging.getLogger("verl_stvg").addHandler(notes)
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while os.getppid() == parent:
        if not poll.poll(_LOOK):
            continue
        line = sys.stdin.buffer.readline()
        if not line:
            return
        answer = _handle(json.loads(line), decoder, threads, memory, answers)
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


def _handle(request: dict, decoder: str, threads: int, memory: int | None, answers: int) -> dict:
    """Probe ``path``, or decode ``plan`` into ``out`` from ``offset`` on, ``needs`` at least, within a ``limit``."""
    path, limit = request["path"], Limit(**request["limit"])
    bounds = _Memory(memory)
    _set_alarm(limit)
    work = 0

    def begins(pictures: int, area: int) -> None:
        nonlocal work
        work += pictures
        longer = limit.for_work(work, area)
        _set_alarm(longer)
        _send(answers, {"limit": asdict(longer)})

    try:
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
            read_frames(path, plan, request["needs"], decoder, threads, out, begins)
    except Exception as error:  # whatever a decoder raises, the next request finds a child
        if bounds.ran_out(error):
            bound = "there is" if memory is None else f"{memory / 2**30:.2g} GiB"
            reason = f"needs more memory to decode than {bound}; encode the video again, smaller"
            return {"error": "VideoError", "message": f"{path}: {reason}", "spent": True}
        if isinstance(error, (VideoError, DecoderError)):
            return {"error": type(error).__name__, "message": str(error)}
        reason = f"{type(error).__name__}: {error}"
        return {"error": "VideoError", "message": f"{path}: the decoder fails ({reason}); encode the video again"}
    return {}


def _set_alarm(limit: Limit) -> None:
    signal.setitimer(signal.ITIMER_REAL, limit.seconds + _GRACE)


class _Memory:
    """Bounds the address space of this process while it decodes; a lower bound that it was given stays.

    Args:
        more: bytes by which it may grow; None for no bound.
    """

    def __init__(self, more: int | None):
        self.more, self.bound, self.before = more, None, 0

    def __enter__(self) -> None:
        self.given = resource.getrlimit(resource.RLIMIT_AS)
        if self.more is not None:
            size, self.before = _address_space()
            bounds = [size + self.more, self.given[0]]
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
        if not (judged and isinstance(cause, av.FFmpegError)):
            if isinstance(cause, MemoryError) or _NO_MEMORY.search(str(cause)):
                return True
        return self.bound is not None and _address_space()[1] > max(self.before, self.bound - self.more // 4)


def _address_space() -> tuple[int, int]:
    """Bytes of this process: now, and at most so far."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(1024 * int(status.get(name, status["VmSize"]).split()[0]) for name in ("VmSize", "VmPeak"))
