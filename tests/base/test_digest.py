"""SHA-256 of files and folders."""

import hashlib

from verl_stvg.base.digest import sha256


def test_a_file_has_the_hash_of_its_bytes(tmp_path):
    data = bytes(range(256)) * 5000  # more than is read at once
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_folder_has_one_of_its_files_and_their_names(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "one").write_text("1")
    (tmp_path / "a" / "two").write_text("2")
    first = sha256(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "other")
    assert sha256(tmp_path / "other") == first
    (tmp_path / "other" / "two").rename(tmp_path / "other" / "three")
    assert sha256(tmp_path / "other") != first
