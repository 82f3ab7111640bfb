"""What a node says of itself."""

from verl_stvg.launch import nodes


def test_a_folder_of_our_name_without_sources_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "reward_fns_of_data").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    stock = nodes.importlib.util.find_spec
    monkeypatch.setattr(nodes.importlib.util, "find_spec", lambda name: stock("reward_fns_of_data"))
    assert nodes.facts([], [])["code"] is None
