"""CUB-200-2011: the official layout, its mistakes, and a download that may break off, lie or attack."""

import hashlib
import http.server
import io
import os
import re
import tarfile
import threading

import pytest
from PIL import Image

from vision_reference.errors import UserError
from vision_reference.images import cub200 as cub

CLASSES = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write_cub(root, images_per_class=4):
    """A small CUB in the official format under ``root``; every second image of a class is for training."""
    base = root / "CUB_200_2011"
    lines = {name: [] for name in cub.LISTS}
    number = 0
    for label, folder in enumerate(CLASSES, start=1):
        (base / "images" / folder).mkdir(parents=True)
        for place in range(images_per_class):
            number += 1
            file = f"{folder}/Bird_{number:04d}_{place}.jpg"
            mode = "L" if place == 0 else "RGB"
            Image.new(mode, (40 + number, 30), 9 * number).save(base / "images" / file)
            lines["images.txt"].append(f"{number} {file}")
            lines["image_class_labels.txt"].append(f"{number} {label}")
            lines["train_test_split.txt"].append(f"{number} {place % 2}")
    for name, content in lines.items():
        (base / name).write_text("\n".join(content) + "\n")
    return base


@pytest.fixture
def archive(tmp_path):
    """Bytes and MD5 of an official-looking archive, with the file that lies beside the folder in the real one."""
    source = tmp_path / "source"
    write_cub(source)
    (source / "attributes.txt").write_text("1 has_bill_shape\n")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("attributes.txt", "CUB_200_2011"):
            tar.add(source / name, arcname=name)
    data = buffer.getvalue()
    return data, hashlib.md5(data).hexdigest()


class Server:
    """Serves ``data`` on localhost, with or without byte ranges, and can hang up in the middle."""

    def __init__(self, data, ranges=True):
        self.data, self.ranges, self.stop_after, self.asked = data, ranges, None, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.asked.append(asked)
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and outer.ranges else 0
                if start >= len(outer.data):
                    self.send_error(416)
                    return
                body = outer.data[start:]
                self.send_response(206 if asked and outer.ranges else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.stop_after])

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/CUB_200_2011.tgz"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def test_the_official_split_comes_as_paths_with_labels_from_zero(tmp_path):
    base = write_cub(tmp_path)
    data = cub.cub200(tmp_path)
    assert data.classes == CLASSES
    assert [label for _, label in data.train] == [0, 0, 1, 1, 2, 2]
    assert [label for _, label in data.test] == [0, 0, 1, 1, 2, 2]
    assert data.test[0] == (str(base / "images" / CLASSES[0] / "Bird_0001_0.jpg"), 0)
    assert data.train[0] == (str(base / "images" / CLASSES[0] / "Bird_0002_1.jpg"), 0)
    assert not {path for path, _ in data.train} & {path for path, _ in data.test}
    assert cub.cub200(base) == data  # the folder itself may be given, too


def test_a_folder_without_the_data_says_what_was_looked_for_and_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"no CUB-200-2011 in .*images\.txt.*--download"):
        cub.cub200(tmp_path)


def test_missing_and_empty_images_are_named(tmp_path):
    base = write_cub(tmp_path)
    gone = base / "images" / CLASSES[0] / "Bird_0001_0.jpg"
    gone.unlink()
    (base / "images" / CLASSES[1] / "Bird_0006_1.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"lacks 2 of its images: .*Bird_0001_0\.jpg, .*Bird_0006_1\.jpg"):
        cub.cub200(tmp_path)


def test_images_are_looked_for_once_and_again_after_a_folder_changed(tmp_path, monkeypatch):
    base = write_cub(tmp_path)
    cub.cub200(tmp_path)
    looked = []
    monkeypatch.setattr(cub.Path, "is_file", lambda path: looked.append(path) or os.path.isfile(path))
    cub.cub200(tmp_path)
    assert [path for path in looked if path.suffix == ".jpg"] == []
    (base / "images" / CLASSES[2] / "Bird_0009_0.jpg").unlink()
    with pytest.raises(UserError, match="Bird_0009_0"):
        cub.cub200(tmp_path)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("images.txt", "2 001", "two 001", r"images\.txt, line 2: .*'two 001"),
        ("images.txt", "2 001", "1 001", r"images\.txt, line 2: expected a new image number"),
        ("images.txt", "1 001.Black_footed_Albatross", "1 ..", r"image 1 is '\.\./Bird"),
        ("image_class_labels.txt", "12 3\n", "", r"image_class_labels\.txt .*number 12"),
        ("image_class_labels.txt", "1 1\n", "1 2\n", "stands for both|labels must be"),
        ("image_class_labels.txt", "3\n", "7\n", "labels must be 1 to"),
        ("train_test_split.txt", "3 0", "3 5", r"image 3 has '5'; allowed: 1 \(training\), 0"),
    ],
)
def test_a_damaged_list_is_told_with_its_file_and_place(tmp_path, name, old, new, message):
    base = write_cub(tmp_path)
    text = (base / name).read_text()
    assert old in text
    (base / name).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message) as error:
        cub.cub200(tmp_path)
    assert "\n" not in str(error.value)


