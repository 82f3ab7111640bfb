"""Decoding in a process of its own, so that a video which hangs or crashes the decoder costs one clip and some seconds.

A decoder is a hundred thousand lines of C that read what anybody put on the internet. A thread cannot be stopped while
it is in there, and a segmentation fault takes its process along, a training run with it. So a child does the work: it
is started once and kept, takes requests over a pipe, and writes pixels straight into a file of the caller's. A child
that does not answer in time is killed; the next request starts another.

The child neither outlives its parent nor its time. It ends with the pipe it reads from, or when it sees that its parent
is gone; and before each request it sets an alarm that the kernel enforces, whatever the decoder holds. (A death signal
of the parent would not do: it comes when the *thread* that started the child ends.) It is a plain subprocess that
imports neither torch nor verl, and not the main module of its parent, which in a Ray worker would start Ray again.
"""

import json
import logging
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from verl_stvg.video.decode import DecoderError, VideoError, VideoInfo, load_decoder, needed_frames, probe, read_frames
from verl_stvg.video.plan import SamplingPlan

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
"""Time for a child to import its decoder, on a machine that is busy."""
_GRACE = 1.0  # seconds by which the child's own alarm comes after its parent's
_LOOK = 2000  # milliseconds between looks for the parent
_ERRORS = {error.__name__: error for error in (VideoError, DecoderError, OSError)}


class Decoder:
    """Decodes in child processes with a time limit. Threads may share it; a forked process starts children of its own.

    Args:
        decoder: see `verl_stvg.video.decode.read_frames`.
        timeout: seconds for each request, enforced with SIGKILL.
        workers: requests that may run at once, each in its child; further ones wait.
        threads: of each decoder; 0 for as many as it likes.
    """

    def __init__(self, decoder: str = "pyav", timeout: float = 60.0, workers: int = 1, threads: int = 0):
        self.decoder, self.timeout, self.workers, self.threads = decoder, timeout, workers, threads
        self._forget()

    def probe(self, path: str | Path) -> VideoInfo:
        """`verl_stvg.video.decode.probe` in a child.

        Raises:
            VideoError: the video cannot be used, crashes the decoder or takes too long.
            DecoderError: the decoder cannot be used at all.
        """
        info = self._call({"path": os.path.abspath(path)})["info"]
        return VideoInfo(**info | {key: info[key] and tuple(info[key]) for key in ("times", "notes")})

    def read(self, path: str | Path, plan: SamplingPlan, needs: tuple[float, float] | None = None) -> np.ndarray:
        """`verl_stvg.video.decode.read_frames` in a child: uint8 array (T, H, W, 3).

        Raises:
            VideoError: the video cannot be used, crashes the decoder or takes too long.
            DecoderError: the decoder cannot be used at all.
            OSError: no space for the pixels in the temporary folder.
            ValueError: no frame of the plan is on show in the span that is needed.
        """
        with tempfile.NamedTemporaryFile(prefix="verl-stvg-") as file:
            self.read_into(path, plan, file.name, needs=needs)
            return np.fromfile(file.name, np.uint8).reshape(plan.num_frames, plan.height, plan.width, 3)

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
            VideoError: the video cannot be used, crashes the decoder or takes too long.
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
        return Decoder, (self.decoder, self.timeout, self.workers, self.threads)

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
            answer = child.ask(request, self.timeout)
            unharmed = True
        finally:
            if child is not None and not unharmed:
                child.kill()
            idle.put(child if unharmed else None)
        for note in answer["notes"]:
            logger.warning("%s", note)
        if "error" in answer:
            raise _ERRORS[answer["error"]](answer["message"])
        return answer


class _Child:
    """A running child, as its parent sees it."""

    def __init__(self, settings: Decoder):
        arguments = {"decoder": settings.decoder, "timeout": settings.timeout, "threads": settings.threads}
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps({**arguments, "parent": os.getpid()})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        self.ready = False

    def ask(self, request: dict, timeout: float) -> dict:
        """Answer to a request; one that names an error if the child dies of it or takes too long."""
        if not self.ready:
            greeting = self._answer(START_SECONDS)
            if isinstance(greeting, str):
                raise DecoderError(f"the decoding process does not start ({greeting}); see its messages above")
            if "error" in greeting:
                raise DecoderError(greeting["message"])
            self.ready = True
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        answer = self._answer(timeout)
        if isinstance(answer, str):
            raise VideoError(f"{request['path']}: the decoder gives {answer}; encode the video again")
        return answer

    def _answer(self, timeout: float) -> dict | str:
        """What the child says, or why it says nothing; it is dead then."""
        deadline = time.monotonic() + timeout
        pipe, data = self.process.stdout.fileno(), b""
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while not data.endswith(b"\n"):
            if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
                self.kill()
                return f"no answer within {timeout:g} s"
            part = os.read(pipe, 1 << 16)
            if not part:
                self.kill()
                code = self.process.returncode
                how = f"killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit status {code}"
                return f"no answer, its process ended: {how}"
            data += part
        return json.loads(data)

    def kill(self) -> None:
        """End the process if it has not ended, and free what it held."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


# --- in the child -----------------------------------------------------------------------------------------------------


def _serve(decoder: str, timeout: float, threads: int, parent: int) -> None:
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
        signal.setitimer(signal.ITIMER_REAL, timeout + _GRACE)
        answer = _handle(json.loads(line), decoder, threads)
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


def _handle(request: dict, decoder: str, threads: int) -> dict:
    path = request["path"]
    try:
        if "plan" not in request:
            return {"info": asdict(probe(path))}
        plan = SamplingPlan(**request["plan"])
        try:
            shape = (plan.num_frames, plan.height, plan.width, 3)
            out = np.memmap(request["out"], np.uint8, "r+", request["offset"], shape)
        except OSError as error:
            return {"error": "OSError", "message": f"{request['out']}: cannot be written ({error})"}
        read_frames(path, plan, request["needs"], decoder, threads, out)
    except (VideoError, DecoderError) as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # whatever a decoder raises, the next request finds a child
        reason = f"{type(error).__name__}: {error}"
        return {"error": "VideoError", "message": f"{path}: the decoder fails ({reason}); encode the video again"}
    return {}


if __name__ == "__main__":
    _serve(**json.loads(sys.argv[1]))
