"""`fastemo download ravdess`, against a server of Zenodo's shape on this machine."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import command, wait_until
from zenodo import Zenodo, archive_of, serving, zipped

from fastemo.cli import main
from fastemo.console import Console
from fastemo.corpus.download import ravdess, unpacking
from fastemo.corpus.download import zenodo as client
from fastemo.corpus.download.ravdess import Wanted, download_ravdess, parse_actors
from fastemo.corpus.files.finding import find_files
from fastemo.errors import UserError

ONE, TWO = "Video_Speech_Actor_01.zip", "Video_Speech_Actor_02.zip"
STATE = ".fastemo-download"


@pytest.fixture(scope="module")
def archives() -> dict[str, bytes]:
    """Of actors 1, 2 and 18; the first archive is larger than any buffer on its way."""
    speech = {f"Video_Speech_Actor_{actor:02d}.zip": archive_of(actor) for actor in (2, 18)}
    return {ONE: archive_of(1, num_bytes=500_000), "Video_Song_Actor_01.zip": archive_of(1, 2)} | speech


@pytest.fixture
def server(archives: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Zenodo]:
    with serving(archives) as zenodo:
        monkeypatch.setenv("FASTEMO_RAVDESS_RECORD", zenodo.url)
        yield zenodo


@pytest.fixture
def download(server: Zenodo, tmp_path: Path):
    """Downloads actors 1 and 2 to a folder in this process; `waits` holds the seconds that it would have waited."""
    waits: list[float] = []

    def run(**options) -> Path:
        wanted = Wanted(**{"actors": "1,2"} | options)
        download_ravdess(tmp_path / "corpus", wanted, Console(), yes=True, wait=waits.append)
        return tmp_path / "corpus"

    run.waits = waits
    return run


def tree(root: Path) -> dict[str, bytes]:
    """Content by path, without the command's own records."""
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    assert all(name.endswith(".zip.json") for name in files if name.startswith(STATE))
    return {name: path.read_bytes() for name, path in sorted(files.items()) if not name.startswith(STATE)}


def content(*archives: bytes) -> dict[str, bytes]:
    """Content by path of what archives hold."""
    found = {}
    for archive in archives:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            found |= {name: opened.read(name) for name in opened.namelist()}
    return dict(sorted(found.items()))


def words(root: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "fastemo.cli", "download", "ravdess", "--root", str(root), "--yes", *options]


