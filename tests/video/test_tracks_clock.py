"""Tracked objects and annotated boxes on videos as people have them: a rate that varies, pictures that are turned.

The videos count: the grey level of a picture tells its number. Their rate is that of a screen recording: 30 pictures in
the first second, then 2 a second.
"""

import dataclasses
import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from tests.video.test_decode import indices, write_counting_video
from verl_stvg.data_builders.objects import draw, pipeline
from verl_stvg.data_builders.objects.boxes import TurnedBoxes, annotated_size, scaled, scales
from verl_stvg.data_builders.objects.detector import Detection
from verl_stvg.data_builders.objects.frames import VideoFrames
from verl_stvg.data_builders.objects.target import size_filter
from verl_stvg.data_builders.objects.track import Options, encode, track
from verl_stvg.data_builders.objects.write import find_numbered, write_video
from verl_stvg.data_builders.records import record
from verl_stvg.data_builders.videos import VideoRoot
from verl_stvg.eval.benchmarks import tube_papers, tubes
from verl_stvg.eval.benchmarks.items import Item, Prediction, item_of
from verl_stvg.eval.benchmarks.tracked import Library
from verl_stvg.eval.lmms_eval_tasks.parts import cut
from verl_stvg.eval.metrics import tube_scripts
from verl_stvg.eval.report import clips
from verl_stvg.eval.report.boxes import named_boxes, outlines
from verl_stvg.video import tracks as files
from verl_stvg.video.decode import probe
from verl_stvg.video.film import VideoInfo
from verl_stvg.video.tracks import Track, TrackError, Tracks

STAMPS = [round(1000 * (k / 30 if k < 30 else 1 + (k - 30) / 2)) for k in range(50)]
"""Milliseconds at which the 50 pictures of an uneven video appear."""
END = 10.533
"""Seconds at which its last one goes, after the nominal time of a picture: the file does not say it."""
SIZE = 56


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Path:
    return write_counting_video(tmp_path_factory.mktemp("uneven") / "a.mkv", frames=50, stamps=STAMPS)


@pytest.fixture(scope="module")
def even(tmp_path_factory) -> Path:
    return write_counting_video(tmp_path_factory.mktemp("even") / "a.mp4", frames=50, rate=25)


def mask(number: int = 8, size: int = SIZE) -> dict:
    """A square of 8 pixels, so many pixels from the left."""
    found = np.zeros((size, size), bool)
    found[8:16, number : number + 8] = True
    return encode(found)


def tracked(info: VideoInfo, frames=range(50), **changes) -> Tracks:
    """An object in some frames of a video."""
    given = {"num_frames": info.num_frames, "fps": info.fps, "times": info.times, "end": info.end} | changes
    return Tracks(info.height, info.width, tracks=(Track(1, None, None, dict.fromkeys(frames, mask())),), **given)


def old(tracks: Tracks, path: Path) -> Tracks:
    """The same from a file of version 1."""
    files.save(dataclasses.replace(tracks, version=1, times=None, end=None), path)
    assert json.loads(gzip.decompress(path.read_bytes())).keys() >= {"format_version", "fps"} - {"times", "end"}
    return files.load(path)


# --- track files ----------------------------------------------------------------------------------------------------


def test_a_file_keeps_the_times_of_its_frames(uneven, tmp_path):
    info = probe(uneven)
    assert info.times is not None and info.num_frames == 50
    tracks = tracked(info)
    files.save(tracks, tmp_path / "a.tracks.json.gz")
    again = files.load(tmp_path / "a.tracks.json.gz")
    assert again == tracks and again.clock == info.clock
    assert size_filter(again).times == info.times and size_filter(again).end == info.end
    assert tracked(probe(uneven), times=None, end=None).clock.seconds(25) == 25 / info.fps


@pytest.mark.parametrize("times", [(0.0,), tuple(range(49, -1, -1)), (*range(49), float("nan"))])
def test_times_are_one_per_frame_and_ascend(uneven, times):
    with pytest.raises(TrackError, match="times of 50 frames"):
        tracked(probe(uneven), times=times, end=None)


