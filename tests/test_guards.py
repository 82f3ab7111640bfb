"""Guards against what lies in downloaded folders and files: harmless stand-ins for modules, masks and track files."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from verl_stvg.base import nesting, python
from verl_stvg.data_builders.objects import pipeline
from verl_stvg.data_builders.objects.target import match_masks
from verl_stvg.data_builders.objects.track import Options, encode
from verl_stvg.data_builders.read import AnnotationError, json_entries, json_items, json_lines, json_whole
from verl_stvg.eval.metrics.masks import decode, j_f
from verl_stvg.video import rle, tracks
from verl_stvg.video.markers import rle_area
from verl_stvg.video.rle import MaskError
from verl_stvg.video.tracks import Track, TrackError, Tracks

ROOT = Path(__file__).resolve().parent.parent
NAMES = "xxhash av numpy cv2 typer torch transformers verl ray random struct tempfile".split()


# --- code from a data folder ------------------------------------------------------------------------------------------


class Trap:
    """A folder with files that have the names of modules and only note that they were run."""

    def __init__(self, folder: Path, notes: Path):
        self.folder, self.notes = folder, notes
        notes.mkdir()
        for name in NAMES:
            note = f"open({str(notes / name)!r}, 'w').close()\n"
            (folder / f"{name}.py").write_text(note + f"raise ImportError('{name} of the data folder was run')\n")

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        """Run a command in the folder."""
        given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        return subprocess.run(command, cwd=self.folder, env=given, capture_output=True, text=True)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run ``verl-stvg`` there, as its console script does: from a file in another folder."""
        script = self.notes.parent / "bin" / "verl-stvg"
        script.parent.mkdir(exist_ok=True)
        script.write_text("from verl_stvg.cli.app import main\n\nif __name__ == '__main__':\n    main()\n")
        return self.run(sys.executable, str(script), *arguments)

    @property
    def run_modules(self) -> list[str]:
        """Names of the files that were run."""
        return sorted(path.name for path in self.notes.iterdir())


@pytest.fixture
def trap(tmp_path):
    (tmp_path / "data").mkdir()
    return Trap(tmp_path / "data", tmp_path / "notes")


def test_the_trap_catches(trap):
    done = trap.run(sys.executable, "-c", "import xxhash")
    assert "xxhash of the data folder was run" in done.stderr and trap.run_modules == ["xxhash"]


CHILD = """
import sys
from verl_stvg.workers import work
from verl_stvg.video.child import Decoder

if __name__ == "__main__":
    with Decoder() as decoder:
        print(decoder.probe(sys.argv[1]).num_frames)
    print(sorted(n for part in work(len, ["a", "b"], workers=2) for n in [part]))
"""


def test_decoding_and_workers_import_nothing_from_the_current_folder(trap, rows, tmp_path):
    video = next((rows / "videos").glob("*.mp4"))
    shutil.copy(video, trap.folder / "a.mp4")  # the data folder is the current folder
    (tmp_path / "start.py").write_text(CHILD)
    done = trap.run(sys.executable, str(tmp_path / "start.py"), "a.mp4")
    assert done.returncode == 0 and "[1, 1]" in done.stdout, done.stderr
    assert trap.run_modules == []


@pytest.mark.slow
def test_rows_are_checked_and_cached_in_a_folder_with_such_files(trap, rows, tmp_path):
    for name in ("videos", "val.parquet"):
        (trap.folder / name).symlink_to(rows / name)
    done = trap.cli("check", "val.parquet", "--workers", "2", "--video-root", ".")
    assert done.returncode in (0, 1) and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    built = trap.cli("cache", "build", "val.parquet", "--workers", "2", "--video-root", ".", "--cache", "frames")
    assert built.returncode == 0, built.stdout + built.stderr
    assert trap.run_modules == []