class TestCommand:
    def test_the_corpus_that_index_reads(self, server: Zenodo, tmp_path: Path, master: Path) -> None:
        video, root = master.read_bytes(), tmp_path / "new" / "RAVDESS"
        takes = ("01-01-03-01-01-01-01", "02-01-03-01-01-01-01")
        members = {f"Actor_01/{take}.mp4": video for take in takes} | {"Actor_01/": b"", "__MACOSX/._x": b"x"}
        server.archives = {ONE: zipped(members)}
        done = command(*words(root, "--actors", "1"))
        assert (done.returncode, done.stderr) == (0, "")
        first, *lines = done.stdout.splitlines()
        assert first.startswith(f"RAVDESS, licence CC-BY-NC-SA-4.0, from {server.url}: 1 archives, ")
        assert lines == [f"{ONE}: 2 clips, 1 other files left out", f"{root}: 1 of 1 archives complete"]
        assert tree(root) == {f"Actor_01/{take}.mp4": video for take in takes}
        done = command(sys.executable, "-m", "fastemo.cli", "index", root)
        assert "2 clips, 0 unlabelled, 0 rejected" in done.stdout.splitlines()[-1]
        done = command(*words(root, "--actors", "1"))
        assert done.stdout == f"{root}: 1 of 1 archives complete\n"
        assert [name for name, _ in server.requests] == [ONE]

    def test_without_a_terminal_it_asks_for_yes(self, server: Zenodo, tmp_path: Path) -> None:
        done = command(*words(tmp_path / "corpus", "--actors", "1")[:-3], "--actors", "1")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "--yes" in done.stderr
        assert not (tmp_path / "corpus").exists()
        assert server.requests == []

    @pytest.mark.parametrize(("answer", "is_yes"), [(b"y\n", True), (b"\n", False)])
    def test_on_a_terminal_it_asks(self, server: Zenodo, tmp_path: Path, answer: bytes, is_yes: bool) -> None:
        terminal, end = pty.openpty()
        os.write(terminal, answer)
        line = [word for word in words(tmp_path / "corpus", "--actors", "2") if word != "--yes"]
        done = subprocess.run(line, stdin=end, capture_output=True, text=True, timeout=60)
        os.close(terminal), os.close(end)
        assert (done.returncode, done.stderr) == (0, "")
        assert "[y/N]" in done.stdout
        assert (tmp_path / "corpus").exists() == is_yes == bool(server.requests)
        assert ("nothing was downloaded" in done.stdout) == (not is_yes)

    def test_a_dry_run_downloads_nothing(self, server: Zenodo, tmp_path: Path, capsys) -> None:
        main(["download", "ravdess", "--root", str(tmp_path / "corpus"), "--actors", "1,2", "--dry-run"])
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines[:2]] == [ONE, TWO]
        assert all(line.endswith("  0 MiB downloaded") for line in lines[:2])
        assert "2 archives, 1.9 MiB to download" in lines[2]
        assert "CC-BY-NC-SA-4.0" in lines[2]
        assert not (tmp_path / "corpus").exists()
        assert server.requests == []

    @pytest.mark.parametrize(
        ("options", "names"),
        [
            (("--actors", "1-2"), [ONE, TWO]),
            (("--actors", "2,18", "--song", "--no-speech"), None),  # the record lacks song by actor 2
            (("--actors", "1", "--song"), [ONE, "Video_Song_Actor_01.zip"]),
            (("--actors", "18", "--song"), ["Video_Speech_Actor_18.zip"]),
            (("--actors", "1", "--song", "--no-speech"), ["Video_Song_Actor_01.zip"]),
        ],
    )
    def test_selection(self, server: Zenodo, tmp_path: Path, capsys, options, names) -> None:
        try:
            main(["download", "ravdess", "--root", str(tmp_path), "--dry-run", *options])
        except SystemExit:
            assert names is None
            assert "lacks Video_Song_Actor_02.zip" in capsys.readouterr().err
        else:
            lines = capsys.readouterr().out.splitlines()
            assert [line.split()[0] for line in lines if "  " in line] == names
            assert ("note: actor 18 recorded no song" in lines) == ("18" in options)

    @pytest.mark.parametrize(
        ("options", "part"),
        [
            (("--actors", "0"), "--actors is '0', allowed are 1 to 24"),
            (("--actors", "4-1"), "--actors is '4-1'"),
            (("--actors", "1,,2"), "--actors is '1,,2'"),
            (("--no-speech",), "--no-speech needs --song"),
            (("--no-speech", "--song", "--actors", "18"), "nothing is selected"),
        ],
    )
    def test_selections_that_make_no_sense(self, server: Zenodo, tmp_path: Path, capsys, options, part) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["download", "ravdess", "--root", str(tmp_path), *options])
        assert ended.value.code == 2
        assert part in capsys.readouterr().err

    def test_it_needs_no_torch(self, server: Zenodo, tmp_path: Path) -> None:
        program = "import sys; from fastemo.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
        done = command(sys.executable, "-c", program, *words(tmp_path, "--actors", "2")[3:])
        assert done.stdout.splitlines()[-1] == "False"


def test_lists_of_actors() -> None:
    assert parse_actors("1,3,7-9, 8-10") == [1, 3, 7, 8, 9, 10]
    assert parse_actors("1-24") == [*range(1, 25)]


