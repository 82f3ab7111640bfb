"""Small real videos of every awkward kind, with the truth about each, and a referee for when a picture is on show.

    kind = KINDS["cut_0.8"]
    kind.write(path)               # path ends in kind.ending
    kind.codes, kind.times         # numbers of the pictures that a player shows, and when, seconds on its clock
    [(time, number_of(image)) for time, image in shown(path, kind.stream)]     # what the ffmpeg program shows

Each picture carries its number in large blocks that outlive coding, scaling, turning and mirroring: `number_of` and
`orientation_of` read a decoded picture. The player's clock starts with the file: with the sound where that comes before
the picture, else with the first picture.

The truth is how the file was made, not what FFmpeg says. `shown` is the second opinion, and `Kind.referee` says in
words where the ffmpeg program is known to differ from players and is therefore no judge.
"""

import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np

# --- programs ---------------------------------------------------------------------------------------------------------


def ffmpeg() -> str:
    """Path of an ffmpeg program: the system's, else the one that comes with imageio-ffmpeg."""
    found = shutil.which("ffmpeg")
    if found is None:
        import imageio_ffmpeg

        found = imageio_ffmpeg.get_ffmpeg_exe()
    return found


def has_encoder(name: str) -> bool:
    """Whether that ffmpeg program can encode with ``name``, for example libxvid."""
    listed = subprocess.run([ffmpeg(), "-hide_banner", "-encoders"], capture_output=True, text=True, check=True).stdout
    return any(line.split()[1:2] == [name] for line in listed.splitlines())


def _run(*arguments: object, stdin: bytes | None = None) -> subprocess.CompletedProcess:
    command = [ffmpeg(), "-hide_banner", "-nostats", "-y", *map(str, arguments)]
    done = subprocess.run(command, input=b"" if stdin is None else stdin, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.decode(errors='replace')[-2000:]}")
    return done


# --- pictures whose number can be read --------------------------------------------------------------------------------

ORIENTATIONS = ("upright", "90", "180", "270", "mirrored", "90 mirrored", "180 mirrored", "270 mirrored")
"""How a picture may lie in a file: the degrees by which a player turns it clockwise, after which, where mirrored, it
swaps left and right. Upside down and not turned is ``180 mirrored``."""

_GRID = 4  # blocks each way: red, green, 12 bits, 2 to check
_BITS = 12


def _levels(number: int) -> list[int]:
    bits = [number >> k & 1 for k in range(_BITS)]
    check = (sum(bits[::2]) + 2 * sum(bits[1::2]) + 1) % 4
    return [*bits, check & 1, check >> 1]