MERGE = """
import sys
from pathlib import Path
from verl_stvg.inference import checkpoint
checkpoint._merge(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_the_merger_imports_nothing_from_the_current_folder(trap, tmp_path):
    (tmp_path / "start.py").write_text(MERGE)
    done = trap.run(sys.executable, str(tmp_path / "start.py"), str(trap.folder), str(tmp_path / "out"))
    assert "verl's merger failed with status 1" in done.stderr and "data/huggingface" in done.stderr, done.stderr
    assert trap.run_modules == []


@pytest.mark.slow
def test_the_launcher_imports_nothing_from_the_current_folder(trap):
    done = trap.cli("train", "--recipe", "stvg_r1", "--run-dir", "run", "data.train_files=none.parquet")
    log = (trap.folder / "run" / "train.log").read_text()
    assert done.returncode not in (0, 2) and "none.parquet" in log, log[-3000:]
    assert trap.run_modules == []


def _pythons() -> list[str]:
    """This Python, and others of the supported versions that start."""
    found = [sys.executable]
    for name in ("python3.10", "python3.12"):
        path = shutil.which(name)
        if path and not subprocess.run([path, "-c", "0"], capture_output=True).returncode:
            found.append(path)
    return found


SPAWN = """
import multiprocessing, subprocess, sys
from concurrent.futures import ProcessPoolExecutor
from verl_stvg.base import python

if __name__ == "__main__":
    python.guard_spawn()
    python.guard_spawn()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        print(pool.submit(abs, -1).result())
    for command in (python.code("import random, struct; print(sys.argv[1:])", "a b"), python.module("said", "a b")):
        print(subprocess.run(command, env=python.environment(path=True), capture_output=True, text=True).stdout.strip())
"""


@pytest.mark.parametrize("interpreter", _pythons())
def test_every_python_starts_others_with_a_clean_path(trap, tmp_path, interpreter):
    script = tmp_path / "scripts" / "start.py"
    script.parent.mkdir()
    script.write_text(SPAWN)
    (script.parent / "said.py").write_text("import sys, struct\nprint(__name__, sys.argv[1:])\n")
    done = trap.run(interpreter, "-B", str(script), PYTHONPATH=str(ROOT))
    assert done.stdout.splitlines() == ["1", "['a b']", "__main__ ['a b']"], done.stderr
    assert trap.run_modules == []


def test_named_folders_stay_on_the_path_and_the_current_one_does_not(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    named, other = str(tmp_path / "decoders"), str(tmp_path / "a:b")
    monkeypatch.setattr(sys, "path", ["", named, "lib", other, "__editable__.x.finder.__path_hook__"])
    monkeypatch.setenv("PYTHONPATH", f":{named}:")
    assert python.environment()["PYTHONPATH"] == named
    assert python.environment(path=True)["PYTHONPATH"].split(":") == [named, str(tmp_path / "lib"), str(ROOT)]
    monkeypatch.setenv("PYTHONPATH", ":")
    assert "PYTHONPATH" not in python.environment()


def test_ray_workers_get_no_folder_that_their_driver_does_not_import_from(monkeypatch, tmp_path):
    job_config = pytest.importorskip("ray.job_config")
    monkeypatch.setattr(job_config.JobConfig, "_get_proto_job_config", job_config.JobConfig._get_proto_job_config)
    python.guard_ray(job_config)
    python.guard_ray(job_config)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "named")])
    given = [str(tmp_path / "named"), str(tmp_path)]  # ray.init adds the folder of the script and the current one
    assert list(job_config.JobConfig(_py_driver_sys_path=given)._get_proto_job_config().py_driver_sys_path) == given[:1]


RAY = """
import os
import ray
from verl_stvg.base import python

@ray.remote
def look():
    import sys, xxhash
    return os.getcwd() in sys.path

if __name__ == "__main__":
    python.guard_ray(ray.job_config)
    ray.init(address="local", num_cpus=1, include_dashboard=False)
    print("on the path:", ray.get(look.remote()))
