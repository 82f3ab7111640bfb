"""Names of models are found out at once: in folders, in the cache, or on the hub, which is asked a single time."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from verl_stvg.base.models import ModelNameError, located
from verl_stvg.cli.eval import eval_
from verl_stvg.cli.select import app as select_app
from verl_stvg.data_builders.objects.detect import detector
from verl_stvg.data_builders.objects.detector import ModelError
from verl_stvg.data_builders.objects.segment import Sam2Segmenter
from verl_stvg.data_builders.testing.tiny_parts import make_processor
from verl_stvg.inference import checkpoint, generate
from verl_stvg.inference.settings import Counts, Settings
from verl_stvg.launch.config_checks import unusable_files

NOBODY = "verl-stvg-tests/no-such-model"

HUB = {
    "org/good": (200, {}),
    "org/gated": (403, {"X-Error-Code": "GatedRepo"}),
    "org/none": (404, {"X-Error-Code": "RepoNotFound"}),
    "org/adapter": (404, {"X-Error-Code": "EntryNotFound"}),
    "org/broken": (500, {}),
}
"""What a hub answers, by name."""
SAID = {
    "org/gated": "wants to be asked for access",
    "org/none": "no such model on the hub",
    "org/adapter": "the hub has no config.json",
    "org/broken": "the hub does not answer",
}
ASK = """
import json, sys
from verl_stvg.base.models import located
found = {}
for name in json.loads(sys.argv[1]):
    try:
        found[name] = located(name)
    except ValueError as error:
        found[name] = f"refused: {error}"
print(json.dumps(found))
"""


@pytest.fixture
def hub():
    """A hub on this machine; its address, and the names that it was asked for."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):  # noqa: N802
            name = "/".join(self.path.split("/")[1:3])
            asked.append(name)
            code, headers = HUB[name]
            self.send_response(code)
            for key, value in {"ETag": '"1"', "X-Repo-Commit": "0" * 40, "Content-Length": "2", **headers}.items():
                self.send_header(key, value)
            self.end_headers()

        def log_message(self, *_):
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def test_the_hub_is_asked_once(hub, run_python, tmp_path):
    address, asked = hub
    done = run_python(ASK, json.dumps(list(HUB)), HF_ENDPOINT=address, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("org/good") == "org/good"
    for name, said in SAID.items():
        assert found[name].startswith(f"refused: {name}: ") and said in found[name]
    assert sorted(asked) == sorted(HUB)


@pytest.mark.parametrize("cached", [False, True])
def test_without_a_hub_the_remedy_is_named(run_python, tmp_path, cached):
    """Nobody listens at the address; and with the switch for it nobody is asked."""
    if cached:
        commit = "0" * 40
        snapshot = tmp_path / "hub/models--org--good"
        (snapshot / "refs").mkdir(parents=True)
        (snapshot / "refs/main").write_text(commit)
        (snapshot / "snapshots" / commit).mkdir(parents=True)
        (snapshot / "snapshots" / commit / "config.json").write_text("{}")
    there = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = run_python(ASK, '["org/good"]', **there, HF_HUB_OFFLINE="0")
    said = json.loads(done.stdout.splitlines()[-1])["org/good"]
    assert "the hub does not answer at http://127.0.0.1:1" in (done.stderr if cached else said)
    assert said == "org/good" if cached else "hf download org/good --local-dir" in said  # loaders take the cache
    elsewhere = run_python(ASK, '["org/other"]', **there, HF_HUB_OFFLINE="0", VERL_USE_MODELSCOPE="True")
    assert json.loads(elsewhere.stdout.splitlines()[-1]) == {"org/other": "org/other"}
    said = json.loads(run_python(ASK, '["org/good"]', **there, HF_HUB_OFFLINE="1").stdout.splitlines()[-1])["org/good"]
    assert said == "org/good" if cached else "HF_HUB_OFFLINE is set, and the cache" in said


def test_folders(tmp_path, monkeypatch):
    (tmp_path / "models/tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNameError, match=r"models/tiny holds no model \(config.json\)"):
        located("models/tiny")
    (tmp_path / "models/tiny/config.json").write_text("{}")
    assert located("models/tiny") == "models/tiny" and located(str(tmp_path / "models/tiny"))
    for wrong in ("./models/tiiny", f"{tmp_path}/models/tinny", "./modells/tiny", "~/models/tiny/x/y"):
        with pytest.raises(ModelNameError, match="no such folder"):
            located(wrong)
    with pytest.raises(ModelNameError, match=rf"did you mean {tmp_path}/models/tiny\?"):
        located("./modells/tiny")
    assert located("hdfs://somewhere/model") == "hdfs://somewhere/model"


@pytest.mark.parametrize("name", [NOBODY, "./no/such/folder"])
def test_nothing_is_written_before_the_model_is_found(rows, tmp_path, name):
    out, file = tmp_path / "out", str(rows / "val.parquet")
    for command, arguments in ((select_app, ["difficulty", file]), (select_app, ["reflect", file])):
        done = CliRunner().invoke(command, [*arguments, "--out", str(out), "--model", name])
        assert isinstance(done.exception, ModelNameError) and name in str(done.exception)
    with pytest.raises(ModelNameError, match=name):
        eval_(rows=[rows / "val.parquet"], model=name, out=out)
    with pytest.raises(ModelNameError, match=name):
        checkpoint.resolve(name)
    assert not out.exists()


@pytest.mark.parametrize("name", [NOBODY, "./no/such/folder"])
def test_a_run_is_refused(rows, name):
    file = str(rows / "val.parquet")
    model = {"actor_rollout_ref": {"model": {"path": name}}, "reward": {"custom_reward_function": {"path": None}}}
    config = OmegaConf.create({**model, "data": {"train_files": file, "val_files": [file], "prompt_key": "prompt"}})
    (said,) = unusable_files(config)
    assert said.startswith(f"actor_rollout_ref.model.path: {name}: no such folder")


def test_models_of_objects():
    for name in (f"huggingface:{NOBODY}", "huggingface:./no/such/folder"):
        with pytest.raises(ModelNameError, match="no such folder"):
            detector(name)
    with pytest.raises(ModelError, match="no SAM 2 model of the hub; they are .*facebook/sam2.1-hiera-large"):
        Sam2Segmenter.load(NOBODY)


def test_a_processor_is_not_loaded_where_nothing_is_asked(rows, tmp_path, monkeypatch):
    """What a chat template leaves open is on record once all rows are answered."""
    model = tmp_path / "model"
    make_processor().save_pretrained(model)
    (model / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    (model / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(generate, "_complete", _answer_all)
    asked = Settings(str(model), limit=3)
    out, counts = tmp_path / "out", Counts(3, 0, 0)
    assert generate.generate([rows / "val.parquet"], out, asked) == counts
    shutil.rmtree(model)
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    (model / "model.safetensors").write_bytes(b"")
    assert generate.generate([rows / "val.parquet"], out, asked) == counts


def _answer_all(path, rows, done, settings, engine):
    texts = [generate.Answer(row["extra_info"]["uid"], ("text",), ("stop",), (1,)) for row in rows]
    generate.answers.append(path, texts)
