"""One file, one name, one content: links, copies, endings, and videos that are replaced by others."""

import json
import logging
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.video.test_cache import noise_decoder, small_plan
from verl_stvg.data_builders import check_videos
from verl_stvg.data_builders.check_pairs import leaks, twins
from verl_stvg.data_builders.videos import UnknownVideo, VideoRoot
from verl_stvg.video import cache as module
from verl_stvg.video.cache import FrameCache
from verl_stvg.video.film import VideoInfo
from verl_stvg.video.identity import ENDINGS, identity
from verl_stvg.video.quarantine import Quarantine
from verl_stvg.video.tracks import find_track, track_name


def make(root: Path, *layout: str) -> VideoRoot:
    """``a/b.mp4`` is a file whose bytes are its name, ``a/b.mp4=x`` one with the bytes x, ``a -> b`` a link."""
    for one in layout:
        name, link, to = one.partition(" -> ")
        name, same, content = name.partition("=")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if link:
            path.symlink_to(to)
        else:
            path.write_text(content if same else name)
    return VideoRoot(root)


# --- one name for each file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "names", "found"),
    [
        (["videos/clip.mp4", "videos_480 -> videos"], ["clip", "train/clip.mp4", "videos_480/clip"], "videos/clip.mp4"),
        (["videos/clip.mp4", "a_first -> videos"], ["clip", "a_first/clip.mp4", "a_first/clip"], "videos/clip.mp4"),
        (["videos/clip.mp4", "self -> ."], ["clip", "self/self/videos/clip.mp4"], "videos/clip.mp4"),
        (["clip.mp4", "a -> .", "b -> ."], ["clip", "train/clip.mp4", "a/b/a/clip.mp4"], "clip.mp4"),
        (["x/y/clip.mp4", "x/y/up -> ..", "x/y/top -> ../.."], ["clip", "x/y/up/y/clip"], "x/y/clip.mp4"),
        (["a/clip.mp4", "a/b -> ../b", "b/a -> ../a"], ["clip", "b/a/clip.mp4", "a/b/a/b/a/clip"], "a/clip.mp4"),
        (["store/1.mp4", "train/clip.mp4 -> ../store/1.mp4"], ["clip", "train/clip.mp4", "1"], "store/1.mp4"),
        (["clip.mkv", "clip.mp4 -> clip.mkv"], ["clip", "clip.mp4", "clip.avi"], "clip.mkv"),
        (["blobs/f00", "train/clip.mp4 -> ../blobs/f00"], ["clip", "train/clip.mp4"], "train/clip.mp4"),
        (["z/clip.mp4", "clip.mp4 -> nowhere.mp4", "loop.mp4 -> loop.mp4"], ["clip", "clip.mp4"], "z/clip.mp4"),
        (["CLIP.MP4", "clip.MKV"], ["clip", "clip.mp4"], "clip.MKV"),
        (["a/clip.MP4", "b/clip.mp4"], ["a/clip", "a/clip.mp4"], "a/clip.MP4"),
        (["a/clip.mp4=x", "b/clip.webm=x"], ["clip", "train/clip.avi"], "a/clip.mp4"),
        (["clip.mkv=x", "clip.mp4=x"], ["clip", "clip.avi"], "clip.mkv"),
        (["clip.mkv", "clip.mp4"], ["clip.mp4"], "clip.mp4"),
        (["clip.mp4", "clip.gif", "clip.txt"], ["clip", "train/clip.gif", "clip.webm"], "clip.mp4"),
        (["v_1.2.mp4", "v_1.mp4"], ["v_1.2", "v_1.2.mkv"], "v_1.2.mp4"),
        (["v.gif.mp4", "v.ts.mp4"], ["v.gif"], "v.gif.mp4"),
        (["self/clip.mp4", "self/link -> ../self/clip.mp4"], ["clip", "self/clip.mp4"], "self/clip.mp4"),
    ],
)
def test_a_file_has_one_name(layout, names, found, tmp_path):
    make(tmp_path, *layout)
    for name in names:
        assert VideoRoot(tmp_path).find(name) == found, name
    assert found in VideoRoot(tmp_path).all()