def test_download_verifies_unpacks_and_is_not_repeated(tmp_path, archive, capsys):
    data, md5 = archive
    root = tmp_path / "data"
    with Server(data) as server:
        downloaded = cub.cub200(root, download=True, url=server.url, md5=md5)
        assert len(downloaded.train) == len(downloaded.test) == 6
        assert cub.cub200(root, download=True, url=server.url, md5=md5) == downloaded
        assert server.asked == [None]
    assert "CUB_200_2011.tgz" in capsys.readouterr().err  # the progress bar
    left = {path.name for path in root.iterdir()}
    assert left == {"CUB_200_2011", "CUB_200_2011.tgz", ".CUB_200_2011.lock"}


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_broke_off_is_not_taken_for_whole_and_goes_on_later(tmp_path, archive, ranges):
    data, md5 = archive
    with Server(data, ranges=ranges) as server:
        server.stop_after = len(data) // 3
        with pytest.raises(UserError, match=r"broke off .*run again"):
            cub.cub200(tmp_path / "data", download=True, url=server.url, md5=md5)
        assert not (tmp_path / "data" / "CUB_200_2011").exists()
        assert (tmp_path / "data" / "CUB_200_2011.tgz.partial").stat().st_size == len(data) // 3
        server.stop_after = None
        assert len(cub.cub200(tmp_path / "data", download=True, url=server.url, md5=md5).train) == 6
        assert server.asked == [None, f"bytes={len(data) // 3}-"]


def test_a_partial_file_that_already_has_all_bytes_is_accepted_by_its_checksum(tmp_path, archive):
    data, md5 = archive
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "CUB_200_2011.tgz.partial").write_bytes(data)
    with Server(data) as server:
        assert len(cub.cub200(tmp_path / "data", download=True, url=server.url, md5=md5).test) == 6


def test_wrong_bytes_are_not_unpacked_and_not_kept(tmp_path, archive):
    data, md5 = archive
    with Server(data[:-1] + b"?") as server, pytest.raises(UserError, match=f"not {md5}"):
        cub.cub200(tmp_path / "data", download=True, url=server.url, md5=md5)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {".CUB_200_2011.lock"}


def test_an_archive_the_user_put_there_is_verified_and_used_without_a_download(tmp_path, archive):
    data, md5 = archive
    (tmp_path / "data").mkdir()
    placed = tmp_path / "data" / "CUB_200_2011.tgz"
    placed.write_bytes(data[:1000])
    with pytest.raises(UserError, match=f"{placed} has MD5"):
        cub.cub200(tmp_path / "data", download=True, url="http://127.0.0.1:9/none", md5=md5)
    placed.write_bytes(data)
    assert len(cub.cub200(tmp_path / "data", download=True, url="http://127.0.0.1:9/none", md5=md5).train) == 6


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/CUB_200_2011.tgz", "404"])
def test_a_server_that_is_not_there_or_has_no_such_file_is_told_in_one_line(tmp_path, url):
    with Server(b"") as server:
        server.data = b""  # every request is beyond the end
        address = server.url if url == "404" else url
        with pytest.raises(UserError, match="download") as error:
            cub.cub200(tmp_path / "data", download=True, url=address, md5="0" * 32)
    assert "\n" not in str(error.value)


def hostile(name, kind=tarfile.REGTYPE, link=""):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        good = tarfile.TarInfo("CUB_200_2011/images.txt")
        good.size = 2
        tar.addfile(good, io.BytesIO(b"1\n"))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        member.size = 4 if kind == tarfile.REGTYPE else 0
        tar.addfile(member, io.BytesIO(b"evil") if member.size else None)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        hostile("../evil.txt"),
        hostile("CUB_200_2011/../../evil.txt"),
        hostile("/tmp/evil-absolute.txt"),
        hostile("CUB_200_2011/link", tarfile.SYMTYPE, "/etc"),
        hostile("CUB_200_2011/link", tarfile.LNKTYPE, "../../etc/passwd"),
        hostile("CUB_200_2011/device", tarfile.CHRTYPE),
        hostile("CUB_200_2011/pipe", tarfile.FIFOTYPE),
    ],
    ids=["parent", "parent-inside", "absolute", "symlink", "hardlink", "device", "pipe"],
)
def test_an_archive_that_would_write_elsewhere_or_make_links_or_devices_is_refused(tmp_path, data):
    root = tmp_path / "data"
    with Server(data) as server, pytest.raises(UserError, match="refused to unpack"):
        cub.cub200(root, download=True, url=server.url, md5=hashlib.md5(data).hexdigest())
    assert {path.name for path in root.iterdir()} == {"CUB_200_2011.tgz", ".CUB_200_2011.lock"}
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_an_archive_cut_short_or_without_the_data_set_leaves_nothing_behind(tmp_path, archive):
    whole, _ = archive
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz"):
        pass
    for number, data in enumerate([whole[: len(whole) // 2], b"no archive", buffer.getvalue()]):
        root = tmp_path / f"data{number}"
        with Server(data) as server, pytest.raises(UserError, match=r"CUB_200_2011\.tgz .*remove it and run again"):
            cub.cub200(root, download=True, url=server.url, md5=hashlib.md5(data).hexdigest())
        assert not (root / "CUB_200_2011").exists()


def test_two_processes_that_ask_at_once_download_once(tmp_path, archive):
    data, md5 = archive
    with Server(data) as server:
        found = []
        threads = [
            threading.Thread(
                target=lambda: found.append(cub.cub200(tmp_path / "d", download=True, url=server.url, md5=md5))
            )
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 3
        assert found[0] == found[1] == found[2]
        assert len(server.asked) == 1
