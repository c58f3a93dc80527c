"""Files that are never half-written, never lost, and never written over what others made."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sslpath.errors import ConfigError
from sslpath.files import atomic_path, check_writable_file, write_json

KILLED = (
    "import os, signal, sys; from sslpath.files import atomic_path\n"
    "with atomic_path(sys.argv[1]) as temporary:\n"
    "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
)


def write(target: Path, text: str = "whole") -> None:
    with atomic_path(target) as temporary:
        temporary.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run(code: str, *words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False
    )


def test_many_threads_may_write_one_file_at_a_time(tmp_path: Path) -> None:
    target, errors = tmp_path / "a.txt", []

    def work(text: str) -> None:
        try:
            for _ in range(50):
                write(target, text)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(str(i) * 5000,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert re.fullmatch(r"(\d)\1{4999}", target.read_text())
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="names are counted in characters there")
@pytest.mark.parametrize("suffix", ["", ".h5", "." + "x" * 100])
@pytest.mark.parametrize("letter", ["a", "雪", " "])
def test_a_name_as_long_as_the_file_system_takes_is_written(
    tmp_path: Path, letter: str, suffix: str
) -> None:
    for length in (190, 201, 220, 230, 255):
        stem = letter * ((length - len(suffix)) // len(letter.encode()))
        target = tmp_path / f"{stem}{suffix}"
        with atomic_path(target) as temporary:
            temporary.touch()
            if suffix == ".h5":  # by which a writer may choose a format
                assert temporary.suffix == ".h5"
        assert names(tmp_path) == [target.name]
        target.unlink()


@pytest.mark.skipif(os.name == "nt", reason="signals are of Unix")
def test_what_a_killed_process_left_of_a_long_name_is_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / f"{'x' * 250}.h5"
    run(KILLED, target)
    assert len(names(tmp_path)) == 1
    write(target)
    assert names(tmp_path) == [target.name]


def test_a_symbolic_link_stays_and_the_file_that_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    real, link = tmp_path / "big" / "real.txt", tmp_path / "link.txt"
    link.symlink_to(Path("big") / "real.txt")
    for text in ("made through the link", "replaced through the link"):
        write(link, text)
        assert link.is_symlink()
        assert real.read_text() == text
    assert names(tmp_path) == ["big", "link.txt"]
    assert names(tmp_path / "big") == ["real.txt"]


def test_a_folder_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    begun = False
    with pytest.raises(IsADirectoryError) as caught, atomic_path(tmp_path):
        begun = True
    assert not begun
    assert caught.value.filename == str(tmp_path)
    with pytest.raises(ConfigError, match="is a folder"):
        check_writable_file(tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ConfigError, match=f"no permission to write in {tmp_path}"):
            check_writable_file(tmp_path / "new" / "a.txt")
        with pytest.raises(PermissionError) as caught:
            write(tmp_path / "a.txt")
        assert caught.value.filename == str(tmp_path / "a.txt")
    finally:
        tmp_path.chmod(0o700)


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    check_writable_file(tmp_path / "deep" / "er" / "a.txt")
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is not a folder"):
        check_writable_file(tmp_path / "file" / "a.txt")


def test_a_folder_is_listed_once_however_many_files_are_written_into_it(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from sslpath.files import atomic_path
listed = 0
def hook(event, arguments):
    global listed
    listed += event in ("os.listdir", "os.scandir") and str(arguments[0]) == sys.argv[1]
sys.addaudithook(hook)
for i in range(200):
    with atomic_path(Path(sys.argv[1]) / f"{i}.txt") as temporary:
        temporary.touch()
print(listed)
"""
    done = run(code, tmp_path)
    assert done.stdout == "1\n", done.stderr
    assert len(names(tmp_path)) == 200


@pytest.mark.skipif(os.name == "nt", reason="signals are of Unix")
def test_nothing_but_temporary_files_of_sslpath_is_swept(tmp_path: Path) -> None:
    run(KILLED, tmp_path / "a.txt")
    (left,) = names(tmp_path)
    users = {
        ".a.notes.tmp.txt",
        ".a.host-123.tmp.txt",
        left.replace(".tmp", ".bak"),
        left[1:],  # not hidden
        f"{left}.txt",
        re.sub(r"\.[0-9a-f]{12}-", ".0123456789ab-", left),  # of another machine
    }
    for name in users:
        (tmp_path / name).touch()
    folder = left.replace(".a.", ".f.")
    (tmp_path / folder).mkdir()
    for name in ("a.txt", "f.txt"):
        write(tmp_path / name)
    assert set(names(tmp_path)) == users | {folder, "a.txt", "f.txt"}


def test_an_error_that_names_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "a.txt"):
        (tmp_path / "source.txt").read_bytes()
    assert caught.value.filename == str(tmp_path / "source.txt")
    assert names(tmp_path) == []


def test_json_is_written_below_folders_that_are_not_there_yet(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "folder" / "a.json", [1])
    assert (tmp_path / "new" / "folder" / "a.json").read_text() == "[\n 1\n]\n"