"""


@pytest.mark.engine
def test_a_ray_worker_imports_nothing_from_the_current_folder(trap, tmp_path):
    (tmp_path / "asks_ray.py").write_text(RAY)
    done = trap.run(*python.module("asks_ray"), PYTHONPATH=os.pathsep.join((str(ROOT), str(tmp_path))))
    assert "on the path: False" in done.stdout, done.stderr
    assert trap.run_modules == []


# --- masks ------------------------------------------------------------------------------------------------------------

PLAIN, TEXT = {"size": [4, 4], "counts": [4, 4, 8]}, {"size": [4, 4], "counts": "448"}
WRONG = {
    "size of one number": ({"size": [4], "counts": "448"}, "size"),
    "size of text": ({"size": "44", "counts": "448"}, "size"),
    "size below 0": ({"size": [-4, -4], "counts": "448"}, "size"),
    "size of 0": ({"size": [0, 4], "counts": "0"}, "no pixels"),
    "size of a broken number": ({"size": [4.0, 4], "counts": "448"}, "size"),
    "size of a truth": ({"size": [True, 16], "counts": "448"}, "size"),
    "size of a city": ({"size": [2**20, 2**20], "counts": "448"}, "over"),
    "counts missing": ({"size": [4, 4]}, "mapping with size"),
    "counts empty": ({"size": [4, 4], "counts": ""}, "cut off"),
    "counts null": ({"size": [4, 4], "counts": None}, "neither text nor a list"),
    "counts an object": ({"size": [4, 4], "counts": {"a": 1}}, "neither text nor a list"),
    "counts cut off": ({"size": [4, 4], "counts": "44P"}, "cut off"),
    "another character": ({"size": [4, 4], "counts": "44~"}, "characters"),
    "half a pair of characters": ({"size": [4, 4], "counts": "44\ud800"}, "characters"),
    "too few pixels": ({"size": [4, 4], "counts": "44"}, "add up to 8"),
    "too many, plain": ({"size": [4, 4], "counts": [4, 4, 9]}, "add up to 17"),
    "a negative run": ({"size": [4, 4], "counts": [20, -8, 4]}, "negative"),
    "a long number": ({"size": [4, 4], "counts": "P" * 30 + "0"}, "add up"),
    "a large number": ({"size": [4, 4], "counts": [2**70, 4, 8]}, "neither text nor a list of integers"),
    "sums that wrap around": ({"size": [4, 4], "counts": [2**61] * 8 + [16]}, "add up"),
    "a broken number": ({"size": [4, 4], "counts": [4.0, 4, 8]}, "list of integers"),
    "lists in it": ({"size": [4, 4], "counts": [[4, 4], 8]}, "list of integers"),
    "no mask": ("448", "mapping with size"),
}


def test_both_spellings_are_one_mask():
    video = Tracks(4, 4, 2, 25.0, (Track(1, "person", 0.9, {0: PLAIN, 1: TEXT}),))
    assert rle.encoded(PLAIN) == rle.encoded(TEXT) == TEXT == rle.encoded({**TEXT, "counts": b"448"})
    assert list(video.tracks[0].masks.values()) == [TEXT, TEXT]
    for mask in (PLAIN, TEXT):
        assert match_masks(video, [mask, mask]) == {1: 1.0}
        assert decode([mask], (4, 4)).sum() == rle_area(mask) == rle.pixels(mask) == 4


@pytest.mark.parametrize(("mask", "said"), WRONG.values(), ids=WRONG)
def test_malformed_masks_are_refused_before_native_code(monkeypatch, mask, said):
    for name in ("merge", "decode", "area", "iou", "toBbox"):
        monkeypatch.setattr(coco, name, lambda *_: pytest.fail("native code has seen it"))
    with pytest.raises(MaskError, match=said):
        rle.encoded(mask)
    with pytest.raises(MaskError, match=said):
        decode([mask], (4, 4))
    with pytest.raises(MaskError, match=f"annotated mask of frame 1: .*{said}"):
        match_masks(Tracks(4, 4, 2, 25.0, (Track(1, None, None, {0: TEXT}),)), [None, mask])
    with pytest.raises(TrackError, match=f"object 3, frame 1: .*({said}|without pixels|mask of 4x0)"):
        Tracks(4, 4, 2, 25.0, (Track(3, None, None, {0: TEXT, 1: mask}),))


def test_scores_name_the_frame():
    with pytest.raises(ValueError, match="frame 1: malformed RLE: the runs of a 4x4 mask add up to 8 pixels"):
        j_f([TEXT, {"size": [4, 4], "counts": "44"}], [[TEXT], [TEXT]], (4, 4))


def test_masks_of_another_size_are_refused():
    video = Tracks(4, 4, 2, 25.0, (Track(1, None, None, {0: TEXT}),))
    with pytest.raises(MaskError, match="frame 0 is 8x2, and the tracked video 4x4"):
        match_masks(video, [{"size": [2, 8], "counts": [16]}])


@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1)),
    st.lists(st.integers(0, 20), max_size=3),
)
def test_our_text_is_pycocotools(mask, cuts):
    expected = coco.encode(np.asfortranarray(mask))["counts"].decode()
    lengths = rle.lengths_of([{"counts": expected}], *mask.shape)[0].tolist()
    assert rle.compressed(lengths) == expected
    for cut in cuts:  # runs without pixels in between
        k = cut % len(lengths)
        lengths[k : k + 1] = [lengths[k], 0, 0]
    for counts in (lengths, rle.compressed(lengths)):
        assert rle.encoded({"size": list(mask.shape), "counts": counts}) == {
            "size": list(mask.shape),
            "counts": expected,
        }


def _right(mask, height, width, empty):
    """Likewise for one mask, in steps."""
    try:
        lengths = rle.lengths_of([mask], height, width)[0]
    except MaskError:
        return False
    return empty or bool(lengths[1::2].any())


@settings(max_examples=300)
@given(st.data())
def test_many_masks_at_once_are_judged_like_each(data):
    height, width = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    rng, masks = np.random.default_rng(data.draw(st.integers(0, 99))), []
    for _ in range(data.draw(st.integers(1, 5))):
        text = bytearray(encode(rng.random((height, width)) < rng.choice([0, 0.02, 0.5, 1]))["counts"].encode())
        if data.draw(st.booleans()):
            text[rng.integers(len(text))] = rng.integers(40, 120)
        masks.append({"counts": bytes(text)})
    for empty in (False, True):
        right = [_right(mask, height, width, empty) for mask in masks]
        found = rle.flaw(masks, height, width, empty)
        assert found is None if all(right) else found[0] == right.index(False)


# --- track files ------------------------------------------------------------------------------------------------------


def _tracks(frames: int = 3) -> Tracks:
    mask = np.zeros((24, 32), bool)
    mask[3:20, 4:9] = True
    made = {"detector": "a", "segmenter": "b"}
    found = tuple(Track(n, "person", 0.5, {k: encode(np.roll(mask, n + k, 1)) for k in range(frames)}) for n in (1, 2))
    return Tracks(24, 32, frames, 25.0, found, made, tuple(k / 25 for k in range(frames)), frames / 25)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a.mp4.tracks.json.gz"
    tracks.save(_tracks(), path)
    return path


def _loaded(path: Path) -> Tracks | None:
    """None where the file is refused as it ought to be."""
    try:
        return tracks.load(path)
    except TrackError as error:
        assert str(path) in str(error)
        return None


def test_any_changed_byte_gives_the_tracks_or_a_track_error(saved):
    whole = saved.read_bytes()
    for place in range(len(whole)):
        for value in (whole[place] ^ 1, whole[place] ^ 128, 0, 255):
            saved.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            assert _loaded(saved) in (None, _tracks())
    for cut in range(0, len(whole), 7):
        saved.write_bytes(whole[:cut])
        assert _loaded(saved) is None


def test_any_changed_byte_of_what_is_packed_gives_tracks_or_a_track_error(saved):
    text = gzip.decompress(saved.read_bytes())
    rng = np.random.default_rng(0)
    for place in range(len(text)):
        value = rng.choice(list(b'0-9eE.,:[]{}"\\ a~\x00\xff'))
        saved.write_bytes(gzip.compress(text[:place] + bytes([value]) + text[place + 1 :], 1))
        _loaded(saved)


@pytest.mark.parametrize("field", ["format_version", "size", "num_frames", "fps", "times", "end", "made_by", "objects"])
@pytest.mark.parametrize("value", [None, True, -1, 1e308, "text", [], [None], {}, {"a": []}, [[1]], 10**30, 0.5, [{}]])
def test_any_other_value_of_a_field_gives_tracks_or_a_track_error(saved, field, value):
    record = json.loads(gzip.decompress(saved.read_bytes()))
    spoilt = [record | {field: value}]
    if field == "objects":
        first, second = record["objects"]
        spoilt += [record | {"objects": [first | {key: value}, second]} for key in first]
    for one in spoilt:
        saved.write_bytes(gzip.compress(json.dumps(one).encode()))
        _loaded(saved)


def test_a_mask_without_pixels_or_malformed_is_refused_where_it_is_read(saved):
    record = json.loads(gzip.decompress(saved.read_bytes()))
    for counts, said in ((encode(np.zeros((24, 32)))["counts"], "without pixels"), ("44", "add up to 8 pixels")):
        record["objects"][1]["counts"][2] = counts
        saved.write_bytes(gzip.compress(json.dumps(record).encode()))
        with pytest.raises(TrackError, match=f"a.mp4.tracks.json.gz: object 2, frame 2: .*{said}"):
            tracks.load(saved)


def test_plain_counts_in_a_track_file_are_read_as_text(saved):
    record = json.loads(gzip.decompress(saved.read_bytes()))
    text = record["objects"][0]["counts"][0]
    record["objects"][0]["counts"][0] = rle.lengths_of([{"counts": text}], 24, 32)[0].tolist()
    saved.write_bytes(gzip.compress(json.dumps(record).encode()))
    assert tracks.load(saved) == _tracks()


def test_a_track_file_unpacks_to_a_bounded_size(saved, monkeypatch):
    monkeypatch.setattr(tracks, "_FREE", 2000)
    saved.write_bytes(gzip.compress(b" " * 10**6))
    with pytest.raises(TrackError, match="unpacks to more than"):
        tracks.load(saved)
    saved.write_bytes(gzip.compress(b"[") + gzip.compress(b"1]"))  # in two parts
    with pytest.raises(TrackError, match="version None"):
        tracks.load(saved)
    monkeypatch.setattr(tracks, "MAX_VALUES", 5)
    saved.write_bytes(gzip.compress(json.dumps(list(range(9))).encode()))
    with pytest.raises(TrackError, match="more than 5 values"):
        tracks.load(saved)
    with pytest.raises(TrackError, match="too many masks for one file"):
        tracks.save(_tracks(), saved)


def test_mask_folders_name_the_file_and_the_object(tmp_path):
    tracks.write_folder(_tracks(), tmp_path)
    path = tmp_path / "mask_1.json"
    record = json.loads(path.read_text())
    record["objects"]["2"]["rle"]["counts"] = "44"
    path.write_text(json.dumps(record))
    with pytest.raises(TrackError, match="mask_1.json: object 2: malformed RLE"):
        tracks.read_folder(tmp_path, 25.0)
    record["objects"]["2"] = {}
    path.write_text(json.dumps(record))
    with pytest.raises(TrackError, match="mask_1.json: not a mask file"):
        tracks.read_folder(tmp_path, 25.0)


def test_a_damaged_track_file_is_made_again_and_the_rest_goes_on(rows, tmp_path, monkeypatch):
    videos = sorted(path.name for path in (rows / "videos").glob("*.mp4"))[:2]
    monkeypatch.setattr(pipeline, "_detector", lambda _: None)
    monkeypatch.setattr(pipeline, "_segmenter", lambda _: None)
    monkeypatch.setattr(pipeline, "track", lambda *_: _tracks())
    ask = (rows / "videos", videos, tmp_path, pipeline.Models(), Options())
    assert [one.state for part in pipeline.track_all(*ask) for one in part] == ["made", "made"]
    damaged = tmp_path / tracks.track_name(videos[0])
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:40] + bytes([whole[40] ^ 4]) + whole[41:])
    again = [one for part in pipeline.track_all(*ask) for one in part]
    assert [one.state for one in again] == ["made", "present"] and "damaged" in again[0].reason
    assert damaged.read_bytes() == whole
    damaged.write_bytes(whole[:40])
    shown = list(pipeline.filter_all(tmp_path, tmp_path / "shown", 1 / 3, False, 0.0))
    assert [one.state for one in shown] == ["failed", "made"] and "damaged" in shown[0].reason


# --- nested JSON ------------------------------------------------------------------------------------------------------


def _nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (json_whole, '{"a": %s}'),
        (json_lines, '{"a": %s}'),
        (json_entries, '{"a": %s}'),
        (json_items, "[1, %s]"),
    ],
)
def test_deep_annotation_files_are_refused(tmp_path, read, text):
    path = tmp_path / "a.json"
    path.write_text(text % _nested(40) + "\n")
    assert list(read(path))
    path.write_text(text % _nested(100) + "\n")
    with pytest.raises(AnnotationError, match="a.json.*more than 64 brackets within each other"):
        list(read(path))


JSON = st.recursive(
    st.none() | st.integers() | st.text('[]{}"\\a\u00e9\u2028', max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[{"\\', max_size=3), inner, max_size=3),
)


def _depth(value) -> int:
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if within is None else 1 + max(map(_depth, within), default=0)


@given(JSON, st.booleans(), st.integers(1, 5))
def test_depth_is_that_of_the_brackets_outside_of_texts(value, plain, size):
    text, depth = json.dumps(value, ensure_ascii=plain).encode(), nesting.Depth()
    deepest = 0
    for start in range(0, len(text), size):
        depth.follow(text[start : start + size])
        deepest = max(deepest, depth._depth)
    assert depth._depth == 0 and deepest <= _depth(value)
    assert nesting.loads(text) == value == nesting.loads(text.decode())
    assert nesting.is_shallow(value, _depth(value))
    assert not _depth(value) or not nesting.is_shallow(value, _depth(value) - 1)