def test_an_end_before_the_last_frame_is_refused(uneven):
    with pytest.raises(TrackError, match="do not ascend"):
        tracked(probe(uneven), end=1.0)


def test_tracking_numbers_the_pictures_of_the_file(uneven, even):
    """A detector that reads the number of the picture: it sees each one once, at its own time."""
    seen = []

    class Eyes:
        def detect(self, frame):
            seen.append(indices(frame[None])[0])
            return [Detection((8, 8, 16, 16), "person", 0.9)]

    class Hand:
        name = "hand"

        def segment(self, frame, boxes):
            return [mask() for _ in boxes]

        def start(self, height, width, num_frames):
            given = {}
            return SimpleNamespace(
                step=lambda frame: dict(given),
                add=lambda number, found: given.setdefault(number, found),
                remove=given.pop,
            )

    tracks = track(uneven, Eyes(), Hand(), Options(step=1))
    assert seen == list(range(50)) and list(tracks.tracks[0].masks) == list(range(50))
    assert (tracks.times, tracks.end) == (probe(uneven).times, probe(uneven).end)
    assert np.allclose(tracks.times, np.array(STAMPS) / 1000, atol=2e-3)
    tracks.check(probe(uneven))
    constant = track(even, Eyes(), Hand(), Options(step=1))
    assert (constant.times, constant.end) == (None, None)


# --- is it this video? ------------------------------------------------------------------------------------------------


def test_tracks_of_this_video_fit(uneven, even, tmp_path):
    for video in (uneven, even):
        info = probe(video)
        tracked(info).check(info)
        tracked(info).check(VideoFrames(video))
        tracked(info, times=None, end=None).check(info)  # numbered like the pictures, when is not said
    old(tracked(probe(even)), tmp_path / "old.tracks.json.gz").check(probe(even))


def test_imported_tracks_are_about_pictures(uneven, tmp_path):
    """STVG-R1's folders say neither how many frames there are nor when; mask_k is picture k."""
    files.write_folder(tracked(probe(uneven), range(40), times=None, end=None, num_frames=40), tmp_path / "masks")
    imported = files.read_folder(tmp_path / "masks", 25.0)
    assert imported.imported and imported.num_frames == 40
    imported.check(probe(uneven))
    old(imported, tmp_path / "old.tracks.json.gz").check(probe(uneven))
    with pytest.raises(TrackError, match="has 30 frames, and its tracks are of 40"):
        imported.check(dataclasses.replace(probe(uneven), num_frames=30))


def test_tracks_of_other_videos_are_refused(uneven, even):
    info, other = probe(uneven), probe(even)
    with pytest.raises(TrackError, match="frames of 112x56, and its track file is about a video of 56x56; track this"):
        tracked(info).check(dataclasses.replace(info, width=112))
    wide = Tracks(56, 112, 50, 25.0)
    with pytest.raises(TrackError, match="of 112x56, the picture before it was turned; track this video"):
        wide.check(dataclasses.replace(other, width=56, height=112))
    with pytest.raises(TrackError, match="has 49 frames, and its tracks are of 50"):
        tracked(info).check(dataclasses.replace(info, num_frames=49))
    with pytest.raises(TrackError, match=r"up to \d\.\d+ s before or after"):
        tracked(info).check(other)
    late = dataclasses.replace(info, times=tuple(time + 0.01 * (k == 49) for k, time in enumerate(info.times)))
    with pytest.raises(TrackError, match=r"up to 0\.010 s"):
        tracked(info).check(late)
    tracked(info).check(dataclasses.replace(info, times=tuple(time + 0.001 for time in info.times)))  # rounding


def test_old_files_are_refused_where_they_counted_otherwise(uneven, even, tmp_path):
    """Their frame k is the picture on show at k / fps: at 4.5 a second the 9th is picture 32, not 9."""
    info = probe(uneven)
    with pytest.raises(TrackError, match="the rate of the video varies.*older version.*track the video again"):
        old(tracked(info), tmp_path / "a.tracks.json.gz").check(info)
    jitter = tuple(k / 25 + 0.015 * (k % 2) for k in range(50))  # half a frame was allowed
    assert old(tracked(probe(even)), tmp_path / "b.tracks.json.gz").version == 1
    files.load(tmp_path / "b.tracks.json.gz").check(dataclasses.replace(probe(even), times=jitter, end=2.0, fps=25.0))


