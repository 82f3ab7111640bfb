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
import math
import mmap
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

from verl_stvg.base import python
from verl_stvg.video.content import Hashed
from verl_stvg.video.decode import (
    Blocks,
    DecoderError,
    VideoError,
    VideoInfo,
    load_decoder,
    needed_frames,
    probe,
    read_frames,
)
from verl_stvg.video.film import MAX_AREA, TimelessVideo
from verl_stvg.video.packets import open_file
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
            if shared is not None and "error" not in answer:
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
        self.memory.close()


def _mapped(file: int) -> np.ndarray:
    """All bytes of a file that is memory."""
    return np.frombuffer(mmap.mmap(file, 0), np.uint8)


# --- in the child -----------------------------------------------------------------------------------------------------


def _serve(decoder: str, threads: int, memory: int | None, shared: int, parent: int) -> None:
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
            if "start" in request:
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
        if "start" in request and len(self.pixels) < os.fstat(self.shared).st_size:
            self.pixels = _mapped(self.shared)
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
        if not (judged and isinstance(cause, av.FFmpegError)):
            if isinstance(cause, MemoryError) or _NO_MEMORY.search(str(cause)):
                return True
        return self.bound is not None and _address_space()[1] > max(self.before, self.bound - self.more // 4)


def _address_space() -> tuple[int, int]:
    """Bytes of this process: now, and at most so far."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(1024 * int(status.get(name, status["VmSize"]).split()[0]) for name in ("VmSize", "VmPeak"))
