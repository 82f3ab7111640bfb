"""Ends a test that goes on for ever, by the processor time it has used: a busy machine makes a test late, not wrong.

Counted are the processor seconds of the test's own process and of all that descend from it, those that have ended
included. A test ends when

- it has used ``processor_limit`` of them, or what ``@pytest.mark.processor_limit(seconds)`` says. The figure is for two
  cores; more cores can use more at a time, and waiting threads do, so that it grows with their number;
- it has used less than a hundredth of a processor over ``idle_limit`` seconds of the clock: it waits for nothing;
- it has lasted ``wall_limit`` seconds of the clock.

It then fails with the stacks of all threads. One that cannot be interrupted, because its main thread is not in Python,
ends the whole process after `GRACE` more seconds, with the same text on standard error.
"""

import os
import signal
import sys
import threading
import time
import traceback

import psutil
import pytest

LOOK = 5.0
"""Seconds between two looks; fewer where a limit is smaller."""
IDLE_SHARE = 0.01
"""Of one processor: what uses less, waits."""
GRACE = 60.0
"""Seconds of the clock that a test which was interrupted may take to end."""


def add_options(parser) -> None:
    """Settings of `pyproject.toml`; all in seconds."""
    parser.addini("processor_limit", "processor seconds that a test may use, on two cores", default="3600")
    parser.addini("idle_limit", "seconds that a test may wait without using the processor", default="900")
    parser.addini("wall_limit", "seconds that a test may last", default="14400")


def processor_seconds() -> float:
    """Of this process and its descendants, and of what these have waited for."""
    total = 0.0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:  # it has just ended; who waits for it has its time
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def stacks() -> str:
    """Where all threads of this process are."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"--- {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


class Meter:
    """What one test has used so far.

    A process that leaves the family (its parent ended before it) takes its seconds along, so that only what is added
    from look to look is summed.
    """

    def __init__(self, processor: float, idle: float, wall: float):
        self.limits = processor, idle, wall
        self.began = self.marked = time.monotonic()
        self.seen = processor_seconds()
        self.used = self.used_at_mark = 0.0

    def over(self) -> str | None:
        """Look; why the test has to end, None while it may go on."""
        processor, idle, wall = self.limits
        now, seen = time.monotonic(), processor_seconds()
        self.used += max(0.0, seen - self.seen)
        self.seen = seen
        if self.used > processor:
            return f"used {self.used:.0f} processor seconds, and processor_limit is {processor:g}"
        if now - self.began > wall:
            return f"lasted {now - self.began:.0f} seconds, and wall_limit is {wall:g}"
        if now - self.marked > idle:
            if self.used - self.used_at_mark < IDLE_SHARE * (now - self.marked):
                return f"used no processor for {now - self.marked:.0f} seconds, and idle_limit is {idle:g}"
            self.marked, self.used_at_mark = now, self.used
        return None


class Limits:
    """The plugin: one thread looks, the main thread is interrupted by a signal while it runs a part of a test."""

    def __init__(self, config):
        self.config = config
        self.settings = self.limits = [float(config.getini(f"{name}_limit")) for name in ("processor", "idle", "wall")]
        self.scale = max(1.0, (os.cpu_count() or 1) / 2)
        self.lock = threading.Lock()
        self.meter: Meter | None = None  # begins at the first look, so that a short test costs nothing
        self.running = False  # whether an exception now would be the test's
        self.reason = ""
        self.interrupted: float | None = None
        signal.signal(signal.SIGALRM, self.interrupt)
        threading.Thread(target=self.watch, name="limits of tests", daemon=True).start()

    def watch(self) -> None:
        """Look at the test that runs, again and again."""
        while True:
            time.sleep(min(LOOK, *(limit / 4 for limit in self.settings)))
            with self.lock:
                if not self.running:
                    continue
                if self.meter is None:
                    self.meter = Meter(*self.limits)
                if self.interrupted is not None:
                    if time.monotonic() - self.interrupted > GRACE:
                        self.end_process()
                elif reason := self.meter.over():
                    self.reason, self.interrupted = reason, time.monotonic()
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)

    def interrupt(self, *_) -> None:
        """Fail the test, in the main thread."""
        if self.running and self.reason:
            pytest.fail(f"the test {self.reason}\n{stacks()}", pytrace=False)

    def end_process(self) -> None:
        """End a process whose main thread does not answer."""
        capture = self.config.pluginmanager.getplugin("capturemanager")
        if capture:
            capture.suspend_global_capture(in_=True)
        print(f"the test {self.reason}, and cannot be interrupted\n{stacks()}", file=sys.__stderr__, flush=True)
        os._exit(1)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        """A test has one account for all of its parts."""
        mark = item.get_closest_marker("processor_limit")
        processor, idle, wall = self.settings
        processor = (mark.args[0] if mark else processor) * self.scale
        with self.lock:
            self.meter, self.limits = None, (processor, idle, wall)
        return (yield)

    def part(self):
        """Around a part of a test; after one that was interrupted, the next has an account of its own."""
        with self.lock:
            if self.interrupted is not None:
                self.meter = None
            self.reason, self.interrupted, self.running = "", None, True
        try:
            return (yield)
        finally:
            self.running = False

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self):
        """Fixtures."""
        return (yield from self.part())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self):
        """The test itself."""
        return (yield from self.part())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self):
        """Fixtures again."""
        return (yield from self.part())
