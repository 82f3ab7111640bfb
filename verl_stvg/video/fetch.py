"""Decoders other than PyAV: decord, torchcodec, or a function of one's own.

They count, time, turn or choose some files otherwise and say nothing of it. So some of their pictures are compared with
PyAV's. A decoder that differs is refused here; the caller lets PyAV read the file.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from verl_stvg.video.film import Timeline, VideoError
from verl_stvg.video.pictures import decode_packets, fed_for
from verl_stvg.video.timeline import timeline

_SAME = 0.002  # seconds by which decoders may differ about the time of one frame: rounding, far below 1 / 240

Take = Callable[[int, np.ndarray], None]
"""Is given the index of a frame and the frame as shown, uint8 (H, W, 3), RGB."""
Fetch = Callable[[str, list[int], list[float], int], Iterable[np.ndarray]]
"""A decoder: ``fetch(path, indices, times, threads)`` yields some frames, uint8 (H, W, 3), RGB.

It is told which ones twice: by their zero-based indices in order of presentation, increasing, and by the times at which
they are presented, seconds after the first frame. 0 threads means as many as it likes.
"""


class DecoderError(RuntimeError):
    """A decoder that cannot be used, whatever the video: unknown, not installed, or it breaks the rules of `Fetch`."""


def load_decoder(name: str) -> Fetch | None:
    """The decoder of that name; None for PyAV, which is built in.

    Raises:
        DecoderError: unknown or not installed.
    """
    if name == "pyav":
        return None
    module, _, function = name.partition(":")
    if not function and name not in DECODERS:
        raise DecoderError(
            f"decoder {name!r} is unknown; choose pyav, {', '.join(DECODERS)} or package.module:function"
        )
    try:
        loaded = importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # torchcodec raises RuntimeError where it finds no FFmpeg
        remedy = "correct the name" if function else f"`pip install {name}` or use decoder=pyav"
        reason = str(error).partition("\n")[0]
        raise DecoderError(f"decoder {name!r} cannot be imported ({reason}); {remedy}") from error
    if not function:
        return DECODERS[name]
    if not hasattr(loaded, function):
        raise DecoderError(f"decoder {name!r}: {loaded.__file__} defines no {function}; correct the name")
    return getattr(loaded, function)


class Differs(Exception):
    """A decoder shows other pictures than PyAV, or at other times, or none; the message says how."""


def fetch_frames(
    fetch: Fetch, path: Path, line: Timeline, shown: np.ndarray, take: Take, threads: int, trusted: bool
) -> None:
    """Give the frames that are on show to `take`, some perhaps twice.

    Some of the decoder's pictures are compared with PyAV's, because one that counts other frames, times them otherwise
    or takes another stream says nothing of it. That also tells whether it turns pictures by itself; a decoder that is
    trusted is compared for this alone.

    Args:
        fetch: the decoder.
        path: of the video.
        line: its timeline.
        shown: (T,) frames of the video that are wanted; below 0 where none is.
        take: called with each frame and its picture.
        threads: of the decoder; 0 for as many as it likes.
        trusted: whether the decoder is the user's own, which may show other pictures than PyAV.

    Raises:
        Differs: it shows other pictures.
        DecoderError: it breaks the rules of `Fetch`.
    """
    if line.as_decoded and not trusted:
        raise Differs("the times of this file contradict the order of its pictures")
    compared = line.turn.moves or not trusted
    references = _references(path, line, np.unique(shown[shown >= 0])) if compared else {}
    indices = np.union1d(shown[shown >= 0], list(references)).astype(int).tolist()
    times = [line.info.clock.seconds(index) - line.info.clock.start for index in indices]
    for turned in (True, False) if line.turn.moves else (False,):
        try:
            images = zip(indices, fetch(str(path), indices, times, threads), strict=True)
            if _taken(images, shown, take, line, references, turned):
                return
        except (VideoError, DecoderError, Differs):
            raise
        except Exception as error:  # foreign code: there is no list of what it raises
            raise Differs(f"the decoder fails ({type(error).__name__}: {error})") from error
    raise Differs("the decoder shows other pictures than PyAV")


def _taken(
    images: Iterable[tuple[int, np.ndarray]],
    shown: np.ndarray,
    take: Take,
    line: Timeline,
    references: Mapping[int, np.ndarray],
    turned: bool,
) -> bool:
    """Give a decoder's pictures to `take`, turned already or as stored; False as soon as one is not its reference.

    Raises:
        Differs: pictures that look the same turned and not.
    """
    import cv2

    size = line.info.width, line.info.height
    told = not turned
    for index, image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DecoderError(f"the decoder must give uint8 (H, W, 3), and gives {image.dtype} {image.shape}")
        if turned or (image.shape[1::-1] == size and not line.turn.moves):
            picture = image if image.shape[1::-1] == size else cv2.resize(image, size)
        else:
            picture = line.as_shown(image)
        if index in references:
            if not _alike(picture, references[index]):
                return False
            told = told or not _alike(line.as_shown(image), references[index])
        if index in shown:
            take(index, picture)
    if not told:
        raise Differs("its pictures look the same turned and not, and do not tell whether the decoder turns them")
    return True


def _references(path: Path, line: Timeline, wanted: np.ndarray) -> dict[int, np.ndarray]:
    """Pictures to compare a decoder's with, as shown, by index: up to three keyframes and three frames that are wanted.

    None of them where PyAV finds damage.
    """
    places = line.places[line.keys & line.shown]
    some = np.sort(places[places >= 0]) if len(places) else np.zeros(1, int)
    cost = [number - line.start_of(number) for number in line.numbers[wanted].tolist()]
    near = [
        part[np.argmin(of)] for part, of in zip(*(np.array_split(x, 3) for x in (wanted, cost)), strict=True) if len(of)
    ]
    chosen = np.unique([some[0], some[len(some) // 2], some[-1], *near])
    found = {}
    for number, frame in decode_packets(path, line, 1, fed_for(line, chosen)):
        if frame is None:
            return {}
        index = int(line.places[number])
        if index in chosen:
            found[index] = line.as_shown(frame.to_ndarray(format="rgb24"))
    return found


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures are the same one, give or take the arithmetic of colours."""
    import cv2

    if one.shape != other.shape:
        return False
    small = [cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).astype(int) for image in (one, other)]
    apart = np.abs(small[0] - small[1]).max(axis=2)
    return apart.mean() <= 8 and apart.max() <= 40


