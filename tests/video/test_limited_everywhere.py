"""Every decoding of a user's video happens in a child process with limits; a video beyond them costs itself only.

The limits are set so low that a harmless video of large pictures goes beyond them.
"""

import ast
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.data_builders.test_build import run
from tests.data_builders.test_rows_clock import made, record
from tests.support.video_kinds import KINDS
from tests.video.test_limits import write_video
from verl_stvg.data_builders.objects import frames, pipeline
from verl_stvg.data_builders.objects.frames import VideoFrames
from verl_stvg.data_builders.selection import boundary_reflection
from verl_stvg.data_builders.selection.folder import SelectionError
from verl_stvg.rows import prompts
from verl_stvg.rows.settings import frame_source, switch_cache_off
from verl_stvg.video import child, serve
from verl_stvg.video.child import Decoder
from verl_stvg.video.content import Hashed, hash_file
from verl_stvg.video.decode import Blocks, VideoError, probe, read_frames

ROOT = Path(__file__).parent.parent.parent
REASON = "needs more memory to decode than 0.047 GiB"
TIGHTER = "needs more memory to decode than 0.0078 GiB"


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Two videos that any limit allows, and between them one of 4K pictures."""
    folder = tmp_path_factory.mktemp("limited") / "videos"
    folder.mkdir()
    for name in ("a.mp4", "c.mp4"):
        write_video(folder / name, 20, 64, 48)
    write_video(folder / "b.mp4", 20, 3840, 2160, grain=8, refs="8")
    return folder


@pytest.fixture
def tight(monkeypatch, tmp_path, request):
    """The decoders of this process have 48 MiB, or as much as a test says: to be looked into a video needs less."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))  # where nothing is known of any video yet
    with Decoder(threads=1, memory=getattr(request, "param", 48) * 2**20) as decoder:
        for module in (frames, pipeline, boundary_reflection):
            monkeypatch.setattr(module, "shared_decoder", lambda threads=1: decoder)
        yield decoder


# --- videos without the frame cache -----------------------------------------------------------------------------------


def test_a_run_without_the_cache_decodes_within_the_limits_it_is_given(videos, monkeypatch):
    config = OmegaConf.create({"data": {"video_cache": {"folder": "/x", "timeout": 7}}})
    switch_cache_off(config, "a test")
    source = frame_source(config.data)
    assert (source.decoder, source.timeout, source.memory) == ("pyav", 7, child.MEMORY)
    assert frame_source(config.data) is source is not frame_source({"video_cache": {"enabled": False}})
    part = {"video": str(videos / "a.mp4"), "fps": 4.0, "min_pixels": 28 * 28, "max_pixels": 56 * 56}
    tensor, _ = prompts.read_video(part, source)
    plan = prompts.plan_video_part(part, source)
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), read_frames(part["video"], plan))
    with Decoder(threads=1, memory=48 * 2**20) as tight:
        with pytest.raises(VideoError, match=REASON):
            prompts.read_video(part | {"video": str(videos / "b.mp4")}, tight)
        assert prompts.read_video(part, tight)[0].equal(tensor)


# --- objects ----------------------------------------------------------------------------------------------------------

MODELS = [
    "--detector",
    "tests.support.colours:detector",
    "--segmenter",
    "tests.support.colours:segmenter",
    "--classes",
    "all",
]


def test_tracking_goes_on_past_a_video_over_the_limits(videos, tight, tmp_path):
    status, said = run("objects", "track", "--videos", videos, "--out", tmp_path / "tracks", "--workers", 1, *MODELS)
    assert status == 1, said
    [line] = [json.loads(line) for line in (tmp_path / "tracks/quarantine.jsonl").read_text().splitlines()]
    assert line["path"] == str(videos / "b.mp4") and REASON in line["reason"]
    assert [path.name for path in pipeline.track_files(tmp_path / "tracks")] == [
        "a.mp4.tracks.json.gz",
        "c.mp4.tracks.json.gz",
    ]


def test_detections_go_on_past_a_video_over_the_limits(videos, tight, tmp_path, monkeypatch, caplog):
    found, detections = [], pipeline.detections
    monkeypatch.setattr(pipeline, "detections", lambda root, *rest: found.append(rest[0]) or detections(root, *rest))
    out = tmp_path / "boxes.jsonl"
    status, said = run("objects", "detect", "--videos", videos, "--out", out, *MODELS[:2], *MODELS[4:])
    assert status == 1 and f"b.mp4: {REASON}" in said + caplog.text and out.is_file()
    assert found == ["a.mp4", "b.mp4", "c.mp4"]


