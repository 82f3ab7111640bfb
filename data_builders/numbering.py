"""Whether annotated frame numbers are those of the file: copies of a video may have other frames at other times."""

from collections.abc import Mapping, Sequence
from typing import Any

from verl_stvg.data_builders.records import Interval, is_number
from verl_stvg.video.clock import FrameClock

COUNTS = ("num_frames", "frame_count", "img_num")
"""Names in `Record.extra` of how many frames a video had when it was annotated."""
AGREE = 1.0
"""Seconds by which the frames of a tube and its annotated seconds may differ where the rate of a video varies."""
MISCOUNT = 0.1
"""Seconds that frames may last by which an annotation and such a video differ: programs miss the last ones."""


def hull(intervals: Sequence[Sequence[float]], begin: float = 0.0) -> Interval | None:
    """From the first start to the last end, ``begin`` seconds later; None where there are no intervals."""
    if not intervals:
        return None
    return begin + min(start for start, _ in intervals), begin + max(end for _, end in intervals)


def misnumbered(
    clock: FrameClock, tube: tuple[int, int] | None, seconds: Interval | None, count: float | None
) -> tuple[str, str] | None:
    """Why annotated frame numbers cannot be those of the file, in general words and with the numbers of this case.

    Looked at are files with times of their own. There a frame number means another time in every copy of a video, and
    readers of sets have one rate only to turn it into seconds. At a constant rate nothing is found.

    Args:
        clock: of the file.
        tube: its first frame, and the one after its last.
        seconds: of the file in which the tube is, as annotated.
        count: of frames that the annotation knows of, see `counted`.

    Returns:
        None: nothing speaks against them.
    """
    if clock.times is None:
        return None
    if count is not None and abs(count - clock.num_frames) > MISCOUNT * clock.fps:
        detail = f"the annotation counts {count:g} frames and the file {clock.num_frames}"
        return "annotated at another number of frames than the video has, whose rate varies", detail
    if tube is None or seconds is None:
        return None
    first, last = map(clock.seconds, tube)
    if max(abs(first - seconds[0]), abs(last - seconds[1])) <= AGREE:
        return None
    detail = (
        f"frames {tube[0]} to {tube[1] - 1} are on show from {first:.2f} to {last:.2f} s, and the annotation says "
        f"{seconds[0]:.2f} to {seconds[1]:.2f} s"
    )
    return "frame numbers and seconds disagree in a video whose rate varies", detail


def counted(extra: Mapping[str, Any]) -> float | None:
    """How many frames the video had when it was annotated, as far as a set says so; see `COUNTS`."""
    return next((extra[name] for name in COUNTS if is_number(extra.get(name))), None)