def draw(number: int, width: int = 256, height: int = 128) -> np.ndarray:
    """A picture that carries a number from 0 to 4095.

    It has 4 x 4 blocks: top left red, beside it green, then the bits of the number, lowest first, white for 1, and two
    bits to check them.

    Returns:
        uint8 array (H, W, 3), RGB.
    """
    if not 0 <= number < 1 << _BITS:
        raise ValueError(f"{number} is not between 0 and {(1 << _BITS) - 1}")
    colours = [(208, 32, 32), (32, 176, 32), *((228,) * 3 if bit else (28,) * 3 for bit in _levels(number))]
    grid = np.array(colours, np.uint8).reshape(_GRID, _GRID, 3)
    rows, columns = (np.arange(size) * _GRID // size for size in (height, width))
    return np.ascontiguousarray(grid[rows][:, columns])


def number_of(image: np.ndarray) -> int:
    """The number of a picture that is upright.

    Raises:
        ValueError: it is not upright, or cannot be read: a mixture of two pictures, a decoder's guess, another picture.
    """
    height, width = image.shape[:2]
    blocks = np.empty((_GRID, _GRID, 3))
    for row in range(_GRID):
        for column in range(_GRID):
            top, left = (row + 0.3) * height / _GRID, (column + 0.3) * width / _GRID
            bottom, right = top + 0.4 * height / _GRID, left + 0.4 * width / _GRID
            part = image[int(top) : max(int(bottom), int(top) + 1), int(left) : max(int(right), int(left) + 1)]
            blocks[row, column] = part.reshape(-1, 3).mean(0)
    (red, green), grey = blocks[0, :2], blocks.reshape(-1, 3)[2:].mean(1)
    if red[0] - red[1:].max() < 60 or green[1] - green[::2].max() < 60:
        raise ValueError(f"not an upright numbered picture: its first blocks are {red.round()} and {green.round()}")
    if ((grey > 95) & (grey < 165)).any():
        raise ValueError(f"a picture that cannot be read: its blocks are {grey.round()}")
    bits = (grey > 128).astype(int).tolist()
    number = sum(bit << k for k, bit in enumerate(bits[:_BITS]))
    if _levels(number) != bits:
        raise ValueError(f"a picture whose number does not check: its blocks are {grey.round()}")
    return number


def laid(image: np.ndarray, orientation: str) -> np.ndarray:
    """An upright picture as it lies in a file of that orientation, one of `ORIENTATIONS`."""
    degrees, mirrored = _parts(orientation)
    return np.ascontiguousarray(np.rot90(np.fliplr(image) if mirrored else image, degrees // 90))


def lifted(image: np.ndarray, orientation: str) -> np.ndarray:
    """The reverse of `laid`: what a player makes of the stored picture."""
    degrees, mirrored = _parts(orientation)
    image = np.rot90(image, -(degrees // 90))
    return np.ascontiguousarray(np.fliplr(image) if mirrored else image)


def orientation_of(image: np.ndarray) -> str:
    """How a numbered picture lies, one of `ORIENTATIONS`.

    Raises:
        ValueError: it cannot be read.
    """
    for orientation in ORIENTATIONS:
        try:
            number_of(lifted(image, orientation))
        except ValueError:
            continue
        return orientation
    raise ValueError("not a numbered picture, however it is turned")


def _parts(orientation: str) -> tuple[int, bool]:
    if orientation not in ORIENTATIONS:
        raise ValueError(f"{orientation!r} is none of {ORIENTATIONS}")
    return int(re.sub(r"\D", "", orientation) or 0), orientation.endswith("mirrored")


def display_matrix(orientation: str, width: int, height: int) -> list[int]:
    """The nine numbers by which an MP4 asks to turn the stored picture upright.

    Args:
        orientation: one of `ORIENTATIONS`.
        width: of the upright picture.
        height: the same.
    """
    degrees, mirrored = _parts(orientation)
    turn = np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), degrees // 90)  # what np.rot90 does to (x, y)
    back = (turn @ np.diag([-1 if mirrored else 1, 1])).T
    shift = [size if row.sum() < 0 else 0 for row, size in zip(back, (width, height), strict=True)]
    one = 1 << 16
    (a, c), (b, d) = (back * one).tolist()
    return [a, b, 0, c, d, 0, shift[0] * one, shift[1] * one, 1 << 30]


# --- writing ----------------------------------------------------------------------------------------------------------

_X264 = {"preset": "veryfast", "crf": "26", "g": "30", "bf": "2", "threads": "1"}
_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {**_X264, "x264-params": "b-adapt=0:scenecut=0"},
    "libx265": {
        "preset": "ultrafast",
        "x265-params": "log-level=error:bframes=2:b-adapt=0:scenecut=0:keyint=30:pools=none:frame-threads=1",
    },
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "b": "400k", "g": "60", "threads": "1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "b": "400k", "g": "60", "threads": "1"},
    "mpeg2video": {"b": "1M", "g": "15", "bf": "2"},
    "mpeg4": {"b": "500k", "g": "30"},
    "wmv2": {"b": "600k", "g": "30"},
    "flv": {"b": "600k", "g": "30"},
    "mjpeg": {"qmin": "3", "qmax": "3"},
}
_FORMATS = {".mpg": "mpeg", ".ts": "mpegts", ".ogv": "ogg", ".wmv": "asf", ".m4v": "mp4"}
Packets = list[av.Packet]


@dataclass(frozen=True)
class Film:
    """A video track to be written.

    Attributes:
        codes: numbers of the pictures.
        times: second at which each appears.
        end: second at which the last goes; default: one more step of ``rate``.
        codec: FFmpeg's name of the encoder.
        rate: nominal pictures a second.
        base: unit of the time stamps; default: ``1 / rate``.
        size: width and height as shown, before `aspect`.
        options: of the encoder.
        orientation: how the pictures lie, see `ORIENTATIONS`; the file asks for them to be turned.
        aspect: width of a pixel over its height.
        flags: disposition, for example ``default``.
        busy: with a pattern that moves.
        choose: takes the packets in decoding order and gives those that are written.
    """

    codes: Sequence[int]
    times: Sequence[float]
    end: float | None = None
    codec: str = "libx264"
    rate: Fraction | int = 30
    base: Fraction | None = None
    size: tuple[int, int] = (256, 128)
    options: dict[str, str] = field(default_factory=dict)
    orientation: str = "upright"
    aspect: Fraction = Fraction(1)
    flags: str = ""
    busy: bool = False
    choose: Callable[[Packets], Packets] = staticmethod(lambda packets: packets)

    @property
    def until(self) -> float:
        return self.times[-1] + float(1 / Fraction(self.rate)) if self.end is None else self.end

    def pictures(self) -> Iterator[np.ndarray]:
        """The pictures as they lie in the file."""
        for k, code in enumerate(self.codes):
            image = draw(code, *self.size)
            if self.busy:
                y, x = np.mgrid[: image.shape[0], : image.shape[1]]
                waves = 24 * np.sin((x + 2 * k) / 5) * np.cos((y - k) / 7)
                image = np.clip(image + waves[..., None], 0, 255).astype(np.uint8)
            yield laid(image, self.orientation)


@dataclass(frozen=True)
class Sound:
    """A sound track to be written: a faint tone from `start` to `end` seconds."""

    end: float
    start: float = 0.0
    codec: str = "aac"
    rate: int = 48000


def record(path: Path, *tracks: Film | Sound, form: str | None = None, **options: str) -> None:
    """Write tracks with PyAV; ``options`` are those of the container."""
    form = form or _FORMATS.get(path.suffix)
    with av.open(str(path), "w", format=form, options=options) as container:
        streams = [_add_film(container, t) if isinstance(t, Film) else _add_sound(container, t) for t in tracks]
        packets = []
        for track, stream in zip(tracks, streams, strict=True):
            packets += _film_packets(stream, track) if isinstance(track, Film) else _sound_packets(stream, track)
        packets.sort(key=lambda packet: packet.dts * packet.time_base)
        for packet in packets:
            container.mux(packet)


def _add_film(container: av.container.OutputContainer, film: Film) -> av.VideoStream:
    stream = container.add_stream(film.codec, rate=film.rate, options={**_OPTIONS.get(film.codec, {}), **film.options})
    stream.width, stream.height = film.size if film.orientation[:2] not in ("90", "27") else film.size[::-1]
    stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(film.codec, "yuv420p")
    if film.base is not None:
        stream.codec_context.time_base = film.base
    if film.aspect != 1:
        stream.codec_context.sample_aspect_ratio = film.aspect
    if film.orientation != "upright":
        stream.set_display_matrix(display_matrix(film.orientation, *film.size))
    if film.flags:
        stream.disposition = av.stream.Disposition[film.flags]
    return stream


def _film_packets(stream: av.VideoStream, film: Film) -> Packets:
    base = film.base or 1 / Fraction(film.rate)
    stamps = [round(time / base) for time in film.times]
    lasts = dict(zip(stamps, np.diff([*stamps, round(film.until / base)]).tolist(), strict=True))
    packets = []
    for stamp, image in zip(stamps, film.pictures(), strict=True):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = stamp, base
        packets += stream.encode(frame)
    packets += stream.encode()
    for packet in packets:
        packet.duration = lasts.get(packet.pts, 0)
    return film.choose(packets)


def _add_sound(container: av.container.OutputContainer, sound: Sound) -> av.AudioStream:
    stream = container.add_stream(sound.codec, rate=sound.rate)
    stream.layout, stream.bit_rate = "mono", 64000
    return stream


def _sound_packets(stream: av.AudioStream, sound: Sound) -> Packets:
    step = 960
    packets = []
    for k in range(round((sound.end - sound.start) * sound.rate) // step):
        tone = 0.05 * np.sin(np.arange(k * step, (k + 1) * step) * (2 * np.pi * 440 / sound.rate))
        frame = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = sound.rate, k * step + round(sound.start * sound.rate)
        frame.time_base = Fraction(1, sound.rate)
        packets += stream.encode(frame)
    return packets + stream.encode()


def encode(path: Path, film: Film, *options: object, twice: bool = False) -> None:
    """Write a film of constant rate with the ffmpeg program, for encoders that PyAV lacks; ``twice``: in two passes."""
    height, width = laid(draw(0, *film.size), film.orientation).shape[:2]
    pixels = b"".join(image.tobytes() for image in film.pictures())
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", film.rate, "-i", "-"]
    target = ["-pix_fmt", "yuv420p", "-c:v", film.codec, *options]
    with tempfile.TemporaryDirectory() as folder:
        if twice:
            log = ["-passlogfile", Path(folder) / "log"]
            _run(*source, *target, "-pass", 1, *log, "-f", "null", "-", stdin=pixels)
            target += ["-pass", 2, *log]
        _run(*source, *target, path, stdin=pixels)


def remux(path: Path, *tracks: Film | Sound, before: Sequence[object] = (), after: Sequence[object] = ()) -> None:
    """Write tracks as MP4 and copy them with the ffmpeg program, with options before and after the input."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.mp4"
        record(whole, *tracks)
        _run(*before, "-i", whole, "-map", "0", "-c", "copy", *after, path)


# --- boxes of an MP4 --------------------------------------------------------------------------------------------------


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[str, int, int]]:
    """Name, first and last byte (exclusive) of the boxes between two places."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
        size = size or end - start
        yield name.decode("latin-1"), start, start + size
        start += size


def find_box(data: bytes, *names: str) -> tuple[int, int]:
    """First and last byte of a box, by the names on the way to it; ``trak:1`` is the second track.

    Raises:
        KeyError: there is none.
    """
    start, end = 0, len(data)
    for depth, name in enumerate(names):
        name, _, index = name.partition(":")
        inside = [(a, b) for found, a, b in boxes(data, start + 8 * (depth > 0), end) if found == name]
        if len(inside) <= int(index or 0):
            raise KeyError("/".join(names))
        start, end = inside[int(index or 0)]
    return start, end


def splice(data: bytes, start: int, end: int, new: bytes, parents: Sequence[tuple[str, ...]]) -> bytes:
    """Put ``new`` in place of some bytes; the sizes of the parent boxes follow."""
    if find_box(data, "mdat")[0] > start:
        raise ValueError("what follows would move, and the table of chunks would be wrong: write moov last")
    patched = bytearray(data)
    for names in parents:
        (at, last) = find_box(data, *names)
        struct.pack_into(">I", patched, at, last - at + len(new) - (end - start))
    patched[start:end] = new
    return bytes(patched)


def set_edits(path: Path, edits: Sequence[tuple[float, float | None]], track: int = 0) -> None:
    """Give a track of an MP4 another edit list.

    Args:
        path: of the file, its moov last.
        edits: seconds that each lasts, and the second of the film at which it starts; None for a gap.
        track: its number.
    """
    data = path.read_bytes()
    trak = f"trak:{track}"
    (per_movie,) = struct.unpack_from(">I", data, find_box(data, "moov", "mvhd")[0] + 20)
    (per_media,) = struct.unpack_from(">I", data, find_box(data, "moov", trak, "mdia", "mdhd")[0] + 20)
    at, last = find_box(data, "moov", trak, "edts")
    old = at + 8
    count = struct.unpack_from(">I", data, old + 12)[0]
    medias = [struct.unpack_from(">i", data, old + 16 + 12 * k + 4)[0] for k in range(count)]
    zero = next(media for media in medias if media >= 0)  # B-frames put the first picture later than zero
    entries = b"".join(
        struct.pack(">IiI", round(lasts * per_movie), -1 if media is None else zero + round(media * per_media), 1 << 16)
        for lasts, media in edits
    )
    elst = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    data = splice(data, at, last, struct.pack(">I4s", 8 + len(elst), b"edts") + elst, [("moov",), ("moov", trak)])
    patched = bytearray(data)
    total = round(sum(lasts for lasts, _ in edits) * per_movie)
    struct.pack_into(">I", patched, find_box(data, "moov", trak, "tkhd")[0] + 28, total)
    mvhd = find_box(data, "moov", "mvhd")[0] + 24
    if track == 0:
        struct.pack_into(">I", patched, mvhd, total)
    path.write_bytes(patched)


# --- the referee ------------------------------------------------------------------------------------------------------


def shown(path: Path, stream: int = 0) -> list[tuple[float, np.ndarray]]:
    """What the ffmpeg program shows: seconds on the clock of the file, and the pictures, turned, not stretched.

    Args:
        path: of the file.
        stream: number among the video streams.
    """
    film = f"0:v:{stream}"
    done = _run(
        *("-i", path, "-map", film, "-vf", "showinfo=checksum=0", "-fps_mode", "passthrough"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"),
        *("-map", film, "-map", "0:a?", "-c", "copy", "-f", "null", "-"),  # else the start of the sound may not count
    )
    said = done.stderr.decode(errors="replace")
    base, stamps, size = None, [], None
    for line in said.splitlines():
        if found := re.search(r"config in time_base: (\d+)/(\d+)", line):
            base = Fraction(int(found[1]), int(found[2]))
        elif found := re.search(r"showinfo.*\bn: *\d+ pts: *(-?\d+|NOPTS) .*? s:(\d+)x(\d+)", line):
            stamps.append(float("nan") if found[1] == "NOPTS" else float(int(found[1]) * base))
            size = size or (int(found[3]), int(found[2]))
    if not stamps:
        return []
    pictures = np.frombuffer(done.stdout, np.uint8).reshape(-1, *size, 3)
    if len(pictures) != len(stamps):
        raise RuntimeError(f"{path}: {len(pictures)} pictures and {len(stamps)} times")
    return list(zip(stamps, pictures, strict=True))


def header(path: Path) -> tuple[float | None, float | None]:
    """Length and start in seconds, as the ffmpeg program reads them from the file; None where it knows none."""
    said = subprocess.run([ffmpeg(), "-hide_banner", "-i", str(path)], capture_output=True, stdin=subprocess.DEVNULL)
    found = re.search(r"Duration: (\S+?),(?: start: (\S+?),)?", said.stderr.decode(errors="replace"))
    if found is None or found[1] == "N/A":
        return None, None
    hours, minutes, seconds = map(float, found[1].split(":"))
    return hours * 3600 + minutes * 60 + seconds, float(found[2] or 0)


def shown_by_ffprobe(path: Path, stream: int = 0) -> list[float] | None:
    """Seconds of the pictures in the file's own counting, by the ffprobe program; None where there is no ffprobe.

    Unlike the ffmpeg program it neither takes away the start of the file nor mends the clock of joined streams.
    """
    if shutil.which("ffprobe") is None:
        return None
    entries = "frame=best_effort_timestamp_time"
    command = ["ffprobe", "-v", "error", "-select_streams", f"v:{stream}", "-show_entries", entries, "-of", "csv=p=0"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True)
    words = [line.split(",")[0] for line in done.stdout.splitlines() if line.strip(" ,")]
    return [float("nan") if word == "N/A" else float(word) for word in words if not word.startswith("[")]


# --- kinds ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of video.

    Attributes:
        name: of the kind.
        ending: of the file's name, with its dot.
        write: makes the file.
        codes: numbers of the pictures that a player shows, in order; None: not known, or the file cannot be used.
        times: seconds at which they appear; None: the file does not say.
        duration: second at which the last goes; None: the file does not say.
        stream: number of the film among the video streams.
        size: width and height of the upright picture before its pixels are stretched.
        orientation: how the pictures lie in the file, see `ORIENTATIONS`.
        aspect: width of a pixel over its height.
        slack: seconds by which programs differ about the times: sound codecs begin a little before the sound.
        referee: empty, or how the ffmpeg program differs from the truth.
        needs: an encoder that the ffmpeg program must have.
        note: what is unusual.
    """

    name: str
    ending: str
    write: Callable[[Path], None]
    codes: tuple[int, ...] | None = None
    times: tuple[float, ...] | None = None
    duration: float | None = None
    stream: int = 0
    size: tuple[int, int] = (256, 128)
    orientation: str = "upright"
    aspect: Fraction = Fraction(1)
    slack: float = 0.002
    referee: str = ""
    needs: str = ""
    note: str = ""


KINDS: dict[str, Kind] = {}
"""All kinds by name."""
_SOUND = 0.025  # an AAC packet lasts 21 ms, one of MPEG layer 2 lasts 24 ms


def _add(name: str, ending: str, write: Callable[[Path], None], codes=None, times=None, duration=None, **more) -> None:
    if name in KINDS:
        raise ValueError(f"two kinds are called {name}")
    codes, times = (None if given is None else tuple(given) for given in (codes, times))
    KINDS[name] = Kind(name, ending, write, codes, times, duration, **more)


def _add_film_kind(
    name: str, ending: str, film: Film, sound: Sound | None = None, options: dict[str, str] | None = None, **more
) -> None:
    """A kind whose truth is that of its film."""
    tracks = [film] if sound is None else [film, sound]
    write = more.pop("write", partial(_record, tracks, options or {}))
    more = {"size": film.size, "orientation": film.orientation, "aspect": film.aspect, **more}
    if sound is not None:
        more.setdefault("slack", _SOUND)
    start = min([film.times[0], *([] if sound is None else [sound.start])])
    truth = {"codes": film.codes, "times": [time - start for time in film.times], "duration": film.until - start}
    _add(name, ending, write, **{**truth, **more})


def _record(tracks: Sequence[Film | Sound], options: dict[str, str], path: Path) -> None:
    record(path, *tracks, **options)


def _steps(count: int, rate: float | Fraction = 30, start: float = 0.0) -> list[float]:
    """Times of pictures at a constant rate."""
    return [start + float(k / Fraction(rate)) for k in range(count)]


def _film(count: int = 90, first: int = 0, rate: Fraction | int = 30, **more) -> Film:
    """Of constant rate."""
    return Film(range(first, first + count), _steps(count, rate), rate=rate, **more)


# plain files, of constant rate, the first picture at 0

_add_film_kind("plain_mp4", ".mp4", _film(), Sound(3.0), note="h264 with B-frames")
_add_film_kind("plain_mp4_no_b", ".mp4", _film(options={"bf": "0"}))
_add_film_kind("plain_mp4_mov", ".mov", _film(size=(180, 320)), Sound(3.0), note="a phone's shape")
_add_film_kind("plain_hevc_mp4", ".mp4", _film(60, codec="libx265"))
_add_film_kind("plain_vp8_webm", ".webm", _film(codec="libvpx"), Sound(3.0, codec="libopus"))
_add_film_kind("plain_vp9_webm", ".webm", _film(codec="libvpx-vp9"))
_add_film_kind("plain_mkv", ".mkv", _film(rate=Fraction(30000, 1001)), note="times are rounded to milliseconds")
_add_film_kind("plain_mpeg2_ts", ".ts", _film(75, rate=25, codec="mpeg2video"), Sound(3.0, codec="mp2"))
_add_film_kind("plain_h264_ts", ".ts", _film(), Sound(3.0))
_add_film_kind("plain_mpg", ".mpg", _film(75, rate=25, codec="mpeg2video"), Sound(3.0, codec="mp2"))
_add_film_kind("plain_flv", ".flv", _film(codec="flv"))
_add_film_kind("plain_h264_flv", ".flv", _film(), Sound(3.0))
_add_film_kind("plain_wmv", ".wmv", _film(codec="wmv2"), Sound(3.0, codec="wmav2"), slack=0.05)
_add_film_kind("plain_3gp", ".3gp", _film(rate=15, count=45, codec="mpeg4", size=(176, 144)), Sound(3.0))
_add_film_kind("plain_avi", ".avi", _film(75, rate=25, codec="mpeg4", options={"bf": "0"}))
_add_film_kind(
    "plain_ogv",
    ".ogv",
    _film(75, rate=25),
    write=partial(encode, film=_film(75, rate=25, codec="libtheora")),
    needs="libtheora",
)


# cut by copying: the file begins at a key picture, and its edit list hides what comes before the cut


def _add_cut(name: str, cut: float, count: int, options: dict[str, str], sound: bool = False, **more) -> None:
    film = _film(count, options=options)
    tracks = [film, Sound(film.until)] if sound else [film]
    first = round(cut * 30)
    _add(
        name,
        ".mp4",
        lambda path: remux(path, *tracks, before=["-ss", cut]),
        range(first, count),
        _steps(count - first),
        film.until - cut,
        slack=_SOUND if sound else 0.002,
        **more,
    )


for _preroll, _key, _length in ((0.2, 60, 150), (0.8, 60, 150), (4.0, 150, 300)):
    for _bs in (2, 0):
        _name = f"cut_{_preroll:g}" + ("" if _bs else "_no_b")
        _add_cut(_name, _key / 30 + _preroll, _length, {"g": str(_key), "bf": str(_bs)}, note="hidden pre-roll")
for _ending in (".mkv", ".ts"):
    _add(
        f"cut_0.8_{_ending[1:]}",
        _ending,
        lambda path: remux(path, _film(150, options={"g": "60"}), before=["-ss", 2.8]),
        range(60, 150),
        _steps(90),
        None if _ending == ".ts" else 3.0,
        note="cut by copying into a file without edit lists: the pre-roll is shown",
    )
_add_cut("cut_0.8_sound", 2.8, 150, {"g": "60"}, sound=True, note="hidden pre-roll of picture and sound")


# edit lists of several parts, and with gaps


def _edited(tracks: Sequence[Film | Sound], edits: Sequence[tuple[float, float | None]], path: Path) -> None:
    record(path, *tracks)
    set_edits(path, edits)


def _add_edited(
    name: str, film: Film, edits: Sequence[tuple[float, float | None]], sound: bool = False, **more
) -> None:
    codes, times, clock = [], [], 0.0
    for lasts, media in edits:
        for code, time in zip(film.codes, film.times, strict=True):
            if media is not None and media - 1e-6 <= time < media + lasts - 1e-6:
                codes.append(code)
                times.append(clock + time - media)
        clock += lasts
    write = partial(_edited, [film, Sound(clock)] if sound else [film], edits)
    _add(
        name,
        ".mp4",
        write,
        **{"codes": codes, "times": times, "duration": clock, "slack": _SOUND if sound else 0.002, **more},
    )


_GOPS = {"g": "60"}
_add_edited("edits_two", _film(180, options=_GOPS), [(2, 0), (2, 4)], note="two parts, each from a key picture")
_add_edited("edits_two_no_b", _film(180, options={**_GOPS, "bf": "0"}), [(2, 0), (2, 4)])
_add_edited(
    "edits_two_preroll",
    _film(180, options=_GOPS),
    [(2, 0), (1.5, 4.5)],
    referee="FFmpeg 5.1, 8.1 and 9.0 put the second part two pictures too late, as many as the B-frames delay",
    note="part two hides a pre-roll",
)
_add_edited("edits_two_preroll_no_b", _film(180, options={**_GOPS, "bf": "0"}), [(2, 0), (1.5, 4.5)])
_add_edited("edits_two_sound", _film(180, options=_GOPS), [(2, 0), (2, 4)], sound=True)
_add_edited("edits_backwards", _film(180, options=_GOPS), [(2, 4), (2, 0)], note="later part first")
_add_edited("edits_end", _film(90), [(2, 0)], note="the end is cut off")
_add_edited(
    "gap_middle",
    _film(120, options=_GOPS),
    [(2, 0), (1, None), (2, 2)],
    referee="FFmpeg 5.1, 8.1 and 9.0 fill the gap with the beginning of the film, 28 pictures from number 0 on",
    note="a second without a picture, from 2 to 3 s",
)
_add_edited("gap_start_sound", _film(90), [(2, None), (3, 0)], sound=True, note="the picture comes 2 s after the sound")
_add_film_kind(  # ffprobe counts from the start of the movie, and sees the first picture at 2 s; so may browsers
    "gap_start",
    ".mp4",
    _film(90),
    write=partial(_edited, [_film(90)], [(2, None), (3, 0)]),
    note="the picture comes late, and there is no sound; the clock starts with the picture",
)


# variable rate

_DROPPING = [k / 30 for k in range(60)] + [2 + k / 5 for k in range(30)]
_MS, _TS = Fraction(1, 1000), Fraction(1, 90000)
for _name, _ending, _codec in (
    ("variable_vp8_webm", ".webm", "libvpx"),
    ("variable_vp9_webm", ".webm", "libvpx-vp9"),
    ("variable_mkv", ".mkv", "libx264"),
    ("variable_mp4", ".mp4", "libx264"),
    ("variable_ts", ".ts", "libx264"),
):
    _add_film_kind(
        _name,
        _ending,
        Film(range(90), _DROPPING, 8.0, _codec, base=Fraction(1, 30)),
        duration=None if _ending == ".ts" else 8.0,
        note="30 a second by its header, and 5 a second from 2 s on",
    )
_add_film_kind(
    "recorder_webm",
    ".webm",
    Film(range(100), _steps(100, 14), codec="libvpx", rate=1000, base=_MS, end=100 / 14, options={"b": "400k"}),
    note="1000 a second by its header, 14 in truth",
)
_add_film_kind(
    "recorder_live_webm",
    ".webm",
    Film(range(100), _steps(100, 14), codec="libvpx", rate=1000, base=_MS, end=100 / 14),
    Sound(7.0, codec="libopus"),
    {"live": "1"},
    duration=None,
    note="as a browser records: no length, no index",
)
_SLIDES = Film(range(5), [0, 1, 2, 6, 12], 13.0, rate=30, base=_TS, options={"bf": "2"})
_add_film_kind("slides_mp4", ".mp4", _SLIDES)
_add_film_kind("slides_mp4_sound", ".mp4", _SLIDES, Sound(13.0))
_add(
    "slides_cut_mp4",
    ".mp4",
    partial(_edited, [_SLIDES], [(10, 3)]),
    [2, 3, 4],
    [0, 3, 9],
    10.0,
    referee="FFmpeg leaves out a picture that appears before the cut, though it is still on show after it",
    note="the edit begins between two pictures",
)
_add_film_kind("slides_mkv", ".mkv", _SLIDES)
_add_film_kind("slides_ts", ".ts", _SLIDES, duration=None)
_JITTER = np.random.default_rng(0).uniform(-0.006, 0.006, 120).round(5).tolist()
_PHONE = [k * 1001 / 30000 + (_JITTER[k] if k else 0) + (0.7 if k >= 60 else 0) for k in range(120)]
_add_film_kind(
    "phone_mp4",
    ".mp4",
    Film(range(120), _PHONE, rate=Fraction(30000, 1001), base=_TS, size=(144, 256)),
    Sound(4.7),
    note="29.97 a second, uneven, and nothing for 0.7 s",
)


# pictures that are coded and never shown


def _hide(code: int, vp9: bool, packets: Packets) -> Packets:
    """Make one picture invisible: the decoder may predict from it, and does not show it."""
    mask = 0x02 if vp9 else 0x10
    for k, packet in enumerate(packets):
        if k == code:
            data = bytearray(bytes(packet))
            data[0] &= ~mask
            hidden = av.Packet(bytes(data))
            hidden.pts, hidden.dts, hidden.time_base = packet.pts, packet.dts, packet.time_base
            hidden.stream = packet.stream
            packets[k] = hidden
    return packets


for _name, _codec in (("hidden_vp8_webm", "libvpx"), ("hidden_vp9_webm", "libvpx-vp9")):
    _times = [k / 30 for k in range(90)]
    _times[40] = _times[41] - 0.001  # so that it lies just before the next, as libvpx puts them
    _add(
        _name,
        ".webm",
        partial(
            _record,
            [
                Film(
                    range(90),
                    _times,
                    3.0,
                    _codec,
                    base=_MS,
                    options={"error-resilient": "0", "g": "120"},
                    choose=partial(_hide, 40, _codec == "libvpx-vp9"),
                )
            ],
            {},
        ),
        [k for k in range(90) if k != 40],
        [k / 30 for k in range(90) if k != 40],
        3.0,
        note="picture 40 is coded and not shown",
    )


def _hide_in_file(code: int, path: Path) -> None:
    """Make one VP9 picture invisible that keeps a packet to itself; the muxer would join it to the next."""
    record(path, Film(range(90), _steps(90), 3.0, "libvpx-vp9", base=_MS, options={"g": "120"}))
    with av.open(str(path)) as container:
        packet = next(packet for k, packet in enumerate(container.demux(video=0)) if k == code)
        old = bytes(packet)
    data = path.read_bytes()
    if data.count(old) != 1:
        raise RuntimeError(f"{path}: packet {code} is there {data.count(old)} times")
    path.write_bytes(data.replace(old, bytes([old[0] & ~0x02]) + old[1:]))


_add(
    "hidden_alone_vp9_webm",
    ".webm",
    partial(_hide_in_file, 40),
    [k for k in range(90) if k != 40],
    [k / 30 for k in range(90) if k != 40],
    3.0,
    note="picture 40 is coded in a packet of its own and not shown",
)
_ALT_REF = ["-auto-alt-ref", 1, "-lag-in-frames", 25, "-arnr-maxframes", 7, "-arnr-strength", 5]
_ALT_REF += ["-deadline", "good", "-cpu-used", 5, "-b:v", "100k", "-g", 120, "-threads", 1]
for _name, _codec in (("altref_vp8_webm", "libvpx"), ("altref_vp9_webm", "libvpx-vp9")):
    _busy = _film(60, busy=True, codec=_codec, size=(128, 64))
    _add_film_kind(
        _name,
        ".webm",
        _busy,
        write=lambda path, film=_busy: encode(path, film, *_ALT_REF, twice=True),
        needs=_codec,
        note="libvpx adds pictures that are never shown",
    )


# AVI, which keeps no times: picture by picture at its rate, an empty chunk where one was dropped

_AVI_B = "FFmpeg counts the pictures in decoding order, and so puts all of them too late, one for each that waits"
_add_film_kind(
    "xvid_b_avi",
    ".avi",
    _film(74, rate=25),  # the ffmpeg program never asks libxvid for the last picture
    referee=_AVI_B + "; one more where it decodes what XviD packed",
    slack=0.042,  # an empty chunk, where XviD starts a group early, holds a picture for one more
    write=lambda path: encode(path, _film(75, rate=25, codec="libxvid"), "-bf", 2, "-g", 30, "-b:v", "500k"),
    needs="libxvid",
)
_MPEG4_B = _film(75, rate=25, codec="mpeg4", options={"bf": "2"})
_add_film_kind("mpeg4_b_avi", ".avi", _MPEG4_B, referee=_AVI_B)


def _packed(packets: Packets) -> Packets:
    """As DivX and XviD wrote B-frames: a chunk for each picture on show, so a B-frame rides with the one it waits for.

    P B B become P + B, B, and a chunk that says "nothing new".
    """
    groups: list[list[bytes]] = []
    for packet in packets:
        data = bytes(packet)
        if data[data.index(b"\0\0\1\xb6") + 4] >> 6 == 2:  # a B-frame
            groups[-1].append(data)
        else:
            groups.append([data])
    chunks = []
    for anchor, *others in groups:
        chunks += [anchor + others[0], *others[1:], b"\0\0\1\xb6\x50\x4f"] if others else [anchor]
    maker = re.compile(rb"Lavc\d[\d.]*")
    chunks = [maker.sub(b"DivX503b1393p", chunk) for chunk in chunks]  # the p says that it is packed
    written = []
    for k, (chunk, packet) in enumerate(zip(chunks, packets, strict=True)):
        new = av.Packet(chunk)
        new.pts = new.dts = k
        new.time_base, new.stream, new.is_keyframe = Fraction(1, 25), packet.stream, k == 0
        written.append(new)
    return written


_add_film_kind(
    "packed_b_avi",
    ".avi",
    Film(range(75), _steps(75, 25), codec="mpeg4", rate=25, options={"bf": "2"}, choose=_packed),
    referee=_AVI_B,
    note="two pictures in one chunk and none in another, as DivX and XviD write them",
)
_add_film_kind("h264_b_avi", ".avi", _film(75, rate=25), referee=_AVI_B)
_add_film_kind("h264_avi", ".avi", _film(75, rate=25, options={"bf": "0"}))


def _copied(film: Film, options: Sequence[object], path: Path) -> None:
    """An AVI copied into another container, which takes the order of decoding for time."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.avi"
        record(whole, film)
        _run(*options, "-i", whole, "-c", "copy", path)


for _name, _copy, _options in (
    ("copied_avi_mp4", _film(75, rate=25), ()),
    ("copied_avi_mkv", _film(75, rate=25), ("-fflags", "+genpts")),
    ("copied_mpeg4_avi_mp4", _MPEG4_B, ()),
):
    _add_film_kind(
        _name,
        f".{_name[-3:]}",
        _copy,
        write=partial(_copied, _copy, _options),
        referee="the ffmpeg program gives the pictures in the order of the decoder, with times out of order",
    )
_add_film_kind(
    "h264_asf",
    ".asf",
    _film(75, rate=25),
    write=lambda path: encode(path, _film(75, rate=25, codec="libx264"), "-bf", 2),
    referee=_AVI_B,
)
_add_film_kind(
    "h264_mpg",
    ".mpg",
    _film(90, rate=30),
    write=lambda path: encode(path, _film(90, rate=30, codec="libx264"), "-bf", 2),
    referee="a program stream names the times of a few pictures; the ffmpeg program leaves the others without",
)
_add_film_kind(
    "small_mpg",
    ".mpg",
    _film(90, rate=30),
    write=lambda path: encode(
        path, _film(90, rate=30, codec="mpeg2video"), "-bf", 2, "-b:v", "60k", "-maxrate", "60k", "-bufsize", "60k"
    ),
)
_HOLES = [k for k in range(75) if not (20 <= k < 30 or k in (45, 50))]
_add_film_kind(
    "holes_avi",
    ".avi",
    Film(_HOLES, [k / 25 for k in _HOLES], 3.0, "mpeg4", 25, options={"bf": "0"}),
    note="empty chunks for the pictures 20 to 29, 45 and 50",
)
_add_film_kind("holes_h264_avi", ".avi", Film(_HOLES, [k / 25 for k in _HOLES], 3.0, rate=25, options={"bf": "0"}))


# GIF: players show a picture for 100 ms where the file says 0 or 10 ms

_GIF = "FFmpeg 8.1 and 9.0 take 10 ms at its word; 5.1 makes 100 ms of it, as players do"


def _gif(delays: Sequence[int], path: Path) -> None:
    """``delays`` in ms."""
    record(
        path,
        Film(range(len(delays)), _steps(len(delays), 10), codec="gif", base=Fraction(1, 100), rate=25, size=(128, 64)),
    )
    data = bytearray(path.read_bytes())
    places = [found.start() for found in re.finditer(rb"\x21\xf9\x04", bytes(data))]
    if len(places) != len(delays):
        raise RuntimeError(f"{path}: {len(places)} delays for {len(delays)} pictures")
    for place, delay in zip(places, delays, strict=True):
        struct.pack_into("<H", data, place + 4, delay // 10)
    path.write_bytes(data)


for _name, _delays in (
    ("gif_10ms", [10] * 30),
    ("gif_0ms", [0] * 30),
    ("gif_20ms", [20] * 50),
    ("gif_100ms", [100] * 30),
    ("gif_uneven", [50, 200, 10, 1000, 30, 20, 0, 70, 500, 100] * 2),
):
    _lasts = [delay / 1000 if delay >= 20 else 0.1 for delay in _delays]
    _add(
        _name,
        ".gif",
        partial(_gif, _delays),
        range(len(_delays)),
        np.cumsum([0, *_lasts[:-1]]).tolist(),
        sum(_lasts),
        size=(128, 64),
        referee=_GIF if 10 in _delays else "",
    )


# turned, mirrored and stretched

for _orientation in ORIENTATIONS[1:]:
    _name = f"turned_{_orientation.replace(' ', '_')}_mp4"
    _add_film_kind(_name, ".mp4", _film(30, orientation=_orientation))
_add_film_kind("turned_90_phone_mp4", ".mp4", _film(30, orientation="90", size=(144, 256)), Sound(1.0))
_add_film_kind("turned_90_mkv", ".mkv", _film(30, orientation="90"))
for _aspect in (Fraction(8, 9), Fraction(16, 15), Fraction(4, 3)):
    _suffix = f"{_aspect.numerator}x{_aspect.denominator}"
    _add_film_kind(f"stretched_{_suffix}_mp4", ".mp4", _film(30, aspect=_aspect))
    _add_film_kind(f"stretched_{_suffix}_mkv", ".mkv", _film(30, aspect=_aspect))
    _add_film_kind(f"stretched_{_suffix}_webm", ".webm", _film(30, aspect=_aspect, codec="libvpx"))
_add_film_kind(
    "stretched_4x3_mpg", ".mpg", _film(25, rate=25, codec="mpeg2video", size=(192, 192), aspect=Fraction(4, 3))
)
_add_film_kind("stretched_turned_mp4", ".mp4", _film(30, aspect=Fraction(4, 3), orientation="90"))


# the picture starts after the sound

_LATE = Film(range(90), _steps(90, start=2.0))
for _ending in (".mkv", ".mp4", ".ts"):
    _add_film_kind(f"late_{_ending[1:]}", _ending, _LATE, Sound(5.0), note="the picture starts 2 s after the sound")
_add_film_kind(
    "late_webm", ".webm", Film(range(90), _steps(90, start=2.0), codec="libvpx"), Sound(5.0, codec="libopus")
)
_add_film_kind("early_mkv", ".mkv", _film(90), Sound(3.0, start=1.0), note="the sound starts 1 s after the picture")


# several video streams

_STILL = Film([4000], [0.0], 3.0, "mjpeg", size=(320, 256), rate=30)
_add_film_kind(
    "cover_first_mkv",
    ".mkv",
    _film(),
    slack=_SOUND,
    write=lambda path: record(path, _STILL, _film(), Sound(3.0)),
    stream=1,
    note="the first video stream is one JPEG, number 4000",
)


def _covered(options: Sequence[object], path: Path, turn: bool = False) -> None:
    with tempfile.TemporaryDirectory() as folder:
        film, cover = Path(folder) / "film.mp4", Path(folder) / "cover.jpg"
        record(film, _film(30), Sound(1.0))
        _run("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "320x256", "-i", "-", cover, stdin=_picture_bytes(4000))
        _run(*(str(option).replace("FILM", str(film)).replace("COVER", str(cover)) for option in options), path)
    if turn:
        data = path.read_bytes()
        start, end = find_box(data, "moov", "udta")
        udta = data[start:end]
        data = splice(data, start, end, b"", [("moov",)])
        first = find_box(data, "moov", "trak")[0]
        path.write_bytes(splice(data, first, first, udta, [("moov",)]))


def _picture_bytes(code: int) -> bytes:
    return draw(code, 320, 256).tobytes()


_COVER = ["-i", "FILM", "-i", "COVER", "-map", "0", "-map", "1", "-c", "copy", "-disposition:v:1", "attached_pic"]
_add_film_kind(
    "cover_mp4", ".mp4", _film(30), slack=_SOUND, write=partial(_covered, _COVER), note="a cover picture, number 4000"
)
_add_film_kind("cover_m4v", ".m4v", _film(30), slack=_SOUND, write=partial(_covered, [*_COVER, "-f", "mp4"]))
_add_film_kind(
    "cover_first_mp4",
    ".mp4",
    _film(30),
    slack=_SOUND,
    write=partial(_covered, _COVER, turn=True),
    stream=1,
    note="the cover lies before the film",
)
_ATTACH = ["-i", "FILM", "-attach", "COVER", "-metadata:s:t", "mimetype=image/jpeg", "-c", "copy"]
_add_film_kind(
    "cover_mkv", ".mkv", _film(30), slack=_SOUND, write=partial(_covered, _ATTACH), note="a cover picture is attached"
)
for _ending in (".mp4", ".mkv"):
    for _second in (True, False):
        _small = _film(first=1000, size=(128, 96), flags="" if _second else "default")
        _large = _film(size=(256, 128), flags="default" if _second else "")
        _add_film_kind(
            f"cameras_{'second' if _second else 'first'}_{_ending[1:]}",
            _ending,
            _large if _second else _small,
            write=partial(_record, [_small, _large], {}),
            stream=int(_second),
            note=f"two cameras, the {'second' if _second else 'first'} is the default",
        )


# transport streams and open groups of pictures


def _from_key(index: int, packets: Packets) -> Packets:
    keys = [k for k, packet in enumerate(packets) if packet.is_keyframe]
    return packets[keys[index] :]


def _from(index: int, packets: Packets) -> Packets:
    return packets[index:]


_OPEN = {"x264-params": "open-gop=1:keyint=30:min-keyint=30:b-adapt=0:scenecut=0:b-pyramid=none", "bf": "2"}
_add_film_kind("open_gop_mp4", ".mp4", _film(120, options=_OPEN), note="open groups of pictures, whole")
_add_film_kind("open_gop_ts", ".ts", _film(120, options=_OPEN))
for _ending in (".ts", ".mkv"):
    _add(
        f"open_gop_cut_{_ending[1:]}",
        _ending,
        partial(_record, [_film(120, options=_OPEN, choose=partial(_from_key, 1))], {}),
        range(30, 120),
        _steps(90),
        3.0,
        note="begins at a key picture, after which two pictures follow that cannot be decoded",
    )
    _add(
        f"open_gop_cut_sound_{_ending[1:]}",
        _ending,
        partial(_record, [_film(120, options=_OPEN, choose=partial(_from_key, 1)), Sound(4.0)], {}),
        range(30, 120),
        _steps(90, start=1.0),
        4.0,
        slack=_SOUND,
        note="the same beside whole sound",
    )
    _add(
        f"middle_{_ending[1:]}",
        _ending,
        partial(_record, [_film(120, choose=partial(_from, 10))], {}),
        range(30, 120),
        _steps(90, start=0.6),
        3.6,
        slack=0.07,
        note="begins in the middle of a group of pictures, 0.6 s before the first that can be decoded",
    )


def _joined(parts: Sequence[tuple[Film, Sound | None, float]], path: Path) -> None:
    """Files one after the other; the last number is where the clock of a part starts."""
    data = b""
    with tempfile.TemporaryDirectory() as folder:
        for film, sound, start in parts:
            part = Path(folder) / f"part{path.suffix}"
            record(part, *([film] if sound is None else [film, sound]), output_ts_offset=str(start))
            data += part.read_bytes()
    path.write_bytes(data)


for _name, _more in (
    ("joined_webm", {"codec": "libvpx"}),
    ("joined_mkv", {}),
    ("resized_ts", {}),
):
    _small = {"size": (128, 64)} if _name == "resized_ts" else {}
    _add(
        _name,
        f".{_name.rpartition('_')[2]}",
        partial(_joined, [(_film(60, **_more), None, 0), (_film(60, first=60, **_more, **_small), None, 0)]),
        range(120),
        _steps(120),
        4.0,
        slack=0.05,  # the last picture of a part stays as long as its container says
        referee="the ffmpeg program stops at the second part, or keeps its times",
    )
for _name, _start, _sound in (
    ("joined_ts", 0, None),
    ("joined_sound_ts", 0, Sound(2.0)),
    ("joined_far_ts", 1000, None),
):
    _add(
        _name,
        ".ts",
        partial(_joined, [(_film(60), _sound, 0), (_film(60, first=60), _sound, _start)]),
        range(120),
        _steps(120),
        4.0,
        slack=0.002 if _sound is None else _SOUND,
        note="two files joined byte by byte: the clock " + ("jumps" if _start else "starts again"),
    )


# no times


def _headless(path: Path) -> None:
    record(path, _film())
    data = path.read_bytes()
    path.write_bytes(data[: find_box(data, "moov")[0]])


_add("raw_h264", ".h264", lambda path: record(path, _film(), form="h264"), range(90), note="no container, no times")
_add("raw_mpeg4", ".m4v", lambda path: record(path, _film(codec="mpeg4"), form="m4v"), range(90))
_add("single_mp4", ".mp4", lambda path: record(path, _film(1, first=7)), [7], [0.0], note="one picture")
_add("single_mkv", ".mkv", lambda path: record(path, _film(1, first=7)), [7], [0.0], note="one picture, no length")
_add("headless_mp4", ".mp4", _headless, note="the moov is missing; nothing can be read")
