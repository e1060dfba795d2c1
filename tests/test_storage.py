"""Writing never costs the old files: not when the disk is full, the folder read-only, or the writer fails half-way."""

import errno
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_adapter import reading, storage
from pruning_adapter.errors import CheckpointError, OutputError
from pruning_adapter.run_folder import clear_leftovers
from pruning_adapter.storage import (
    read_json,
    replace_file,
    replace_folder,
    write_json,
    write_text,
    write_through_memory,
)

KIND = "made-up kind"


def fail(code: int) -> Callable[..., Any]:
    """A function of the system that fails."""

    def failing(*args: Any, **kwargs: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return failing


def tree(folder: Path) -> dict[str, str]:
    """All files below `folder`, hidden ones too, with their content."""
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def cannot_exchange(first: Path, second: Path) -> bool:
    """As on a system without such a call."""
    return False


def write_two_files(folder: Path) -> None:
    with replace_folder(folder) as aside:
        (aside / "new.txt").write_text("new", encoding="utf-8")
        (aside / "deep").mkdir()
        (aside / "deep" / "new.txt").write_text("deep", encoding="utf-8")


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "file.json"
    path.write_text("old", encoding="utf-8")
    return path


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old.txt").write_text("old", encoding="utf-8")
    return folder


# ---- one file


def test_a_file_is_replaced(old_file: Path) -> None:
    with replace_file(old_file) as aside:
        assert aside.parent == old_file.parent
        assert aside.suffix == old_file.suffix
        aside.write_text("new", encoding="utf-8")
        assert old_file.read_text(encoding="utf-8") == "old"
    assert tree(old_file.parent) == {"file.json": "new"}


def test_a_file_is_written_into_folders_that_do_not_exist_yet(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "new\n")
    assert tree(tmp_path) == {"a/b/c.txt": "new\n"}


def test_text_is_written_as_utf8(tmp_path: Path) -> None:
    write_text(str(tmp_path / "c.txt"), "ξ ≠ 0")
    assert (tmp_path / "c.txt").read_bytes() == "ξ ≠ 0".encode()


def test_a_new_file_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "c.txt", "")
        write_two_files(tmp_path / "folder")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "c.txt", tmp_path / "folder")}
    assert modes == {"c.txt": 0o640, "folder": 0o750}
    assert (tmp_path / "folder" / "deep" / "new.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_the_old_file_and_no_other(old_file: Path, error: BaseException) -> None:
    def write() -> None:
        with replace_file(old_file) as aside:
            aside.write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(type(error)):
        write()
    assert tree(old_file.parent) == {"file.json": "old"}


@pytest.mark.parametrize(
    ("module", "function", "code", "message"),
    [
        (os, "fsync", errno.ENOSPC, "No space left on device"),
        (Path, "write_text", errno.ENOSPC, "No space left on device"),
        (Path, "replace", errno.ENOSPC, "No space left on device"),
        (Path, "replace", errno.EIO, "Input/output error"),
        (tempfile, "mkstemp", errno.EROFS, "Read-only file system"),
        (tempfile, "mkstemp", errno.EACCES, "Permission denied"),
        (Path, "mkdir", errno.EACCES, "Permission denied"),
    ],
)
def test_a_file_that_cannot_be_written_leaves_the_old_one(
    old_file: Path, monkeypatch: pytest.MonkeyPatch, module: object, function: str, code: int, message: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, function, fail(code))
        with pytest.raises(
            OutputError, match=rf"Cannot write .*file\.json: {message}\. What was there before is untou"
        ):
            write_text(old_file, "new")
    assert tree(old_file.parent) == {"file.json": "old"}


def test_a_folder_in_the_files_place_stays(old_folder: Path) -> None:
    with pytest.raises(OutputError, match=r"Cannot write .*folder: .*directory"):
        write_text(old_folder, "new")
    assert tree(old_folder.parent) == {"folder/old.txt": "old"}


def test_a_file_in_the_folders_way_stays(old_file: Path) -> None:
    with pytest.raises(OutputError, match=r"Cannot write .*plan\.json: "):
        write_text(old_file / "plan.json", "new")
    assert tree(old_file.parent) == {"file.json": "old"}


# ---- a folder


def test_a_folder_is_replaced_as_a_whole(old_folder: Path) -> None:
    write_two_files(old_folder)
    assert tree(old_folder.parent) == {"folder/new.txt": "new", "folder/deep/new.txt": "deep"}
    assert [path.name for path in old_folder.parent.iterdir()] == ["folder"]


def test_the_old_folder_is_there_until_the_new_one_is_complete(old_folder: Path) -> None:
    with replace_folder(old_folder) as aside:
        assert list(aside.iterdir()) == []
        (aside / "new.txt").write_text("new", encoding="utf-8")
        assert tree(old_folder) == {"old.txt": "old"}
    assert tree(old_folder) == {"new.txt": "new"}


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    write_two_files(tmp_path / "a" / "b")
    assert set(tree(tmp_path)) == {"a/b/new.txt", "a/b/deep/new.txt"}


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_the_old_folder_and_no_other(old_folder: Path, error: BaseException) -> None:
    def write() -> None:
        with replace_folder(old_folder) as aside:
            (aside / "new.txt").write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(type(error)):
        write()
    assert tree(old_folder.parent) == {"folder/old.txt": "old"}
    assert [path.name for path in old_folder.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("error", [OutputError("disk"), CheckpointError("file")])
def test_our_own_errors_pass_through_a_folder(old_folder: Path, error: Exception) -> None:
    with pytest.raises(type(error), match=f"^{error}$"), replace_folder(old_folder):
        raise error


@pytest.mark.parametrize(
    ("module", "function", "code", "message"),
    [
        (os, "fsync", errno.ENOSPC, "No space left on device"),
        (Path, "write_text", errno.ENOSPC, "No space left on device"),
        (Path, "rename", errno.EACCES, "Permission denied"),
        (tempfile, "mkdtemp", errno.EROFS, "Read-only file system"),
    ],
)
def test_a_folder_that_cannot_be_written_leaves_the_old_one(
    old_folder: Path, monkeypatch: pytest.MonkeyPatch, module: object, function: str, code: int, message: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, function, fail(code))
        patch.setattr(storage, "_exchange", cannot_exchange)
        with pytest.raises(
            OutputError, match=rf"Cannot write .*folder: {message}\. What was there before is untouched"
        ):
            write_two_files(old_folder)
    assert tree(old_folder.parent) == {"folder/old.txt": "old"}
    assert [path.name for path in old_folder.parent.iterdir()] == ["folder"]


def fail_to_rename(monkeypatch: pytest.MonkeyPatch, *, calls: set[int], error: BaseException) -> None:
    """Let the calls of `Path.rename` with these numbers fail: 1 puts the old folder aside, 2 the new one in its place,
    and 3 brings the old one back."""
    monkeypatch.setattr(storage, "_exchange", cannot_exchange)
    rename, number = Path.rename, 0

    def counted(self: Path, target: Path) -> Path:
        nonlocal number
        number += 1
        if number in calls:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", counted)


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(
    old_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_rename(monkeypatch, calls={2}, error=OSError(errno.EIO, "Input/output error"))
    with pytest.raises(OutputError, match=r"Input/output error\. What was there before is untouched"):
        write_two_files(old_folder)
    assert tree(old_folder.parent) == {"folder/old.txt": "old"}


def test_the_old_folder_comes_back_after_an_interrupt(old_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_rename(monkeypatch, calls={2}, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write_two_files(old_folder)
    assert tree(old_folder.parent) == {"folder/old.txt": "old"}


def test_the_old_folder_is_kept_and_named_if_it_cannot_come_back(
    old_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_rename(monkeypatch, calls={2, 3}, error=OSError(errno.EIO, "Input/output error"))
    with pytest.raises(OutputError, match=r"Input/output error\. What was there before is in .*\.old\."):
        write_two_files(old_folder)
    (left,) = old_folder.parent.iterdir()
    assert tree(left) == {"old.txt": "old"}


def test_a_file_is_not_replaced_by_a_folder(old_file: Path) -> None:
    with pytest.raises(OutputError, match=r"file\.json is a file, where a folder is to be written; name another place"):
        write_two_files(old_file)
    assert tree(old_file.parent) == {"file.json": "old"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such call")
def test_no_moment_is_without_a_folder(old_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call changes the two; the renames that need a moment between them are not asked."""
    monkeypatch.setattr(Path, "rename", fail(errno.EIO))
    write_two_files(old_folder)
    assert tree(old_folder.parent) == {"folder/deep/new.txt": "deep", "folder/new.txt": "new"}


@pytest.mark.parametrize("system", ["Linux", "another"])
def test_a_link_is_replaced_and_what_it_points_to_stays(
    old_folder: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    if system == "another":
        monkeypatch.setattr(storage, "_exchange", cannot_exchange)
    link = old_folder.with_name("link")
    link.symlink_to(old_folder)
    write_two_files(link)
    assert not link.is_symlink()
    assert tree(link) == {"new.txt": "new", "deep/new.txt": "deep"}
    assert tree(old_folder) == {"old.txt": "old"}
    assert {path.name for path in link.parent.iterdir()} == {"folder", "link"}


MARK = "unfinished-by-pruning-adapter-"


def names_aside(target: Path) -> set[str]:
    """What stands beside `target` while it is written, and something within that."""
    with replace_file(target) if target.suffix else replace_folder(target) as aside:
        if target.suffix:
            with replace_file(aside) as deeper:
                return {aside.name, deeper.name}
        with replace_folder(aside) as deeper:
            return {aside.name, deeper.name}


def test_what_a_killed_process_left_goes_and_nothing_else(old_folder: Path) -> None:
    folder, targets = old_folder.parent, ("folder", "plan.json", "model.pt2", "model.onnx")
    asides = {name for target in targets for name in names_aside(folder / target)}
    assert len(asides) == 8
    (old_folder / "old.txt").write_text("old", encoding="utf-8")
    asides.add(f".folder.{MARK}efgh4567.old")
    others = {
        ".folder.mine",
        ".folder.abcd_123",
        f".other.{MARK}abcd_123",
        f".plan.json.{MARK}abcd_123.txt",
        f"folder.{MARK}abcd_123",
        f".plan.json.{MARK}abcd_123x.json",
    }
    for name in (*asides, *others):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "file").write_text("half", encoding="utf-8")
    storage.remove_leftovers(folder, targets)
    assert {path.name for path in folder.iterdir()} - set(targets) == others
    assert tree(old_folder) == {"old.txt": "old"}


def test_a_users_hidden_files_beside_those_of_a_run_stay(tmp_path: Path) -> None:
    """Such names were once taken for those of files that a killed run had left."""
    files = (".plan.json.original", ".result.json.20260131", ".merged.previous/model.safetensors", ".base.download/x")
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine", encoding="utf-8")
    clear_leftovers(tmp_path)
    assert tree(tmp_path) == dict.fromkeys(files, "mine")


def test_an_old_folder_that_stepped_aside_comes_back(old_folder: Path) -> None:
    old_folder.rename(old_folder.with_name(f".folder.{MARK}abcd_123.old"))
    storage.remove_leftovers(old_folder.parent, {"folder"})
    assert tree(old_folder) == {"old.txt": "old"}


def test_removing_a_link_leaves_what_it_points_to(old_folder: Path) -> None:
    link = old_folder.with_name("link")
    link.symlink_to(old_folder)
    storage.remove(link)
    storage.remove(old_folder.with_name("nothing"))
    assert [path.name for path in link.parent.iterdir()] == ["folder"]
    assert tree(old_folder) == {"old.txt": "old"}


def test_what_is_written_through_memory_is_all_there_or_an_error_of_the_system(old_file: Path) -> None:
    write_through_memory(old_file, lambda file: file.write(b"new"))
    assert old_file.read_text(encoding="utf-8") == "new"
    with pytest.raises(OSError, match="Not a directory"):
        write_through_memory(old_file / "below", lambda file: file.write(b"new"))


# ---- JSON

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.text(alphabet='[]{}",:\\\n\t 1ab'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='[]{}",\n1a'), inner),
    max_leaves=20,
)


@given(VALUES)
def test_any_json_value_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, {"kind": KIND, "value": value})
    assert read_json(path, kind=KIND)["value"] == value
    # What is shown on one line is nothing but another way to write the same.
    assert json.loads(path.read_text(encoding="utf-8")) == {"kind": KIND, "value": value}


def test_lists_of_numbers_and_names_are_on_one_line(tmp_path: Path) -> None:
    value = {
        "heads": [[0, 1, 10], [], [2]],
        "scores": [0.5, -1e-09],
        "mixed": [True, None, "key"],
        "texts": ["a b", "[1, 2]"],
    }
    write_json(tmp_path / "value.json", value)
    assert (tmp_path / "value.json").read_text(encoding="utf-8") == (
        "{\n"
        '  "heads": [\n'
        "    [ 0, 1, 10 ],\n"
        "    [],\n"
        "    [ 2 ]\n"
        "  ],\n"
        '  "scores": [ 0.5, -1e-09 ],\n'
        '  "mixed": [ true, null, "key" ],\n'
        '  "texts": [\n'
        '    "a b",\n'
        '    "[1, 2]"\n'
        "  ]\n"
        "}\n"
    )


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_json_cannot_say_is_not_written(old_file: Path, number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(old_file, {"value": number})
    assert tree(old_file.parent) == {"file.json": "old"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is not readable as a made-up kind \(Expecting value.*\): it is damaged or cut short\. Make it again"),
        (b'{"kind": "made-up kind"', "damaged or cut short"),
        (b'{"kind": "made-up kind"} {}', "damaged or cut short"),
        (b"\x80\x04\x95", r"is not readable as a made-up kind \('utf-8' codec"),
        (b'{"kind": ' + b"[" * 100_000, "damaged or cut short"),
        (b'{"kind": "another"}', r"holds 'another' where a 'made-up kind' was expected\. Was another file meant\?"),
        (b"{}", "holds None where a 'made-up kind' was expected"),
        (b'["made-up kind"]', "holds 'list' where a 'made-up kind' was expected"),
        (b'"made-up kind"', "holds 'str' where"),
        (b"null", "holds 'NoneType' where"),
    ],
    ids=["empty", "cut short", "two", "binary", "deep", "another kind", "no kind", "list", "string", "null"],
)
def test_files_that_are_no_such_json_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"file\.json .*{message}"):
        read_json(path, kind=KIND)


def test_a_file_that_an_editor_marked_as_utf8_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"kind": KIND, "name": "ξ"}, ensure_ascii=False), encoding="utf-8-sig")
    assert read_json(path, kind=KIND)["name"] == "ξ"


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    with path.open("wb") as file:
        file.truncate(reading.MAX_JSON_BYTES + 1)
    monkeypatch.setattr(Path, "open", fail(errno.EIO))
    with pytest.raises(CheckpointError, match=r"is larger than 67108864 bytes: this is not a made-up kind file"):
        read_json(path, kind=KIND)


def test_a_file_that_is_not_there_or_is_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Cannot read the made-up kind .*none\.json: No such file"):
        read_json(tmp_path / "none.json", kind=KIND)
    with pytest.raises(CheckpointError, match=r"Cannot read the made-up kind .*: Is a directory"):
        read_json(tmp_path, kind=KIND)


@pytest.mark.parametrize("link", ["/dev/zero", "/dev/full"])
def test_a_link_to_a_device_is_refused_unread(tmp_path: Path, link: str) -> None:
    (tmp_path / "file.json").symlink_to(link)
    with pytest.raises(CheckpointError, match=r"file\.json is no ordinary file, nor a link to one"):
        read_json(tmp_path / "file.json", kind=KIND)


def test_a_pipe_is_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "file.json")
    with pytest.raises(CheckpointError, match=r"file\.json is no ordinary file"):
        read_json(tmp_path / "file.json", kind=KIND)


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    """The cache of the Hub consists of such."""
    write_json(tmp_path / "blob", {"kind": KIND})
    (tmp_path / "file.json").symlink_to(tmp_path / "blob")
    assert read_json(tmp_path / "file.json", kind=KIND) == {"kind": KIND}


@pytest.mark.parametrize("depth", [101, 900])
def test_json_that_is_nested_too_deeply_is_refused(tmp_path: Path, depth: int) -> None:
    """Deeper than those who copy it and write it again can go, though it is read."""
    (tmp_path / "file.json").write_text(f'{{"kind": "{KIND}", "a": {"[" * depth}{"]" * depth}}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="nested more than 100 times"):
        read_json(tmp_path / "file.json", kind=KIND)


def test_a_folder_that_is_taken_away_never_bears_its_name_with_a_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "start"
    folder.mkdir()
    (folder / "model").touch()

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            storage.take_away(folder)
    assert not folder.exists()
    assert len(list(tmp_path.iterdir())) == 1
    clear_leftovers(tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_is_taken_away_is_gone(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder", target_is_directory=True)
    storage.take_away(tmp_path / "link")
    assert (tmp_path / "folder" / "inner").is_dir()
    for name in ("folder", "file", "nothing"):
        storage.take_away(tmp_path / name)
    assert not any(tmp_path.iterdir())