def test_filtering_keeps_the_version(uneven, tmp_path):
    filtered = size_filter(old(tracked(probe(uneven)), tmp_path / "a.tracks.json.gz"))
    files.save(filtered, tmp_path / "b.tracks.json.gz")
    assert files.load(tmp_path / "b.tracks.json.gz").version == 1


# --- targets --------------------------------------------------------------------------------------------------------


def annotation(video="a.mkv", boxes=((8, 8, 16, 16),) * 10, first=25, **fields):
    return record(
        "entry 0", key="a", video=video, query="It sits.", tube={"first_frame": first, "boxes": boxes}, **fields
    )


def assigned(video: Path, tracks: Tracks, one, tmp_path) -> dict:
    files.save(tracks, tmp_path / files.track_name(video.name))
    [line] = pipeline.assign("set", "train", iter([one]), VideoRoot(video.parent), tmp_path, pipeline.Rule())
    return line


def test_visible_is_when_its_pictures_are_on_show(uneven, tmp_path):
    """Seen in pictures 25 to 34: from 0.833 s to 3.5 s, not from 25 / 4.5 = 5.5 s."""
    one = annotation(boxes=((8.0, 8.0, 16.0, 16.0),) * 10)
    for tracks in (tracked(probe(uneven), range(25, 35)), tracked(probe(uneven), range(25, 35), times=None, end=None)):
        line = assigned(uneven, tracks, one, tmp_path)
        assert line["object_id"] == 1 and line["share"] == 1
        assert line["visible"] == [pytest.approx([25 / 30, 3.5], abs=2e-3)]


@pytest.mark.parametrize("unit, begin", [("seconds", 0.5), ("frames", 15.0), ("fractions", 0.5 / END)])
def test_visible_counts_from_the_start_of_the_part(uneven, unit, begin):
    tracks = tracked(probe(uneven), (10, 20, 35))
    one = annotation(boxes=((8.0, 8.0, 16.0, 16.0),), unit=unit, clip=(begin, begin + 1))
    found = pipeline._visible(tracks, {1}, one)
    assert np.allclose(found, [[20 / 30 - 0.5, 21 / 30 - 0.5], [3.0, 3.5]], atol=2e-3)


def test_at_a_constant_rate_numbers_are_those_of_the_rate():
    tracks = Tracks(SIZE, SIZE, 50, 29.97, (Track(1, None, None, dict.fromkeys((3, 4, 7), mask())),))
    one = annotation(boxes=((8.0, 8.0, 16.0, 16.0),))
    assert pipeline._visible(tracks, {1}, one) == [[3 / 29.97, 5 / 29.97], [7 / 29.97, 8 / 29.97]]


def test_tracks_of_another_video_give_no_target(uneven, tmp_path):
    one = annotation(boxes=((8.0, 8.0, 16.0, 16.0),))
    short = tracked(dataclasses.replace(probe(uneven), num_frames=40, times=None, end=None), range(40))
    assert "has 50 frames, and its tracks are of 40" in assigned(uneven, short, one, tmp_path)["reason"]
    before = dataclasses.replace(tracked(probe(uneven)), version=1, times=None, end=None)
    assert "older version" in assigned(uneven, before, one, tmp_path / "before")["reason"]


def test_frames_that_are_not_the_files_give_no_target(uneven, tmp_path):
    """Annotated on a copy of 30 pictures a second, of which it has 330."""
    one = annotation(boxes=((8.0, 8.0, 16.0, 16.0),), extra={"frame_count": 330})
    assert "counts 330 frames and the file 50" in assigned(uneven, tracked(probe(uneven)), one, tmp_path)["reason"]
    one = annotation(boxes=((8.0, 8.0, 16.0, 16.0),) * 10, intervals=((5.0, 7.0),))
    assert "annotation says 5.00 to 7.00 s" in assigned(uneven, tracked(probe(uneven)), one, tmp_path)["reason"]


