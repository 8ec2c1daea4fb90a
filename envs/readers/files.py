"""Arrays in HDF5 and npz files, block by block: sizes and types are known before anything is allocated.

Nothing is unpickled, no link is followed, and what does not fit into memory is refused by what the file declares.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from core.dataset import DataError

BLOCK = 1 << 22  # bytes read at a time
KINDS = {"b": "flags", "i": "numbers", "u": "numbers", "f": "numbers", "S": "text", "U": "text", "O": "Python objects"}
# first bytes -> what such a file is, for those that are no dataset
OTHERS = {
    b"\x80": "a pickle; nothing is unpickled, because that can run code: write its arrays by numpy.savez",
    b"\x93NUMPY": "a single array (.npy); an npz or HDF5 file with several is needed",
    b"version https://git-lfs": "a pointer of git-lfs, not the file itself: fetch it by `git lfs pull`",
    b"<": "a web page, not a dataset: the download went to an error or login page",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
}


CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def many(count: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class Memory(NamedTuple):
    """Bytes that this process may have in all, and those that it can get without swapping."""

    total: int
    free: int


def memory() -> Memory:
    """Of the machine, within the limits of its container or job (cgroup v2); cached files count as free."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    free = 1024 * _fields(Path("/proc/meminfo")).get("MemAvailable:", free // 1024)
    own = next((line[3:] for line in _lines(MEMBERSHIP) if line.startswith("0::/")), "/")
    folder = CGROUPS / own.strip("/")
    for group in (folder, *(parent for parent in folder.parents if parent.is_relative_to(CGROUPS))):
        limit, used = (next(iter(_lines(group / f"memory.{name}")), "") for name in ("max", "current"))
        if limit.isdigit() and used.isdigit():
            of = _fields(group / "memory.stat")
            cached = of.get("active_file", 0) + of.get("inactive_file", 0)
            total, free = min(total, int(limit)), min(free, int(limit) - int(used) + cached)
    return Memory(total, max(free, 0))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _fields(path: Path) -> dict[str, int]:
    """First word of a line -> the number behind it."""
    words = (line.split() for line in _lines(path))
    return {first: int(number) for first, number, *_ in words if number.isdigit()}


def admit(name: str, size: int) -> None:
    """Raises: DataError when so many bytes do not fit into memory."""
    free = memory().free
    if size > free:
        raise DataError(
            f"{name}: it declares {size / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB of memory are free; "
            "use a machine with more, or a part of the data (or the file is damaged: make or copy it again)"
        )


@contextlib.contextmanager
def damage(name: str) -> Iterator[None]:
    """What goes wrong inside means that the file is cut off or damaged: only calls that read belong there."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib, lzma, struct, numpy and h5py raise a dozen kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name}: cannot be read, it is cut off or damaged ({reason}). Make or copy it again"
        ) from error


class Column(NamedTuple):
    """An array of a file that was not read yet."""

    file: str
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Callable[[], Iterator[np.ndarray]]  # rows in order, as many at a time as suits the file

    @property
    def rows(self) -> int:
        return self.shape[0]

    def refuse(self, problem: str) -> NoReturn:
        raise DataError(f"{self.file}: key '{self.key}': {problem}")

    def require(self, rows: int | None = None, rank: tuple[int, ...] = (1, 2, 4)) -> Column:
        """This column.  Raises: DataError for other things than numbers, no rows, or other shapes than wanted."""
        if self.dtype.kind not in "biuf":
            held = KINDS.get(self.dtype.kind, f"values of dtype {self.dtype}")
            self.refuse(f"it holds {held} where numbers belong; write it as a plain array")
        if len(self.shape) not in rank or min(self.shape) < 1:
            self.refuse(f"its shape is {self.shape}; expected at least one row of {' or '.join(map(str, rank))} axes")
        if rows is not None and self.rows != rows:
            self.refuse(f"it has {many(self.rows, 'row')} where {rows:,} belong; the arrays of a file must agree")
        return self

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of all blocks in order."""
        begin = 0
        with damage(self.file):
            for part in self.parts():
                yield begin, part
                begin += len(part)

    def vector(self, rows: int | None = None) -> Column:
        """Of shape [N]; [N, 1] counts as well."""
        self.require(rows, rank=(1, 2))
        if self.shape[1:] not in ((), (1,)):
            self.refuse(f"its shape is {self.shape}, but there is one number per row")
        return self._replace(shape=self.shape[:1], parts=lambda: (part.reshape(-1) for part in self.parts()))

    def flags(self, rows: int | None = None) -> np.ndarray:
        """bool[N].  Raises: DataError for other values than 0 and 1."""
        column = self.vector(rows)
        admit(self.file, column.rows)
        out = np.empty(column.rows, bool)
        for begin, part in column.blocks():
            bad = np.flatnonzero((part != 0) & (part != 1))
            if len(bad):
                self.refuse(f"row {begin + bad[0]} is {part[bad[0]]}; it must be 0 or 1")
            out[begin : begin + len(part)] = part
        return out

    def array(self, scalar: bool = False) -> np.ndarray:
        """All of it, as the file has it.

        Args: scalar: a single number, of shape (), will do as well.
        """
        if not (self.shape or scalar) or min(self.shape, default=0) < 0 or self.dtype.kind not in "biuf":
            self.require()
        admit(self.file, _bytes(self.shape, self.dtype))
        if not self.shape:
            with damage(self.file):
                return next(self.parts())
        out = np.empty(self.shape, self.dtype)
        for begin, part in self.blocks():
            out[begin : begin + len(part)] = part
        return out


