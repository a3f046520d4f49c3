"""Caltech-UCSD Birds-200-2011 in its official layout: 200 kinds of birds, 5,994 training and 5,794 test images.

Source: Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", Technical Report CNS-TR-2011-001. The archive holds
``CUB_200_2011/images.txt`` (image number, file), ``image_class_labels.txt`` (image number, label from 1),
``train_test_split.txt`` (image number, 1 for training) and ``images/<class>/<file>.jpg``.
"""

import fcntl
import hashlib
import re
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from vision_reference.errors import UserError
from vision_reference.files import cache_file

URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
MD5 = "97eceeb196236b17998738112f37df78"  # published with the data set
FOLDER = "CUB_200_2011"
LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte after which a download counts as broken off


@dataclass(frozen=True)
class Cub200:
    """The official split as (path, label) pairs, labels from 0; ``classes[label]`` is the folder's name."""

    train: list[tuple[str, int]]
    test: list[tuple[str, int]]
    classes: list[str]


def cub200(root: Path, *, download: bool = False, url: str = URL, md5: str = MD5) -> Cub200:
    """The data set under ``root`` (which holds ``CUB_200_2011/`` or is that folder).

    That every listed image is there is checked once and remembered until a list or a class folder changes.

    Args:
        root: folder of the data.
        download: fetch, verify and unpack the archive into ``root`` where the data set is not there yet.
        url, md5: of the archive.

    Raises:
        UserError: no data set there, a list that cannot be understood, missing images (named), a failed download.
    """
    if download and _find(root) is None:
        fetch(root, url=url, md5=md5)
    base = _find(root)
    if base is None:
        raise UserError(
            f"no CUB-200-2011 in {root} (looked for {root / FOLDER / LISTS[0]}); "
            "unpack CUB_200_2011.tgz there, or give --download"
        )
    files, labels, split = (_read_list(base / name) for name in LISTS)
    for name, other in ((LISTS[1], labels), (LISTS[2], split)):
        if other.keys() != files.keys():
            number = min(files.keys() ^ other.keys())
            raise UserError(f"{base / name} and {base / LISTS[0]} list different images (number {number} is in one)")
    classes = _classes(base, files, labels)
    _check_files_once(base, files)
    sides: dict[str, list[tuple[str, int]]] = {"0": [], "1": []}
    for number, file in files.items():
        if split[number] not in sides:
            raise UserError(f"{base / LISTS[2]}: image {number} has '{split[number]}'; allowed: 1 (training), 0 (test)")
        sides[split[number]].append((str(base / "images" / file), int(labels[number]) - 1))
    return Cub200(train=sides["1"], test=sides["0"], classes=classes)


def fetch(root: Path, *, url: str = URL, md5: str = MD5) -> None:
    """Download, verify and unpack the archive into ``root``; goes on where an earlier download broke off.

    Bytes go to ``CUB_200_2011.tgz.partial``, which gets its final name only when its checksum is right; the data set
    gets its name only when all of it is unpacked. Processes that ask at the same time wait for the first one.

    Raises:
        UserError: the server cannot be reached, the download broke off, the checksum is wrong, the archive is not what
            it should be.
    """
    root.mkdir(parents=True, exist_ok=True)
    archive = root / f"{FOLDER}.tgz"
    with open(root / f".{FOLDER}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _find(root) is not None:
            return
        if not archive.exists():
            partial = archive.with_name(f"{archive.name}.partial")
            _download(url, partial)
            _verify(partial, md5, f"what came from {url}")
            partial.rename(archive)
        else:
            _verify(archive, md5, str(archive))
        unpack(archive, root)


def unpack(archive: Path, root: Path) -> None:
    """Unpack the ``CUB_200_2011/`` of ``archive`` into ``root``: plain files and folders inside it, nothing else.

    Raises:
        UserError: a member is a link or a device, or would land elsewhere; nothing is left behind then.
    """
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}.", dir=root) as temporary:
        try:
            with tarfile.open(archive) as tar:
                for member in tqdm(tar, desc="unpacking", unit=" files", mininterval=1):
                    _unpack_member(tar, member, Path(temporary), archive)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{archive} cannot be unpacked ({reason}); remove it and run again") from None
        unpacked = Path(temporary) / FOLDER
        if not (unpacked / LISTS[0]).is_file():
            raise UserError(f"{archive} holds no {FOLDER}/{LISTS[0]}; remove it and run again")
        unpacked.rename(root / FOLDER)


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, archive: Path) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
        raise UserError(f"{archive}: '{member.name}' is a link, a device or outside its folder; refused to unpack it")
    if path.parts[:1] != (FOLDER,):
        return  # the official archive has one such file beside the folder; nothing here reads it
    target = folder / path
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Copying the bytes alone leaves out owners, modes and whatever else an archive can ask for.
    source = tar.extractfile(member)
    assert source is not None  # it is a plain file
    with source, open(target, "wb") as file:
        shutil.copyfileobj(source, file)