def test_boxes_of_a_turned_picture_give_no_target(uneven, tmp_path):
    one = annotation(boxes=((8.0, 8.0, 16.0, 16.0),), extra={"width": 180, "height": 320})
    wide = Tracks(180, 320, 50, 5.0, (Track(1, None, None, {0: encode(np.ones((180, 320)))}),))
    with pytest.raises(TurnedBoxes, match="180x320, but the video is shown as 320x180"):
        pipeline._target(one, wide, pipeline.Rule())
    (tmp_path / "b").mkdir()
    video = tmp_path / "b" / "b.mp4"
    write_video(video, np.zeros((50, 180, 320, 3), np.uint8), (320, 180), 5.0)
    line = assigned(
        video, dataclasses.replace(wide, num_frames=50), one.model_copy(update={"video": "b.mp4"}), tmp_path
    )
    assert line["uid"] == "set/train/a" and "one of them is turned" in line["reason"]


def test_a_video_that_was_replaced_is_tracked_again(even, uneven, tmp_path, monkeypatch):
    """Present, until its video has another content; tracks of an older version too, where they counted otherwise."""
    calls = []
    monkeypatch.setattr(pipeline, "_detector", lambda models: None)
    monkeypatch.setattr(pipeline, "_segmenter", lambda models: None)
    monkeypatch.setattr(pipeline, "track", lambda path, *rest: calls.append(path) or tracked(probe(path)))
    models, options = pipeline.Models(), Options()
    root, out = tmp_path / "videos", tmp_path / "tracks"
    root.mkdir()

    def state():
        [done] = pipeline._track_some(["v.mkv"], root, out, models, options)
        return done.state

    (root / "v.mkv").write_bytes(uneven.read_bytes())
    assert [state(), state()] == ["made", "present"]
    (root / "v.mkv").write_bytes(uneven.read_bytes())
    assert state() == "present"
    (root / "v.mkv").write_bytes(even.read_bytes())
    assert [state(), state()] == ["made", "present"]
    [path] = out.glob("*.tracks.json.gz")
    made_by = {key: value for key, value in files.load(path).made_by.items() if key != "content"}
    for video, wanted in ((even, "present"), (uneven, "made")):
        (root / "v.mkv").write_bytes(video.read_bytes())
        files.save(tracked(probe(video), times=None, end=None, version=1, made_by=made_by), path)
        assert state() == wanted
    assert len(calls) == 3


# --- drawing --------------------------------------------------------------------------------------------------------


def test_a_rendered_video_keeps_the_times_of_its_pictures(uneven, tmp_path):
    draw.render(uneven, tracked(probe(uneven), range(25, 35)), tmp_path / "out.mp4")
    before, after = probe(uneven), probe(tmp_path / "out.mp4")
    assert after.num_frames == before.num_frames == 50
    assert np.allclose(after.times, before.times, atol=1e-3) and after.duration == pytest.approx(
        before.duration, abs=2e-3
    )
    plain, marked = (VideoFrames(path).read(0, 50).astype(int) for path in (uneven, tmp_path / "out.mp4"))
    assert [k for k in range(50) if np.abs(plain[k] - marked[k]).max() > 100] == list(range(25, 35))


def test_a_rendered_video_of_a_constant_rate_has_it(even, tmp_path):
    draw.show(even, tracked(probe(even)), tmp_path / "out.mp4", tmp_path / "sheet.jpg")
    info = probe(tmp_path / "out.mp4")
    assert (info.num_frames, info.fps, info.times) == (50, 25, None)