class TestInterrupted:
    """At six places; the same command then ends in the tree of one that nothing interrupted."""

    def killed(self, server: Zenodo, root: Path, program: str = "") -> None:
        """Run the command until the server holds a response back, or the program kills itself."""
        line = words(root, "--actors", "1,2")
        if program:
            line[1:3] = ["-c", f"{program}\nfrom fastemo.cli import main; import sys; main(sys.argv[1:])"]
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
        if server.hold:
            assert server.held.wait(60)
            if ONE in server.hold:
                wait_until(lambda: size_of(root / f"{ONE}.part") > 500_000, 60)
            process.kill()
        assert process.wait(60) == -signal.SIGKILL
        server.hold.clear()
        server.release.set()

    def again(self, root: Path, archives: dict[str, bytes]) -> None:
        assert command(*words(root, "--actors", "1,2")).returncode == 0
        assert tree(root) == content(archives[ONE], archives[TWO])

    def test_during_the_list(self, server: Zenodo, tmp_path: Path, archives) -> None:
        server.hold["record"] = 20
        self.killed(server, tmp_path / "corpus")
        assert not (tmp_path / "corpus").exists()
        self.again(tmp_path / "corpus", archives)

    def test_mid_archive_killed(self, server: Zenodo, tmp_path: Path, archives) -> None:
        server.hold[ONE] = 600_000
        self.killed(server, tmp_path)
        self.again(tmp_path, archives)
        starts = [start for name, start in server.requests if name == ONE]
        assert starts[0] == 0
        assert len(starts) == 2
        assert 500_000 < starts[1] <= 600_000
        assert server.sent[ONE] <= len(archives[ONE]) + 100_000
        assert server.sent[TWO] <= 2 * len(archives[TWO])

    def test_mid_archive_by_a_connection_that_drops(self, server: Zenodo, download, archives) -> None:
        server.faults[ONE] = [200_000, 0, 0, 0, 0]
        with pytest.raises(UserError, match=rf"{ONE}: .*\(5 times\).*the same command resumes"):
            download()
        assert download.waits == [1, 2, 4, 8]
        root = download()
        assert tree(root) == content(archives[ONE], archives[TWO])
        assert [start for name, start in server.requests if name == ONE] == [0, *[200_000] * 5]
        assert server.sent[ONE] == len(archives[ONE])

    def test_between_verification_and_unpacking(self, server: Zenodo, tmp_path: Path, archives) -> None:
        program = (
            "import os; from fastemo.corpus.download import ravdess; unpack = ravdess.unpack\n"
            f"ravdess.unpack = lambda *they: os.kill(os.getpid(), 9) if they[1] == '{ONE}' else unpack(*they)"
        )
        self.killed(server, tmp_path, program)
        assert not list(tmp_path.glob("Actor_01"))
        self.again(tmp_path, archives)
        assert server.sent[ONE] == len(archives[ONE])

    def test_mid_unpacking(self, server: Zenodo, tmp_path: Path, archives) -> None:
        program = (
            "import os; from fastemo.corpus.download import unpacking; left = [3]; replace = os.replace\n"
            "def dying(*paths):\n"
            "    left[0] -= str(paths[0]).endswith('.clip')\n"
            "    replace(*paths) if left[0] else os.kill(os.getpid(), 9)\n"
            "unpacking.os.replace = dying"
        )
        self.killed(server, tmp_path, program)
        whole = content(archives[ONE], archives[TWO])
        clips = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.glob("Actor_*/*")}
        assert 0 < len(clips) < len(whole)
        assert clips.items() <= whole.items()
        assert not find_files(tmp_path)[0][len(clips) :]  # what is not complete is not seen
        self.again(tmp_path, archives)

    def test_mid_record(self, server: Zenodo, tmp_path: Path, archives) -> None:
        self.killed(
            server, tmp_path, "import os; from pathlib import Path; Path.replace = lambda *_: os.kill(os.getpid(), 9)"
        )
        assert list((tmp_path / STATE).glob(".*"))
        self.again(tmp_path, archives)

    def test_by_the_user(self, server: Zenodo, tmp_path: Path, archives) -> None:
        server.hold[ONE] = 600_000
        process = subprocess.Popen(words(tmp_path, "--actors", "1,2"), stderr=subprocess.PIPE, text=True)
        assert server.held.wait(60)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=120)[1] == "fastemo: stopped by SIGINT; the same command resumes\n"
        assert process.returncode == 130
        server.hold.clear()
        self.again(tmp_path, archives)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