@pytest.mark.parametrize("ending", sorted(ENDINGS))
def test_endings(ending, tmp_path):
    root = make(tmp_path, f"a/clip{ending}", f"b/other{ending.upper()}", "b/clip.txt")
    assert root.all() == [f"a/clip{ending}", f"b/other{ending.upper()}"]
    assert root.find("clip") == root.find("a/clip.mp4") == f"a/clip{ending}"


def test_links_out_of_the_root(tmp_path):
    make(tmp_path / "elsewhere", "deep/clip.mp4", "deep/back -> ../../root", "up -> ..")
    (tmp_path / "root").mkdir()
    root = make(tmp_path / "root", "videos -> ../elsewhere", "more -> ../elsewhere/deep", "slash -> /", "here.mp4")
    assert root.all() == ["here.mp4", "more/clip.mp4"]
    assert root.find("clip") == root.find("videos/deep/clip.mp4") == root.find("videos/deep/clip") == "more/clip.mp4"
    assert root.find("slash" + str(tmp_path / "root/here.mp4")) == "here.mp4"
    (tmp_path / "other").symlink_to(tmp_path / "root")
    assert VideoRoot(tmp_path / "other").all() == root.all()


def test_hard_links_and_copies(tmp_path):
    make(tmp_path, "b/clip.mp4")
    (tmp_path / "a").mkdir()
    os.link(tmp_path / "b/clip.mp4", tmp_path / "a/other.mp4")
    root = VideoRoot(tmp_path)
    assert root.all() == ["a/other.mp4"]
    assert {root.find(name) for name in ("b/clip.mp4", "clip", "other", "a/other.mp4")} == {"a/other.mp4"}
    shutil.copy(tmp_path / "b/clip.mp4", tmp_path / "copy.mp4")
    assert VideoRoot(tmp_path).all() == ["a/other.mp4", "copy.mp4"]  # bytes that nobody asked about are not read
    assert VideoRoot(tmp_path).find("copy") == "copy.mp4"


@pytest.mark.parametrize("layout", [["a/clip.mp4=1", "b/clip.mp4=2"], ["clip.mp4", "clip.mkv"], ["a.mp4=", "b/a.mp4="]])
def test_files_that_differ_are_named_with_the_remedy(layout, tmp_path):
    root = make(tmp_path, *layout)
    with pytest.raises(UnknownVideo, match="2 files have that name and differ .*remove all but one") as refused:
        root.find(f"train/{Path(layout[0].partition('=')[0]).stem}.avi")
    assert all(one.partition("=")[0] in str(refused.value) for one in layout)


def test_a_broken_link_is_named(tmp_path):
    root = make(tmp_path, "clip.mp4 -> gone/clip.mp4")
    with pytest.raises(UnknownVideo, match="clip.mp4: a link to gone/clip.mp4, where no file is"):
        root.find("clip.mp4")
    assert root.all() == []


def test_files_that_are_passed_over_are_counted_once_and_said_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    layout = ["a/clip.mp4", "a/clip.txt", "a/b/clip.TXT", "notes", ".DS_Store", "c -> a", "x.json", "gone.txt -> gone"]
    root = make(tmp_path, *layout)
    assert root.find("a/clip") == "a/clip.mp4" and not caplog.messages  # nothing was walked
    assert root.passed_over == {".txt": 2, "": 2, ".json": 1}
    assert VideoRoot(tmp_path).all() == root.all() == ["a/clip.mp4"]
    said = f"5 files in {tmp_path} were passed over, no videos by their ending: without one 2, .txt 2, .json 1"
    assert caplog.messages.count(said) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_named(tmp_path, caplog):
    make(tmp_path, "a/clip.mp4", "b/clip.mkv")
    (tmp_path / "b").chmod(0)
    assert VideoRoot(tmp_path).all() == ["a/clip.mp4"] and "what lies in it was passed over" in caplog.text
    (tmp_path / "b").chmod(0o755)