def test_pictures_on_a_sheet_have_their_own_times(uneven, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(draw, "_sheet", lambda pictures, out: seen.extend(pictures))
    draw.show(uneven, tracked(probe(uneven)), tmp_path / "out.mp4", tmp_path / "sheet.jpg", pictures=2)
    assert [time for time, _ in seen] == pytest.approx([0, 10.5], abs=2e-3)


def test_tracks_of_another_video_are_not_drawn(uneven, even, tmp_path):
    with pytest.raises(TrackError, match=f"{uneven}: frames of the video appear"):
        draw.render(uneven, tracked(probe(even), times=tuple(k / 25 for k in range(50)), end=2.0), tmp_path / "out.mp4")
    assert not list(tmp_path.iterdir())


def test_a_first_picture_that_comes_late_is_on_show_from_the_start(tmp_path):
    pictures = [np.full((56, 56, 3), 20 + 3 * k, np.uint8) for k in range(4)]
    write_video(tmp_path / "a.mp4", pictures, (56, 56), 2.0, (0.5, 0.6, 0.6, 2.0), 4.0)
    info = probe(tmp_path / "a.mp4")
    assert info.times == pytest.approx([0, 0.6, 0.6, 2.0], abs=1e-3) and info.duration == pytest.approx(4.0, abs=1e-3)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert len({frame.pts for frame in container.decode(video=0)}) == 4


@pytest.mark.parametrize("start, end, first, stop", [(0.0, 1.0, 0, 30), (0.95, 2.7, 28, 34), (0.6, END, 18, 50)])
def test_a_part_shows_what_is_on_show_in_it(uneven, tmp_path, start, end, first, stop):
    info = probe(cut(uneven, start, end, tmp_path / "part.mp4"))
    found = indices(VideoFrames(tmp_path / "part.mp4").read(0, info.num_frames))
    assert np.allclose(found, range(first, stop), atol=1)  # grey levels that were encoded twice
    wanted = [max(0.0, STAMPS[k] / 1000 - start) for k in range(first, stop)]
    assert [info.clock.seconds(k) for k in range(stop - first)] == pytest.approx(wanted, abs=4e-3)
    assert info.duration == pytest.approx(end - start, abs=4e-3)


@pytest.mark.parametrize("start, end", [(3.0, 3.0), (-1.0, 2.0), (12.0, 13.0)])
def test_a_part_outside_of_the_video_is_refused(uneven, tmp_path, start, end):
    with pytest.raises(ValueError, match="has 10.53 s, and the row shows"):
        cut(uneven, start, end, tmp_path / "part.mp4")


def test_copies_with_numbers_have_a_name_each(tmp_path):
    root, out = tmp_path / "videos", tmp_path / "out"
    assert find_numbered(out, "a/b.mp4", root) == out / "a/b.mp4"
    assert find_numbered(out, "a/b.mkv", root) == out / "a/b.mkv.mp4"
    (out / "a").mkdir(parents=True)
    (out / "a/b.mp4").touch()  # of an older version, for want of another: that of b.mkv
    assert find_numbered(out, "a/b.mkv", root) == out / "a/b.mp4"
    (root / "a").mkdir(parents=True)
    (root / "a/b.mp4").touch()
    assert find_numbered(out, "a/b.mkv", root) == out / "a/b.mkv.mp4"


# --- scores ---------------------------------------------------------------------------------------------------------


def row(info: VideoInfo, tmp_path, first=25, count=10, shown=0.0, **extra) -> dict:
    """A row as `verl-stvg build` writes it: the tube is frames of the file, its times are those of the frames."""
    interval = [info.clock.seconds(first) - shown, info.clock.seconds(first + count) - shown]
    facts = {"source_fps": info.fps, "width": info.width, "height": info.height, "num_frames": info.num_frames}
    times = {"frame_times": info.times and list(info.times), "file_end": info.end}
    return {
        "data_source": "stvg_r1/hc_stvg_v1",
        "videos": [{"video": "a.mkv", "video_start": shown, "tracks": str(tmp_path / "a.tracks.json.gz")}],
        "reward_model": {
            "ground_truth": {
                "intervals": [interval],
                "first_frame": first,
                "boxes": [[8, 8, 16, 16]] * count,
                "object_id": 1,
            }
        },
        "extra_info": {"uid": "u", "split": "test", "duration": info.duration - shown} | facts | times | extra,
    }


@pytest.mark.parametrize("first, count", [(0, 50), (25, 10), (0, 30), (29, 1), (30, 1), (49, 1)])
@pytest.mark.parametrize("shown", [0.0, 0.5])
def test_a_perfect_answer_is_perfect(uneven, tmp_path, first, count, shown):
    """Also with two decimals, as models answer."""
    item = item_of(row(probe(uneven), tmp_path, first, count, shown))
    said = tuple(round(time, 2) for time in item.intervals[0])
    assert item.frames(said) == (first, first + count - 1)
    files.save(tracked(probe(uneven)), tmp_path / "a.tracks.json.gz")
    table, notes = tubes.measure([item], [Prediction((said,), (1,))], Library())
    assert table["m_tIoU"][0] == table["m_vIoU"][0] == 1 and not notes


def test_scripts_count_in_frames_of_the_file(uneven, even, tmp_path):
    item = item_of(row(probe(uneven), tmp_path, 25, 11))
    files.save(tracked(probe(uneven)), tmp_path / "a.tracks.json.gz")
    scripts = {
        "STVG-R1": tube_papers.stvg_r1,
        "TubeDETR": tube_papers.tubedetr,
        "CG-STVG": tube_papers.cgstvg,
        "HC-STVG challenge": tube_papers.challenge,
    }
    table = tubes.variants([item], [Prediction(item.intervals, (1,))], Library(), scripts)
    assert table["m_tIoU (STVG-R1)"][0] == table["m_tIoU (TubeDETR)"][0] == table["m_tIoU (HC-STVG challenge)"][0] == 1
    assert table["m_vIoU (TubeDETR)"][0] == table["m_vIoU (HC-STVG challenge)"][0] == 1
    constant = item_of(row(probe(even), tmp_path, 25, 11))
    files.save(tracked(probe(even)), tmp_path / "a.tracks.json.gz")
    same = tubes.variants([constant], [Prediction(constant.intervals, (1,))], Library(), scripts)
    assert table["m_vIoU (STVG-R1)"][0] == same["m_vIoU (STVG-R1)"][0] > 0.6
    clipped = dataclasses.replace(item, annotated='{"split_first": 0, "split_last": 49}')
    table = tubes.variants([clipped], [Prediction(item.intervals, (1,))], Library(), {"ST-Align": tube_papers.st_align})
    assert table["m_tIoU (ST-Align)"][0] == pytest.approx(10 / 11, abs=5e-3)  # it ends with the last frame's beginning


def test_sampled_frames_follow_the_times():
    times = np.array(STAMPS) / 1000
    assert tube_scripts.sampled_frames(0, 49, 4.5, times=times).tolist() == [0, 6, 12, 18, 24, *range(30, 49)]
    even = np.arange(100) / 25
    assert (tube_scripts.sampled_frames(7, 99, 25) == tube_scripts.sampled_frames(7, 99, 25, times=even + 1e-9)).all()


def test_an_item_without_times_counts_by_its_rate():
    item = Item("u", "d", "s", "stvg_r1", "v", "q", 10.0, fps=29.97, shown=0.7)
    assert item.clock.times is None and item.span(3.3) == 3.3 * 29.97
    assert item.frames((1.0, 1e300)) == (int((0.7 + 1.0) * 29.97 + 0.5), pytest.approx(1e12, rel=1e-9))
    assert Item("u", "d", "s", "stvg_r1", "v", "q", 10.0).clock is None


def test_tracks_have_to_fit_the_row(uneven, even, tmp_path):
    info = probe(uneven)
    path = tmp_path / "a.tracks.json.gz"
    files.save(tracked(info), path)
    assert Library().objects(item_of(row(info, tmp_path))).tracks.times == info.times
    unknown = item_of(row(info, tmp_path, frame_times=None))  # rows that number no frames leave the times out
    assert Library().objects(unknown).tracks.times == info.times
    older = item_of(row(info, tmp_path, frame_times=None, file_end=None))
    with pytest.raises(
        ValueError, match=r"row u: .*a\.tracks\.json\.gz: frames of the video appear.*build the rows again"
    ):
        Library().objects(older)
    with pytest.raises(ValueError, match="row u: .*has 49 frames, and its tracks are of 50"):
        Library().objects(item_of(row(probe(even), tmp_path, num_frames=49)))
    old(tracked(info), path)
    with pytest.raises(ValueError, match="row u: .*older version"):
        Library().objects(item_of(row(info, tmp_path)))


def test_turned_boxes_are_named_in_scores(tmp_path):
    info = VideoInfo(50, 25.0, 320, 180)
    item = item_of(row(info, tmp_path, annotated='{"width": 180, "height": 320}'))
    with pytest.raises(ValueError, match="row u: boxes are annotated on pictures of 180x320"):
        tubes.true_tube(item, Prediction(object_ids=(1,)))
    copy = item_of(row(info, tmp_path, annotated='{"width": 640, "height": 180}'))
    assert tubes.true_tube(copy, Prediction(object_ids=(1,)))[1][0].tolist() == [4, 8, 8, 16]
    assert tubes.true_tube(copy, Prediction(tube={0: (8, 8, 16, 16)}))[1][0].tolist() == [
        8,
        8,
        16,
        16,
    ]  # answered in these


# --- boxes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "annotated, shown, factors",
    [
        (None, (320, 180), (1, 1)),
        ((320, 180), (320, 180), (1, 1)),
        ((1920, 1080), (320, 180), (1 / 6, 1 / 6)),
        ((1080, 1920), (180, 320), (1 / 6, 1 / 6)),
        ((720, 576), (1024, 576), (1024 / 720, 1)),  # pixels that are not square
        ((1440, 1080), (1920, 1080), (1920 / 1440, 1)),
        ((640, 480), (224, 224), (224 / 640, 224 / 480)),  # a copy that was made square
        ((480, 640), (226, 224), (226 / 480, 224 / 640)),
        ((500, 498), (249, 250), (249 / 500, 250 / 498)),  # as good as square
    ],
)
def test_boxes_follow_a_copy(annotated, shown, factors):
    assert scales(annotated, shown) == factors
    assert scaled([(10, 20, 50, 100)], annotated, shown) == [
        (10 * factors[0], 20 * factors[1], 50 * factors[0], 100 * factors[1])
    ]