class TestServer:
    def test_a_dropped_connection_is_resumed_where_it_ended(self, server: Zenodo, download, archives) -> None:
        server.faults[ONE] = [100_000, 300_000]
        assert tree(download()) == content(archives[ONE], archives[TWO])
        assert [start for name, start in server.requests if name == ONE] == [0, 100_000, 400_000]
        assert download.waits == [1, 2]
        assert server.sent[ONE] == len(archives[ONE])

    def test_tries_are_counted_anew_after_progress(self, server: Zenodo, download, monkeypatch, archives) -> None:
        monkeypatch.setattr(client, "_PROGRESS", 100_000)
        server.faults[ONE] = [*range(100_000, 109_000, 1000), 99_000, 0]
        assert tree(download()) == content(archives[ONE], archives[TWO])
        assert download.waits == [1] * 9 + [2, 4]

    def test_a_server_that_ignores_ranges(self, server: Zenodo, download, archives) -> None:
        server.faults[ONE] = [100_000, "whole"]
        assert tree(download()) == content(archives[ONE], archives[TWO])
        assert [start for name, start in server.requests if name == ONE] == [0, 100_000]

    @pytest.mark.parametrize("size", [500_000, "complete", "larger"])
    def test_a_partial_file_of_something_else(self, server: Zenodo, download, tmp_path, archives, size, capsys) -> None:
        (tmp_path / "corpus").mkdir()
        length = {"complete": len(archives[ONE]), "larger": len(archives[ONE]) + 5}.get(size, size)
        (tmp_path / "corpus" / f"{ONE}.part").write_bytes(bytes(length))
        assert tree(download()) == content(archives[ONE], archives[TWO])
        assert f"{ONE}: wrong MD5 sum; it is downloaded again" in capsys.readouterr().out

    def test_a_range_that_the_server_does_not_have(self, server: Zenodo, download, tmp_path, archives) -> None:
        (tmp_path / "corpus").mkdir()
        (tmp_path / "corpus" / f"{ONE}.part").write_bytes(archives[ONE][:1000])
        server.faults[ONE] = [(416, {})]
        assert tree(download()) == content(archives[ONE], archives[TWO])
        assert [start for name, start in server.requests if name == ONE] == [1000, 0]

    def test_busy_servers_are_asked_again_when_they_say(self, server: Zenodo, download, archives) -> None:
        then = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=100), usegmt=True)
        server.faults["record"] = [(429, {"Retry-After": "59"}), (503, {"Retry-After": then}), (500, {})]
        root = download(actors="2")
        assert download.waits[0] == 59
        assert 60 < download.waits[1] <= 100
        assert download.waits[2:] == [4]
        assert tree(root) == content(archives[TWO])

    def test_but_not_for_ever(self, server: Zenodo, download) -> None:
        server.faults["record"] = [(502, {})] * 9
        with pytest.raises(UserError, match=r"answers 502 Bad Gateway \(5 times\)"):
            download()
        assert download.waits == [1, 2, 4, 8]
        server.faults["record"] = [(429, {"Retry-After": "86400"})]
        with pytest.raises(UserError, match="asks to wait for 86400 s"):
            download()

    def test_no_network(self, download, monkeypatch, tmp_path) -> None:
        with serving({}) as gone:
            pass
        monkeypatch.setenv("FASTEMO_RAVDESS_RECORD", gone.url)
        with pytest.raises(UserError, match=rf"the record: .*[Cc]onnect.*{gone.url}.*check the network"):
            download()
        assert not (tmp_path / "corpus").exists()

    @pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "file:///etc/passwd", "record.json", "http://x:y/"])
    def test_addresses_of_another_kind(self, download, monkeypatch, url) -> None:
        monkeypatch.setenv("FASTEMO_RAVDESS_RECORD", url)
        with pytest.raises(UserError, match="cannot be requested"):
            download()

    def test_proxies_of_the_environment(self, server: Zenodo, download, monkeypatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", server.address)
        monkeypatch.setenv("FASTEMO_RAVDESS_RECORD", "http://record.invalid/gone")
        with pytest.raises(UserError, match="answers 404"):  # asked of the proxy: the host has no address
            download()
        monkeypatch.setenv("HTTP_PROXY", "socks9://127.0.0.1")
        with pytest.raises(UserError, match="the proxy that the environment names"):
            download()

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            (b"<html>", "its text: Invalid JSON"),
            (b"{}", "metadata: Field required"),
            (b'{"metadata": {"license": {"id": "x"}}, "files": {}}', "files: Input should be"),
            (
                b'{"metadata": {"license": {"id": "x"}}, "files": [{"key": "a", "size": -1}]}',
                "files.0.size: Input should be greater than 0",
            ),
            (b" " * (2**24 + 1), "larger than"),
        ],
    )
    def test_records_of_another_shape(self, server: Zenodo, download, text, part) -> None:
        server.text = text
        with pytest.raises(UserError, match=f"{server.url} is n") as raised:
            download()
        assert part in str(raised.value)

    def test_an_archive_that_is_gone_leaves_the_others(self, server: Zenodo, download, tmp_path, archives) -> None:
        server.faults[ONE] = [(404, {})]
        with pytest.raises(UserError, match=rf"^{ONE}: the server answers 404 Not Found"):
            download()
        assert tree(tmp_path / "corpus") == content(archives[TWO])
        download()
        assert tree(tmp_path / "corpus") == content(archives[ONE], archives[TWO])

    def test_a_wrong_sum_is_fetched_again_once(self, server: Zenodo, download, archives, capsys) -> None:
        server.faults[ONE] = ["wrong"]
        assert tree(download()) == content(archives[ONE], archives[TWO])
        assert [start for name, start in server.requests if name == ONE] == [0, 0]
        assert f"{ONE}: wrong MD5 sum; it is downloaded again" in capsys.readouterr().out

    @pytest.mark.parametrize("fault", ["wrong", "endless"])
    def test_two_wrong_sums_are_an_error(self, server: Zenodo, download, tmp_path, archives, fault) -> None:
        server.faults[ONE] = [fault, fault]
        with pytest.raises(UserError, match=f"{ONE}: two downloads differ from the record"):
            download()
        assert tree(tmp_path / "corpus") == content(archives[TWO])
        assert [start for name, start in server.requests if name == ONE] == [0, 0]