def _download(url: str, partial: Path) -> None:
    """Complete ``partial`` from ``url``, asking only for the bytes that are not there yet."""
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:
            if reply.status != 206:
                start = 0  # the server does not do ranges: all of it comes again
            total = start + int(reply.headers["Content-Length"]) if reply.headers["Content-Length"] else None
            bar = tqdm(desc=f"{FOLDER}.tgz", initial=start, total=total, unit="B", unit_scale=True, mininterval=1)
            with open(partial, "ab" if start else "wb") as file, bar:
                while chunk := reply.read(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        done = partial.stat().st_size
        if total is not None and done < total:
            raise OSError(f"{done} of {total} bytes came")
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing after these bytes: they are the whole file; the checksum decides
            return
        raise UserError(f"could not download {url} (HTTP {error.code} {error.reason})") from None
    except (OSError, HTTPException) as error:
        raise UserError(f"the download of {url} broke off ({error}); run again to go on from there") from None


def _verify(file: Path, md5: str, what: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != md5:
        if file.suffix == ".partial":
            file.unlink()  # it is complete and wrong, so there is nothing to go on from
        raise UserError(f"{what} has MD5 {digest.hexdigest()}, not {md5}: damaged or another file; fetch it again")


def _find(root: Path) -> Path | None:
    return next((base for base in (root / FOLDER, root) if (base / LISTS[0]).is_file()), None)


def _read_list(path: Path) -> dict[int, str]:
    """{image number: value} of a list with one "number value" per line, in the file's order."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); unpack CUB_200_2011.tgz again") from None
    entries: dict[int, str] = {}
    for place, line in enumerate(lines, start=1):
        match = re.fullmatch(r"(\d+) (\S+)", line.strip())
        if not match or int(match[1]) in entries:
            raise UserError(f"{path}, line {place}: expected a new image number and one value, got '{line[:80]}'")
        entries[int(match[1])] = match[2]
    return entries


def _classes(base: Path, files: dict[int, str], labels: dict[int, str]) -> list[str]:
    """Names of the class folders in the order of their labels, which must be 1 to their number."""
    folders: dict[str, str] = {}
    for number, file in files.items():
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or len(path.parts) != 2:
            raise UserError(f"{base / LISTS[0]}: image {number} is '{file}'; expected <class>/<file>")
        label, folder = labels[number], path.parts[0]
        if folders.setdefault(label, folder) != folder:
            raise UserError(f"{base / LISTS[1]}: label {label} stands for both {folders[label]} and {folder}")
    expected = [str(label) for label in range(1, len(folders) + 1)]
    if set(folders) != set(expected) or len(set(folders.values())) != len(folders):
        raise UserError(f"{base / LISTS[1]}: labels must be 1 to the number of class folders, each with its own folder")
    return [folders[label] for label in expected]


def _check_files_once(base: Path, files: dict[int, str]) -> None:
    watched = [base / name for name in LISTS] + sorted({(base / "images" / file).parent for file in files.values()})
    state = [(str(path.resolve()), path.stat().st_mtime_ns if path.exists() else None) for path in watched]
    known_good = cache_file("cub200", state)
    if known_good.exists():
        return
    missing = []
    for file in files.values():
        path = base / "images" / file
        if not path.is_file() or path.stat().st_size == 0:
            missing.append(str(path))
    if missing:
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise UserError(f"CUB-200-2011 lacks {len(missing)} of its images: {named}; unpack CUB_200_2011.tgz again")
    known_good.parent.mkdir(parents=True, exist_ok=True)
    known_good.touch()