@pytest.mark.parametrize("tight", [8], indirect=True)
def test_targets_go_on_past_a_video_over_the_limits(videos, tight):
    pipeline._info.cache_clear()
    with pytest.raises(VideoError, match=TIGHTER):
        pipeline._info(str(videos / "b.mp4"))
    assert pipeline._info(str(videos / "a.mp4")) == probe(videos / "a.mp4")
    pipeline._info.cache_clear()


@pytest.mark.parametrize("tight", [8], indirect=True)
def test_blanking_names_the_video_over_the_limits(videos, tight):
    row = made(record(duration=7.0), None, rule="grid") | {"video_root": str(videos)}
    row["videos"][0]["video"] = row["extra_info"]["video"] = "b.mp4"
    with pytest.raises(SelectionError, match=TIGHTER):
        boundary_reflection.asked(row, "blanked")


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_blocks_of_a_video_come_from_one_pass_in_the_child(videos, monkeypatch):
    path, passes = str(videos / "a.mp4"), []
    begun = serve.Blocks
    monkeypatch.setattr(serve, "Blocks", lambda *given: passes.append(given) or begun(*given))
    told, says = os.pipe()
    memory = os.memfd_create("test")
    os.ftruncate(memory, child.SHARED)
    worker = serve._Worker("pyav", 1, None, memory, says)
    monkeypatch.setattr(child.signal, "setitimer", lambda *_: None)
    wanted = [VideoFrames(path).read(k, k + 5) for k in (0, 5, 10, 2)]
    for k, (start, opened) in enumerate(((0, 1), (5, 1), (10, 1), (2, 2))):
        request = {"path": path, "start": start, "shape": (5, 48, 64, 3), "limit": serve.asdict(serve.Limit(60.0))}
        assert worker.handle(request) == {} and len(passes) == opened
        assert np.array_equal(worker.pixels[: 5 * 48 * 64 * 3].reshape(5, 48, 64, 3), wanted[k])
    assert worker.handle({"path": path, "limit": serve.asdict(serve.Limit(60.0))})["info"]["num_frames"] == 20
    assert worker.blocks is None  # no file stays open for a pass that nobody goes on with
    for end in (told, says, memory):
        os.close(end)


def test_blocks_larger_than_the_shared_memory_and_frames_that_are_not_there(videos, monkeypatch):
    path, (height, width) = videos / "a.mp4", (48, 64)
    monkeypatch.setattr(child, "SHARED", 7 * height * width * 3)
    with Decoder(threads=1) as decoder:
        whole = decoder.block(path, 0, 20, (height, width))
        assert len(np.unique(whole)) > 10 and len(decoder._idle.queue[-1].pixels) == child.SHARED
        taken = np.empty_like(whole)
        Blocks(path, 1).read(0, taken)
        assert np.array_equal(whole, taken)
        with pytest.raises(VideoError, match="holds 20 frames, and 18 to 21 are asked for"):
            decoder.block(path, 18, 22, (height, width))
        large = decoder.block(videos / "b.mp4", 3, 4, (2160, 3840))  # one frame is more than the memory holds
        assert np.array_equal(large[0], VideoFrames(videos / "b.mp4").read(3, 4)[0])


def test_the_memory_of_a_pass_is_bounded_from_its_beginning(monkeypatch):
    sizes = iter((1000 * 2**20, 1900 * 2**20))
    monkeypatch.setattr(serve, "_address_space", lambda: (next(sizes), 0))
    before = serve._address_space()[0]
    bounds = serve._Memory(2**30, before)
    with bounds:
        pass
    assert bounds.bound == before + 2**30


# --- nobody else decodes ----------------------------------------------------------------------------------------------

READERS = {"read_frames", "probe", "timeline", "pictures", "decode_packets", "walk", "opened", "fetch_frames", "Blocks"}
IN_PROCESS = {"container", "decode", "fetch", "packet_order", "packets", "pictures", "timeline"}
"""Modules of `verl_stvg.video` whose functions decode in the process that calls them."""
FOREIGN = {"av", "decord", "torchcodec"}


@dataclass(frozen=True)
class Allowed:
    names: set[str]
    why: str