class TestUnpacking:
    """What an archive must not do, although its sum is right."""

    @pytest.mark.parametrize(
        "name",
        ["../{}", "/tmp/{}", "C:\\{}", "C:{}", "a/../../{}", "..\\{}", "\\\\host\\{}"],
    )
    def test_paths_that_leave_the_folder(self, server: Zenodo, download, tmp_path, name) -> None:
        archive = zipped({name.format("02-01-03-01-01-01-02.mp4"): b"x"})
        self.refused(server, download, tmp_path, archive, "names a place outside the folder")

    def test_links(self, server: Zenodo, download, tmp_path) -> None:
        link = zipfile.ZipInfo("Actor_02")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive = zipped({link: b"/etc", "Actor_02/02-01-03-01-01-01-02.mp4": b"x"})
        self.refused(server, download, tmp_path, archive, "is a link")

    def test_bombs(self, server: Zenodo, download, tmp_path, monkeypatch) -> None:
        names = [f"Actor_02/{modality:02d}-01-03-01-01-01-02.mp4" for modality in (1, 2)]
        self.refused(server, download, tmp_path, zipped(dict.fromkeys(names, bytes(10**6))), "brings it to 1 MiB")
        monkeypatch.setattr(unpacking, "_MOST_CLIP_BYTES", 4000)
        self.refused(server, download, tmp_path, archive_of(2), "brings it to")

    def test_a_bomb_that_lies_about_its_size(self, server: Zenodo, download, tmp_path) -> None:
        name = "Actor_02/02-01-03-01-01-01-02.mp4"
        honest = zipped({name: bytes(10**6)})
        lying = honest.replace((10**6).to_bytes(4, "little"), (100).to_bytes(4, "little"))
        assert lying != honest
        self.refused(server, download, tmp_path, lying, "not an intact zip archive")

    def test_encrypted_or_twice_or_of_another_method(self, server: Zenodo, download, tmp_path) -> None:
        encrypted = bytearray(zipped({"02-01-03-01-01-01-02.mp4": b"x"}))
        encrypted[encrypted.index(b"PK\1\2") + 8] |= 1
        self.refused(server, download, tmp_path, bytes(encrypted), "is encrypted")
        twice = zipped({"a/02-01-03-01-01-01-02.mp4": b"x", "b/02-01-03-01-01-01-02.mp4": b"y"})
        self.refused(server, download, tmp_path, twice, "is there twice")
        member = zipfile.ZipInfo("02-01-03-01-01-01-02.mp4")
        member.compress_type = zipfile.ZIP_LZMA
        self.refused(server, download, tmp_path, zipped({member: b"x"}), "another method")

    def test_what_is_no_archive_or_damaged_or_has_no_clips(self, server: Zenodo, download, tmp_path) -> None:
        damaged = bytearray(archive_of(2))
        damaged[1000] ^= 1
        self.refused(server, download, tmp_path, bytes(damaged), "not an intact zip archive: Bad CRC-32")
        self.refused(server, download, tmp_path, b"<html>busy</html>", "not an intact zip archive")
        self.refused(server, download, tmp_path, zipped({"a.txt": b""}), "holds no audio-video clips")

    def refused(self, server: Zenodo, download, tmp_path: Path, archive: bytes, part: str) -> None:
        """The one archive is an error that names it, and no clip of it appears anywhere."""
        server.archives = {TWO: archive}
        with pytest.raises(UserError, match=rf"^{TWO}: ") as raised:
            download(actors="2")
        assert part in str(raised.value)
        assert not list(tmp_path.rglob("*.mp4"))
        assert not Path("/tmp/02-01-03-01-01-01-02.mp4").exists()


