"""Small files that promise gigabytes, or unpack to one or nearly; each is made at once."""

import bz2
import gzip
import io
import sqlite3
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import lz4.frame
import numpy as np
import scipy.io
import zstandard

from tests.data.recordings.formats import ros_files

GIB = 1 << 30
UNPACKED = 3 << 27  # half as much again as the package unpacks in one piece
_PIECE = 1 << 20


# Deflate


def deflated(byte: bytes, n: int) -> bytes:
    """Deflate a run of one byte, a piece of 1 MiB again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(byte * _PIECE) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, zlib.DEFLATED, -15)
    return piece * (n // _PIECE) + rest.compress(byte * (n % _PIECE)) + rest.flush()


def zipped(path: Path, members: dict[str, tuple[bytes, bytes, int]]) -> Path:
    """Write a zip archive of members: name → (its first bytes, the byte behind, how many)."""
    with open(path, "wb") as file:
        directory = b""
        for name, (head, byte, n) in members.items():
            stored = zlib.compressobj(0, zlib.DEFLATED, -15)
            data = stored.compress(head) + stored.flush(zlib.Z_FULL_FLUSH) + deflated(byte, n)
            check = 0 if n else zlib.crc32(head)  # is looked at when all has been read
            common = struct.pack("<HHHHHIII", 20, 0, 8, 0, 33, check, len(data), len(head) + n)
            common += struct.pack("<HH", len(name), 0)
            directory += b"PK\1\2" + struct.pack("<H", 20) + common
            directory += struct.pack("<HHHII", 0, 0, 0, 0, file.tell()) + name.encode()
            file.write(b"PK\3\4" + common + name.encode() + data)
        start = file.tell()
        file.write(directory)
        n = len(members)
        file.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, n, n, len(directory), start, 0))
    return path


def npy_head(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def columns(n: int) -> dict[str, tuple[bytes, bytes, int]]:
    kinds = {"t": "<i8", "x": "<i8", "y": "<i8", "p": "<i8"}
    return {
        f"{name}.npy": (npy_head(np.dtype(kind), (n,)), b"\0", n * np.dtype(kind).itemsize)
        for name, kind in kinds.items()
    }


WIDE = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "i1"), ("rest", f"V{1 << 27}")])


# Recordings


def npz_that_unpacks(path: Path) -> Path:
    return zipped(path / "a.npz", columns(GIB // 32))


def npz_that_promises(path: Path) -> Path:
    events = {f"{name}.npy": (npy_head(np.dtype("<i8"), (1 << 40,)), b"\0", 0) for name in "txyp"}
    return zipped(path / "a.npz", events)


def npz_of_wide_records(path: Path) -> Path:
    n = UNPACKED // WIDE.itemsize + 1
    return zipped(path / "a.npz", {"events.npy": (npy_head(WIDE, (n,)), b"\0", n * WIDE.itemsize)})


def npy_of_wide_records(path: Path) -> Path:
    file = path / "a.npy"
    file.write_bytes(npy_head(WIDE, (1 << 40,)) + bytes(100))
    return file


def gzip_of_lines(path: Path) -> Path:
    file = path / "a.csv.gz"
    head = b"t,x,y,p\n0,1,1,1\n"
    packed = gzip.compress(head, 1)[:10]
    stored = zlib.compressobj(0, zlib.DEFLATED, -15)
    body = stored.compress(head) + stored.flush(zlib.Z_FULL_FLUSH)
    file.write_bytes(packed + body + deflated(b"\n", GIB // 8) + bytes(8))
    return file


def zip_of_one_line(path: Path) -> Path:
    return zipped(path / "a.zip", {"events.txt": (b"0 1 1 1\n", b"1", GIB)})


def zip_of_bz2(path: Path) -> Path:
    file = path / "a.zip"
    piece = b"0 1 1 1\n" + b"\n" * (1 << 26)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("events.txt", piece)
    return file


def mat_that_unpacks(path: Path) -> Path:
    small = io.BytesIO()
    scipy.io.savemat(small, {"t": np.zeros((3, 1))}, do_compression=False)
    n = GIB // 32
    words = small.getvalue()[128:]
    matrix = struct.pack("<II", 14, 56 + n * 8) + words[8:24] + struct.pack("<IIii", 5, 8, n, 1)
    body = b"\x78\x9c"
    stored = zlib.compressobj(0, zlib.DEFLATED, -15)
    packed = b""
    for name in "txyp":
        head = matrix + struct.pack("<I", 1 << 16 | 1) + name.encode() + bytes(3)
        head += struct.pack("<II", 9, n * 8)
        body = stored.compress(head) + stored.flush(zlib.Z_FULL_FLUSH)
        data = b"\x78\x9c" + body + deflated(b"\0", n * 8)
        packed += struct.pack("<II", 15, len(data)) + data
        stored = zlib.compressobj(0, zlib.DEFLATED, -15)
    file = path / "a.mat"
    file.write_bytes(small.getvalue()[:128] + packed)
    return file


def hdf5_that_promises(path: Path) -> Path:
    with h5py.File(path / "a.h5", "w") as file:
        for name in "txyp":
            file.create_dataset(f"events/{name}", (1 << 40,), "i8", chunks=(1 << 16,))
    return path / "a.h5"


def hdf5_of_one_chunk(path: Path) -> Path:
    """A thousand events, in chunks of a gigabyte."""
    with h5py.File(path / "a.h5", "w") as file:
        for name in "txyp":
            n = GIB // 8 - 1
            data = file.create_dataset(
                f"events/{name}", (1000,), "i8", chunks=(n,), maxshape=(None,), compression="gzip"
            )
            packed = b"\x78\x9c" + deflated(b"\0", 8 * n) + bytes(8)
            data.id.write_direct_chunk((0,), packed)
    return path / "a.h5"


def hdf5_of_wide_records(path: Path) -> Path:
    kind = np.dtype([*((name, WIDE[name]) for name in "txyp"), ("rest", "u1", (1 << 27,))])
    with h5py.File(path / "a.h5", "w") as file:
        file.create_dataset("events", (100,), kind, chunks=(1,), compression="gzip")
        file.create_dataset("padding", data=np.random.default_rng(0).integers(0, 1 << 62, 2 << 20))
    return path / "a.h5"


def _aedat4(path: Path, compression: int, packet: bytes) -> Path:
    text = (
        b"<dv><node name='outInfo'><node name='0'><attr key='typeIdentifier'>EVTS</attr>"
        b"</node></node></dv>"
    )
    body = struct.pack("<IHHHHHHi", 16, 12, 20, 4, 8, 16, 0, 16 - 4)
    # A root offset, a table of fields, the table, and the text.
    vtable = struct.pack("<HHHHH", 10, 20, 4, 8, 16)
    table = struct.pack("<iiqI", 12, compression, -1, 4)
    body = struct.pack("<I", 4 + 12) + vtable + bytes(2) + table
    body += struct.pack("<I", len(text)) + text
    head = b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(body)) + body
    file = path / "a.aedat4"
    file.write_bytes(head + struct.pack("<iI", 0, len(packet)) + packet)
    return file


def bz2_of_zeros(n: int) -> bytes:
    """Pack zeros in streams of 1 MiB."""
    return bz2.compress(bytes(_PIECE)) * (n // _PIECE)


def lz4_of_zeros(n: int) -> bytes:
    packer = lz4.frame.LZ4FrameCompressor(block_size=lz4.frame.BLOCKSIZE_MAX4MB)
    parts = [packer.begin()] + [packer.compress(bytes(4 << 20)) for _ in range(n >> 22)]
    return b"".join(parts) + packer.flush()


def zstd_of_zeros(n: int) -> bytes:
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    parts = [packer.compress(bytes(_PIECE)) for _ in range(n // _PIECE)]
    return b"".join([*parts, packer.flush()])


def aedat4_zstd(path: Path) -> Path:
    return _aedat4(path, 3, zstd_of_zeros(UNPACKED) + zstandard.compress(bytes(10)) * 200_000)


def aedat4_lz4(path: Path) -> Path:
    return _aedat4(path, 1, lz4_of_zeros(UNPACKED))


def _field(name: bytes, value: bytes) -> bytes:
    return struct.pack("<I", len(name) + 1 + len(value)) + name + b"=" + value


def _record(fields: dict[bytes, bytes], body: bytes) -> bytes:
    head = b"".join(_field(name, value) for name, value in fields.items())
    return struct.pack("<I", len(head)) + head + struct.pack("<I", len(body)) + body


def _ros1(path: Path, compression: bytes, chunk: bytes) -> Path:
    """A bag without an index, with one chunk."""
    kind = {b"op": b"\7", b"conn": bytes(4), b"topic": b"/e"}
    named = _field(b"topic", b"/e") + _field(b"type", b"dvs_msgs/EventArray")
    named += _field(b"md5sum", b"0" * 16) + _field(b"message_definition", b"")
    file = path / "a.bag"
    fields = {b"op": b"\5", b"compression": compression, b"size": struct.pack("<I", 2**32 - 1)}
    file.write_bytes(b"#ROSBAG V2.0\n" + _record(kind, named) + _record(fields, chunk))
    return file


def ros1_bz2(path: Path) -> Path:
    return _ros1(path, b"bz2", bz2_of_zeros(UNPACKED))


def ros1_lz4(path: Path) -> Path:
    return _ros1(path, b"lz4", lz4_of_zeros(UNPACKED))


def ros1_indexed_bz2(path: Path) -> Path:
    """A whole bag, whose one chunk is another one now."""
    whole = ros_files.write(
        path / "whole.bag",
        {"/e": ("dvs_msgs/msg/EventArray", [[(0, 1, 1, 1)]])},
        "bag",
        compression="BZ2",
    ).read_bytes()
    at = whole.index(b"compression=bz2")
    size = whole.index(b"BZh", at) - 4
    (n,) = struct.unpack_from("<I", whole, size)
    bomb = bz2_of_zeros(UNPACKED)
    moved = len(bomb) - n
    tail = bytearray(whole[size + 4 + n :])
    data = whole[:size] + struct.pack("<I", len(bomb)) + bomb + bytes(tail)
    place = data.index(b"index_pos=") + len(b"index_pos=")
    (index,) = struct.unpack_from("<Q", data, place)
    data = data[:place] + struct.pack("<Q", index + moved) + data[place + 8 :]
    file = path / "a.bag"
    file.write_bytes(data)
    (path / "whole.bag").unlink()
    return file


def _mcap(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + struct.pack("<Q", len(body)) + body


def _text(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


def mcap_zstd(path: Path) -> Path:
    schema = struct.pack("<H", 1) + _text(b"dvs_msgs/msg/EventArray") + _text(b"") + _text(b"")
    channel = struct.pack("<HH", 1, 1) + _text(b"/e") + _text(b"cdr") + struct.pack("<I", 0)
    packed = zstd_of_zeros(UNPACKED)
    chunk = struct.pack("<QQQI", 0, 1, UNPACKED, 0) + _text(b"zstd")
    chunk += struct.pack("<Q", len(packed)) + packed
    file = path / "a.mcap"
    head = _mcap(1, _text(b"ros2") + _text(b"x"))
    data = b"\x89MCAP0\r\n" + head + _mcap(3, schema) + _mcap(4, channel) + _mcap(6, chunk)
    file.write_bytes(data)
    return file


def _db3(path: Path, change: str) -> Path:
    topics = {"/e": ("dvs_msgs/msg/EventArray", [[(0, 1, 1, 1)]])}
    file = ros_files.write(path / "bag", topics, "db3")
    with sqlite3.connect(file) as database:
        database.executescript(change)
    database.close()
    return file


def db3_with_a_view(path: Path) -> Path:
    return _db3(
        path,
        "ALTER TABLE message_definitions RENAME TO kept;"
        "CREATE VIEW message_definitions AS SELECT topic_type, encoding, id,"
        " cast(zeroblob(200000000) as text) AS encoded_message_definition,"
        " type_description_hash FROM kept JOIN (VALUES (1), (2), (3), (4));",
    )


def db3_with_a_made_column(path: Path) -> Path:
    return _db3(
        path,
        "ALTER TABLE messages RENAME TO kept; CREATE TABLE messages (id INTEGER PRIMARY KEY,"
        " topic_id INTEGER, timestamp INTEGER, data BLOB AS (zeroblob(200000000)));"
        "INSERT INTO messages (topic_id, timestamp) SELECT topic_id, timestamp FROM kept;",
    )


def _ros2_folder(path: Path, mode: str) -> Path:
    topics = {"/e": ("dvs_msgs/msg/EventArray", [[(0, 1, 1, 1)]])}
    ros_files.write(path / "bag", topics, "db3", compression=mode)
    return path / "bag"


def ros2_messages(path: Path) -> Path:
    folder = _ros2_folder(path, "MESSAGE")
    file = next(folder.glob("*.db3"))
    with sqlite3.connect(file) as database:
        database.execute("UPDATE messages SET data = ?", (zstd_of_zeros(UNPACKED),))
    database.close()
    return folder


def ros2_file(path: Path) -> Path:
    folder = _ros2_folder(path, "FILE")
    file = next(folder.glob("*.zstd"))
    file.write_bytes(zstd_of_zeros(2 * GIB))
    return folder


RECORDINGS: dict[str, Callable[[Path], Path]] = {
    function.__name__: function
    for function in (
        npz_that_unpacks,
        npz_that_promises,
        npz_of_wide_records,
        npy_of_wide_records,
        gzip_of_lines,
        zip_of_one_line,
        zip_of_bz2,
        mat_that_unpacks,
        hdf5_that_promises,
        hdf5_of_one_chunk,
        hdf5_of_wide_records,
        aedat4_zstd,
        aedat4_lz4,
        ros1_bz2,
        ros1_lz4,
        ros1_indexed_bz2,
        mcap_zstd,
        db3_with_a_view,
        db3_with_a_made_column,
        ros2_messages,
        ros2_file,
    )
}