def _fetch_decord(path: str, indices: list[int], times: list[float], threads: int) -> Iterator[np.ndarray]:
    import decord

    reader = decord.VideoReader(path, num_threads=threads)
    starts = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(float)
    starts -= starts[0]
    frames = enumerate(reader.next() for _ in range(len(reader)))  # reader[k] gives others after an open GOP
    for time in times:
        index = int(np.abs(starts - time).argmin())
        _same_time(time, starts[index])
        yield next(frame for number, frame in frames if number == index).asnumpy()


def _fetch_torchcodec(path: str, indices: list[int], times: list[float], threads: int) -> Iterator[np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    stream = timeline(path).stream
    video = VideoDecoder(path, stream_index=stream, dimension_order="NHWC", num_ffmpeg_threads=threads)
    begin = video.metadata.begin_stream_seconds or 0.0
    for index, time in zip(indices, times, strict=True):
        frame = video.get_frame_at(index)  # get_frame_played_at errs where the rate varies
        _same_time(time, frame.pts_seconds - begin)
        yield frame.data.numpy()


DECODERS: dict[str, Fetch] = {"decord": _fetch_decord, "torchcodec": _fetch_torchcodec}


def _same_time(wanted: float, got: float) -> None:
    if abs(wanted - got) > _SAME:
        raise Differs(f"the decoder has no frame at {wanted:.3f} s, the nearest is at {got:.3f} s")