@pytest.mark.parametrize(
    "annotated, shown",
    [
        ((180, 320), (320, 180)),
        ((320, 180), (180, 320)),
        ((1920, 1080), (270, 480)),  # turned, and a smaller copy
        ((720, 576), (576, 1024)),  # turned, and stretched
        ((502, 498), (498, 502)),  # nearly square, and exactly the other way round
    ],
)
def test_boxes_of_a_turned_picture_are_refused(annotated, shown):
    named = f"{annotated[0]}x{annotated[1]}, but the video is shown as {shown[0]}x{shown[1]}: one of them is turned"
    with pytest.raises(TurnedBoxes, match=named):
        scales(annotated, shown)


@pytest.mark.parametrize(
    "extra", [{}, {"width": 5}, {"width": None, "height": 4}, {"width": 0, "height": 4}, {"width": "5", "height": 4}]
)
def test_half_a_size_is_none(extra):
    assert annotated_size(extra) is None


# --- pages ----------------------------------------------------------------------------------------------------------


def test_own_boxes_on_a_page_are_those_of_the_shown_picture():
    """A truth and an answer in pixels of an annotation twice as large lie on one another, half as far."""
    truth = clips.Reply(((0.0, 1.0),), (), None, {})
    reply = clips.Reply(((0.0, 1.0),), (), None, {3: (100, 40, 200, 80)})
    boxes = {None: (100, 40, 200, 80)}
    [one, other] = named_boxes(3, ["truth", "a"], {"truth": truth, "a": reply}, boxes, (0.5, 0.5))
    assert list(one.box) == list(other.box) == [50.0, 20.0, 100.0, 40.0]
    outer, inner = outlines([one, other], (160, 90))
    assert outer["x"] < inner["x"] < 50.0 and outer["width"] > inner["width"] > 50.0
    assert named_boxes(3, ["truth", "a"], {"truth": truth, "a": reply}, boxes, None) == []