ALLOWED = {
    "verl_stvg/video/serve.py": Allowed({"Blocks", "probe", "read_frames", "av"}, "runs in the child"),
    "verl_stvg/video/limit.py": Allowed({"av"}, "measures this machine"),
    "verl_stvg/video/decode.py": Allowed(READERS | {"av"}, "called by the child"),
    "verl_stvg/video/fetch.py": Allowed(READERS | FOREIGN | {"VideoReader"}, "called by the child"),
    "verl_stvg/video/container.py": Allowed({"av"}, "called by the child"),
    "verl_stvg/video/packet_order.py": Allowed({"av", "opened"}, "called by the child"),
    "verl_stvg/video/packets.py": Allowed({"av", "opened"}, "called by the child"),
    "verl_stvg/video/pictures.py": Allowed(READERS | {"av"}, "called by the child"),
    "verl_stvg/video/timeline.py": Allowed({"walk"}, "called by the child"),
    "data_builders/objects/write.py": Allowed({"av"}, "writes files, opens none"),
    "data_builders/sets/synthetic_world.py": Allowed({"av"}, "writes files, opens none"),
    "data_builders/testing/tiny_model.py": Allowed({"read_frames"}, "reads clips that it has just written"),
}


def decoders_of(path: Path) -> set[str]:
    """What a module imports that decodes in its own process."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names} & FOREIGN
            found |= {alias.name for alias in node.names if alias.name.removeprefix("verl_stvg.video.") in IN_PROCESS}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.partition(".")[0] in FOREIGN:
                found.add(node.module.partition(".")[0])
            elif node.module == "verl_stvg.video":
                found |= {alias.name for alias in node.names} & IN_PROCESS
            elif node.module.removeprefix("verl_stvg.video.") in IN_PROCESS:
                found |= {alias.name for alias in node.names} & READERS
        elif isinstance(node, ast.Attribute) and node.attr in ("VideoCapture", "VideoReader", "VideoDecoder"):
            found.add(node.attr)
    return found


def test_no_other_module_decodes_in_its_own_process():
    sources = [path for folder in ("verl_stvg", "data_builders", "eval") for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): names for path in sources if (names := decoders_of(path))}
    nothing = Allowed(set(), "")
    wrong = {name: names - ALLOWED.get(name, nothing).names for name, names in found.items()}
    assert {name: names for name, names in wrong.items() if names} == {}
    assert ALLOWED.keys() <= found.keys()  # what is allowed and not done is taken off the list


# --- each file is opened once -----------------------------------------------------------------------------------------

_COUNT = """
import json, os, sys
from pathlib import Path
from verl_stvg.video import packets, serve

opened, given, av_open = [], [], packets.av.open
sys.addaudithook(lambda event, what: event == "open" and opened.append(str(what[0])))
packets.av.open = lambda file, *mode, **rest: given.append(isinstance(file, str)) or av_open(file, *mode, **rest)
says = os.open(os.devnull, os.O_WRONLY)
worker = serve._Worker("pyav", 1, None, -1, says)
for path in sys.argv[1:]:
    answer = worker.handle({"path": path, "content": True, "limit": serve.asdict(serve.Limit(60.0))})
    print(json.dumps([opened.count(path), sum(given), len(given), answer.get("content")]))
    given.clear()
"""


def test_a_video_is_opened_once_to_be_probed_and_hashed(videos, tmp_path, run_python):
    """By us, and not at all by FFmpeg; also where the pictures are decoded to find their order, and the first one."""
    paths = [videos / "a.mp4"]
    for name in ("cut_0.8", "edits_two", "copied_avi_mp4", "h264_mpg"):
        paths.append(tmp_path / f"{name}{KINDS[name].ending}")
        KINDS[name].write(paths[-1])
    lines = [json.loads(line) for line in run_python(_COUNT, *paths).stdout.splitlines()]
    assert [line[3] for line in lines] == [hash_file(str(path)) for path in paths]
    assert [line[:2] for line in lines] == [[1, 0]] * len(paths) and max(line[2] for line in lines) == 4


@given(data=st.binary(max_size=3000), reads=st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 900)), max_size=8))
def test_the_hash_on_the_way_is_that_of_the_file(tmp_path_factory, data, reads):
    path = tmp_path_factory.mktemp("hash") / "file"
    path.write_bytes(data)
    with path.open("rb", buffering=0) as raw:
        file = Hashed(raw)
        for place, count in reads:
            file.seek(place)
            assert file.read(count) == data[place : place + count]
        assert file.digest() == hash_file(str(path))