class File:
    """An open file; close it, or use it as a context."""

    def __init__(self, path: Path, kind: str, handle: Any, keys: list[str]):
        self.path, self.name, self.kind, self.handle, self.keys = path, str(path), kind, handle, keys

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.close()

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def column(self, key: str) -> Column:
        """Raises: DataError when it is not there, or not plain data of this file."""
        if key not in self.keys:
            held = ", ".join(sorted(self.keys)[:20])
            raise DataError(f"{self.name}: key '{key}' is missing; it has {held or 'nothing'}")
        with damage(self.name):
            return (_npz_column if self.kind == "npz" else _hdf5_column)(self, key)

    def text(self, key: str) -> str:
        """A piece of text (npz)."""
        column = self.column(key)
        if column.dtype.kind != "U" or column.shape != ():
            column.refuse("it must be a piece of text")
        admit(self.name, column.dtype.itemsize)
        with damage(self.name):
            return str(next(column.parts())[()])


def open_file(path: str | Path) -> File:
    """Open by content, whatever the name says.  Raises: DataError for what is neither npz nor HDF5."""
    path = Path(path)
    with damage(str(path)):
        with path.open("rb") as file:
            start = file.read(32)
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            handle = zipfile.ZipFile(path)
            keys = [member.removesuffix(".npy") for member in handle.namelist() if member.endswith(".npy")]
            return File(path, "npz", handle, keys)
        if start.startswith(b"\x89HDF\r\n\x1a\n"):
            import h5py

            handle = h5py.File(path, "r")
            return File(path, "hdf5", handle, list(map(str, handle)))  # bytes where a name is damaged
    if not start:
        raise DataError(f"{path}: cannot be read, it is empty. Make or copy it again")
    for head, what in OTHERS.items():
        if start.startswith(head):
            raise DataError(f"{path}: cannot be read, it is {what}")
    raise DataError(f"{path}: cannot be read, it is neither an npz nor an HDF5 file")


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    size = dtype.itemsize
    for length in shape:  # Python's integers: NumPy's would wrap around
        size *= int(length)
    return size


def _block_rows(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return max(1, BLOCK // max(1, _bytes(shape[1:], dtype)))


def _npz_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"npy format {version}")
    return read[version](stream)


def _npz_column(file: File, key: str) -> Column:
    member = f"{key}.npy"
    with file.handle.open(member) as stream:
        shape, columnwise, dtype = _npz_header(stream)
    if dtype.hasobject:
        raise DataError(f"{file.name}: key '{key}': it holds pickled Python objects; write it as a plain array")

    def parts() -> Iterator[np.ndarray]:
        with file.handle.open(member) as stream:
            _npz_header(stream)
            if columnwise or not shape:  # Fortran order cannot be cut into rows
                admit(file.name, _bytes(shape, dtype))
                yield _read(stream, shape, dtype, "F" if columnwise else "C")
            else:
                step = _block_rows(shape, dtype)
                for begin in range(0, shape[0], step):
                    yield _read(stream, (min(step, shape[0] - begin), *shape[1:]), dtype, "C")
            if stream.read(1):  # reading to the end also checks the archive's checksum
                raise ValueError(f"'{key}' is longer than its header says")

    return Column(file.name, key, shape, dtype, parts)


def _read(stream: Any, shape: tuple[int, ...], dtype: np.dtype, order: str) -> np.ndarray:
    out = np.empty(_bytes(shape, dtype), np.uint8)
    done = 0
    while done < len(out):
        piece = stream.read(min(len(out) - done, 1 << 18))  # zipfile joins larger ones slowly
        if not piece:
            raise EOFError("an array is shorter than its header says")
        out[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    return out.view(dtype).reshape(shape, order=order)


def plain(parent: Any, key: str, file: str) -> Any:
    """A member of an HDF5 group, both as h5py's low-level identifiers.

    Raises: DataError when it is missing, a link (here or to another file), or its data are kept elsewhere.
    """
    import h5py

    def refuse(problem: str) -> NoReturn:
        name = f"{h5py.h5i.get_name(parent).decode()}/{key}".strip("/")
        raise DataError(f"{file}: key '{name}': {problem}")

    if not parent.links.exists(key.encode()):
        refuse("it is missing")
    if parent.links.get_info(key.encode()).type != h5py.h5l.TYPE_HARD:
        refuse("it is a link; links are not followed: copy the data into the file")
    member = h5py.h5o.open(parent, key.encode())
    if isinstance(member, h5py.h5d.DatasetID):
        made = member.get_create_plist()
        if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
            refuse("its data lie in other files; copy them into this one")
    return member


def _hdf5_column(file: File, key: str) -> Column:
    return hdf5_column(plain(file.handle["/"].id, key, file.name), key, file.name)


def hdf5_column(member: Any, key: str, file: str) -> Column:
    """Of a member of an HDF5 file, h5py's low-level identifier.  Raises: DataError when it is no array."""
    import h5py

    dataset = h5py.Dataset(member) if isinstance(member, h5py.h5d.DatasetID) else None
    if dataset is None or dataset.shape is None:
        raise DataError(f"{file}: key '{key}': it is no array")
    shape, dtype, chunks = dataset.shape, dataset.dtype, dataset.chunks or (1,)
    if (chunk := _bytes(chunks, dtype)) > BLOCK:  # else it is no more than a block
        admit(file, chunk)

    def parts() -> Iterator[np.ndarray]:
        step = max(1, _block_rows(shape, dtype) // chunks[0]) * chunks[0]  # whole chunks: each is unpacked once
        for begin in range(0, shape[0], step):
            yield dataset[begin : begin + step]

    return Column(file, key, shape, dtype, parts)