FOLDERS = (".", "a", "b", "a/c", "b/d")


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from([f"{f}/{n}" for f in FOLDERS for n in ("x.mp4", "y.mkv")]), st.integers(0, 2)),
    st.lists(st.tuples(st.sampled_from(FOLDERS), st.sampled_from(("k.mp4", "l", "m")), st.integers(0, 12))),
)
def test_any_links_end_and_every_file_has_one_name(files, links):
    """Links lead to folders, files, other links, nothing, the folder above the root and one outside of it."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        root, outside = top / "root", top / "outside"
        for folder in (*FOLDERS, "../outside/e"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (outside / "e/out.mp4").write_text("out")
        (outside / "back").symlink_to(root)
        for file, content in files.items():
            (root / file).write_text(str(content))
        ends = [*FOLDERS, "../outside", "../outside/e", "..", "nowhere", "a/x.mp4", "y.mkv", "a/l", "b/m"]
        for folder, file, end in links:
            if not (root / folder / file).is_symlink():
                (root / folder / file).symlink_to(root / ends[end])
        found, walk = VideoRoot(root), VideoRoot(root).all()
        reals = [os.path.realpath(root / one) for one in walk]
        assert len(set(reals)) == len(walk)
        assert {os.path.realpath(root / file) for file in files} <= set(reals)
        for one, real in zip(walk, reals, strict=True):
            assert found.find(one) == one
            if Path(real).is_relative_to(os.path.realpath(root)):  # through links, or not: the same name
                assert found.find(os.path.relpath(real, os.path.realpath(root))) == one
        for file in files:
            assert found.find(file) == os.path.normpath(file)


# --- track files ------------------------------------------------------------------------------------------------------


def test_two_files_of_one_stem_have_two_track_files(tmp_path):
    assert track_name("a/b.mp4") == "a/b.mp4.tracks.json.gz" != track_name("a/b.mkv")
    assert len({track_name(f"v_1{ending}") for ending in ("", ".2", ".3.mp4", ".mp4", ".MP4")}) == 5
    assert find_track(tmp_path, "a/b.mp4") == tmp_path / "a/b.mp4.tracks.json.gz"


def test_a_track_file_of_the_old_name_is_taken_where_it_is_this_video_s(tmp_path):
    tracks, root = tmp_path / "tracks", tmp_path / "videos"
    make(root, "a/b.mp4", "a/b.txt", "c.mp4", "c.MKV", "d.mp4", "d")
    make(tracks, *(f"{name}.tracks.json.gz" for name in ("a/b", "c", "d", "v_1")))
    for given_root in (None, root):
        assert find_track(tracks, "a/b.mp4", given_root) == tracks / "a/b.tracks.json.gz"
        assert find_track(tracks, "v_1.2", given_root).name == "v_1.2.tracks.json.gz"
        assert find_track(tracks, "v_1.2.mp4", given_root).name == "v_1.2.mp4.tracks.json.gz"
    assert find_track(tracks, "c.mp4", root).name == "c.mp4.tracks.json.gz"  # or is it c.MKV's?
    assert find_track(tracks, "d.mp4", root).name == "d.mp4.tracks.json.gz"
    assert find_track(tracks, "c.mp4").name == "c.tracks.json.gz"
    make(tracks, "c.MKV.tracks.json.gz")
    assert find_track(tracks, "c.mp4").name == "c.mp4.tracks.json.gz"
    make(tracks, "a/b.mp4.tracks.json.gz")
    assert find_track(tracks, "a/b.mp4").name == "b.mp4.tracks.json.gz"


# --- rows beside rows -------------------------------------------------------------------------------------------------


def seen(video: str, evaluation: bool = False, query: bytes = b"q", root: str = "/r", **more) -> check_videos.Seen:
    given = {"file": 0, "row": 0, "uid": f"{root}/{video}/{evaluation}", "truth": b"", "end": None, "plan": ()}
    given |= {"said": None, "same": query, "evaluation": evaluation, "name": video, "video": f"{root}/{video}"}
    fields = check_videos.Seen.__dataclass_fields__
    return check_videos.Seen(**{key: value for key, value in {**given, **more}.items() if key in fields})


def looked(**contents: str | None) -> dict:
    """What was found in videos: the hash, or nothing."""
    facts = {path.replace("_", "."): content for path, content in contents.items()}
    info = VideoInfo(10, 5.0, 64, 48)
    return {
        f"{root}/{name}": (check_videos.Facts.of(info, content) if content else "no such video", {})
        for name, content in facts.items()
        for root in ("/r", "/s")
    }


def problems(found) -> list[tuple[str, bool]]:
    return [(problem, serious) for _, problem, _, serious in found]


FILES = [Path("rows.parquet")]


@pytest.mark.parametrize(
    ("first", "second", "contents", "expected"),
    [
        ("x.flv", "x.wmv", {"x_flv": "1", "x_wmv": "2"}, []),
        ("x.flv", "x.wmv", {"x_flv": "1", "x_wmv": "1"}, ["duplicate"]),
        ("x.flv", "other.mp4", {"x_flv": "1", "other_mp4": "1"}, ["duplicate"]),
        ("x.flv", "x.wmv", {"x_flv": None, "x_wmv": None}, []),
        ("x.flv", "x.wmv", {"x_flv": "1", "x_wmv": None}, []),
        ("x.flv", "x.flv", {"x_flv": None}, ["duplicate"]),
        ("x.flv", "x.flv", {"x_flv": "1"}, ["duplicate"]),
    ],
)
def test_duplicates_are_of_equal_bytes(first, second, contents, expected):
    rows, looks = [seen(first, uid="1"), seen(second, uid="2")], looked(**contents)
    assert problems(twins(FILES, rows, looks)) == [(problem, False) for problem in expected]
    assert problems(twins(FILES, [rows[0], replace(rows[1], same=b"other")], looks)) == []
    assert problems(twins(FILES, [rows[0], replace(rows[1], evaluation=True)], looks)) == []


LEAK, HINT = ("evaluation video in training", True), ("name of an evaluation video", False)


@pytest.mark.parametrize(
    ("training", "evaluation", "contents", "expected"),
    [
        ("x.mp4", "x.mp4", {"x_mp4": "1"}, [LEAK]),
        ("x.mp4", "y.mkv", {"x_mp4": "1", "y_mkv": "1"}, [LEAK]),
        ("x.mp4", "y.mkv", {"x_mp4": "1", "y_mkv": "2"}, []),
        ("x.flv", "x.wmv", {"x_flv": "1", "x_wmv": "2"}, [HINT]),
        ("x.flv", "x.wmv", {"x_flv": "1", "x_wmv": None}, [HINT]),
        ("x.mp4", "x.mp4", {"x_mp4": None}, [LEAK]),
        ("a.b.mp4", "a.c.mp4", {"a_b_mp4": "1", "a_c_mp4": "2"}, []),
        ("v_dQw4w9WgXcQ.mp4", "1_dQw4w9WgXcQ.mkv", {}, [LEAK]),
    ],
)
def test_leaks_are_of_equal_bytes(training, evaluation, contents, expected):
    rows, looks = [seen(training), seen(evaluation, evaluation=True)], looked(**contents)
    assert problems(leaks(FILES, rows, looks)) == expected


def test_one_name_below_two_roots():
    """Other bytes: worth knowing. Bytes that one of several has not been asked for: serious."""
    looks = {"/r/x.mp4": looked(x_mp4="1")["/r/x.mp4"], "/s/x.mp4": looked(x_mp4="2")["/s/x.mp4"]}
    rows = [seen("x.mp4"), seen("x.mp4", evaluation=True, root="/s")]
    [found] = leaks(FILES, rows, looks)
    assert problems([found]) == [HINT] and "same name but other bytes as rows.parquet row 0" in found[2]
    unread = seen("x.mp4", evaluation=True, root="/t")
    assert problems(leaks(FILES, [*rows, unread], looks)) == [LEAK]


# --- files that are replaced ------------------------------------------------------------------------------------------


def swap(path: Path, content: bytes) -> None:
    """Other bytes of the same size in the same file, with the same time of change."""
    status = path.stat()
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("small", [True, False])
def test_a_replaced_video_of_equal_size_and_time_has_other_frames(small, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SETTLED_SECONDS", 0)
    monkeypatch.setattr(module, "SMALL_BYTES", 100 if small else 0)
    video = tmp_path / "clip.mp4"
    video.write_bytes(b"first")
    os.utime(video, (1_000_000_000, 1_000_000_000))
    before, cache = identity(video), FrameCache(tmp_path / "cache")
    frames = cache.get(video, small_plan(), noise_decoder).copy()
    swap(video, b"other")
    after = identity(video)
    assert (before[:2], before[3]) == (after[:2], after[3]) and before[2] < after[2]
    for found in (cache, FrameCache(tmp_path / "cache")):
        assert (found.get(video, small_plan(), noise_decoder) != frames).any()


def test_content_of_a_small_video_is_asked_even_where_its_times_stand_still(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "identity", lambda path: [5, 0, 0, 1])
    video, cache = tmp_path / "clip.mp4", FrameCache(tmp_path / "cache")
    video.write_bytes(b"first")
    key = cache.key(video, small_plan())
    video.write_bytes(b"other")
    assert cache.key(video, small_plan()) != key and not list((tmp_path / "cache").glob("videos/*/*"))


def test_a_video_that_changed_just_now_is_hashed_again(tmp_path, monkeypatch):
    """Whatever its time of change says: ``cp -p`` and ``rsync -t`` set it back."""
    monkeypatch.setattr(module, "SMALL_BYTES", 0)
    video, cache = tmp_path / "clip.mp4", FrameCache(tmp_path / "cache")
    video.write_bytes(b"first")
    os.utime(video, (1_000_000_000, 1_000_000_000))
    cache.key(video, small_plan())
    assert not list((tmp_path / "cache").glob("videos/*/*"))
    later = module.time.time() + 10
    monkeypatch.setattr(module.time, "time", lambda: later)
    cache.key(video, small_plan())
    assert len(list((tmp_path / "cache").glob("videos/*/*"))) == 1


def test_quarantine_knows_a_replaced_video_and_reads_lines_of_older_versions(tmp_path):
    video, quarantine = tmp_path / "clip.mp4", Quarantine(tmp_path / "quarantine.jsonl")
    video.write_bytes(b"first")
    quarantine.add(video, "not a video", "probe")
    assert Quarantine(quarantine.path).reason(video) == "not a video"
    line = json.loads(quarantine.path.read_text())
    assert [line[key] for key in ("size", "mtime_ns", "ctime_ns", "inode")] == identity(video)
    old = {key: value for key, value in line.items() if key not in ("ctime_ns", "inode")}
    before = tmp_path / "old.jsonl"
    before.write_text(json.dumps(old) + "\n")
    assert Quarantine(before).reason(video) == "not a video"
    swap(video, b"other")
    assert Quarantine(quarantine.path).reason(video) is None
    assert Quarantine(before).reason(video) == "not a video"  # as far as that line can tell
    video.write_bytes(b"longer than that")
    assert Quarantine(before).reason(video) is None
    video.unlink()
    assert Quarantine(quarantine.path).reason(video) is None