class TestFolder:
    def test_modalities_are_added(self, server: Zenodo, download, archives) -> None:
        whole = content(archives[TWO])
        root = download(actors="2", modalities=("video-only",))
        assert tree(root) == {path: data for path, data in whole.items() if "/02-" in path}
        download(actors="2", modalities=("video-only",))
        assert len(server.requests) == 1
        assert tree(download(actors="2", modalities=("audio-video",))) == whole
        download(actors="2")
        assert len(server.requests) == 2

    def test_speech_and_song_share_folders(self, server: Zenodo, download, archives) -> None:
        root = download(actors="1", channels=("speech", "song"))
        assert tree(root) == content(archives[ONE], archives["Video_Song_Actor_01.zip"])

    def test_a_clip_that_was_removed_is_fetched_again(self, server: Zenodo, download, archives) -> None:
        root = download()
        next(root.glob("Actor_02/*")).unlink()
        assert tree(download()) == content(archives[ONE], archives[TWO])
        assert [name for name, _ in server.requests].count(TWO) == 2
        assert [name for name, _ in server.requests].count(ONE) == 1

    def test_kept_archives(self, server: Zenodo, download, archives) -> None:
        root = download(keep=True, modalities=("video-only",))
        assert (root / ONE).read_bytes() == archives[ONE]
        download()
        assert len(server.requests) == 2  # the second modality is in the kept archives
        assert tree(root) == content(archives[ONE], archives[TWO]) | {name: archives[name] for name in (ONE, TWO)}

    def test_an_archive_of_the_users_that_is_wrong(self, server: Zenodo, download, tmp_path, archives, capsys) -> None:
        (tmp_path / "corpus").mkdir()
        (tmp_path / "corpus" / ONE).write_bytes(b"mine")
        assert tree(download()) == content(archives[ONE], archives[TWO]) | {ONE: b"mine"}
        assert "not the archive of the record" in capsys.readouterr().out

    def test_a_damaged_record_of_its_own(self, server: Zenodo, download, archives) -> None:
        root = download()
        (root / STATE / f"{TWO}.json").write_text("{")
        assert tree(download()) == content(archives[ONE], archives[TWO])
        assert json.loads((root / STATE / f"{TWO}.json").read_text())["clips"].keys() == content(archives[TWO]).keys()

    def test_a_disk_without_room(self, server: Zenodo, download, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(ravdess.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
        with pytest.raises(UserError, match=r"4 MiB are needed, 1 MiB are free; free some space"):
            download()
        assert not (tmp_path / "corpus").exists()

    @pytest.mark.parametrize("module", [client, unpacking])
    def test_a_disk_that_fills_up(self, server: Zenodo, download, tmp_path, monkeypatch, module, archives) -> None:
        class Full:
            def __init__(self, file) -> None:
                self.file = file

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def write(self, data: bytes) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

        open_path = Path.open
        suffix = ".part" if module is client else ".clip"

        def opening(path: Path, mode: str = "r", **options):
            file = open_path(path, mode, **options)
            return Full(file) if path.suffix == suffix and mode in ("ab", "wb") else file

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", opening)
            with pytest.raises(UserError, match="the disk is full; free some space, then the same command resumes"):
                download()
        assert tree(download()) == content(archives[ONE], archives[TWO])

    def test_a_folder_that_cannot_be_written(self, server: Zenodo, download, tmp_path) -> None:
        (tmp_path / "corpus").touch()
        with pytest.raises(UserError, match=rf"{tmp_path}/corpus cannot be written: .*choose another --root"):
            download()

    def test_two_commands_at_once(self, server: Zenodo, download, tmp_path) -> None:
        server.hold[ONE] = 1000
        process = subprocess.Popen(words(tmp_path / "corpus", "--actors", "1"), stdout=subprocess.DEVNULL)
        assert server.held.wait(60)
        with pytest.raises(ValueError, match="in use by another process"):
            download()
        server.release.set()
        assert process.wait(60) == 0
