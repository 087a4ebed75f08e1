"""Facts about files that claim or unpack to more than they hold: memory is not taken for them."""

import lzma
import pickle
import struct
import zipfile
import zlib

import pytest
import torch
from limits import MIB
from refusals import read_archive, refused

from load_pretrained_model import load_pretrained
from utils.corpus.prepared import load_tensor, save_tensor

UTTERANCE_BYTES = 400 * MIB  # for what is read up to the limit of an utterance, 64 MiB of text
FLOAT4 = getattr(torch, "float4_e2m1fn_x2", torch.float8_e4m3fn)  # since PyTorch 2.8
GOOD = "a-1-1\n1 2\n3 4\n.\n"


def bomb(path, head, line, compress):
    """1 GiB behind a head, of one compressed stream of 1 MiB again and again."""
    mebibyte = (line * (MIB // len(line) + 1))[:MIB]
    path.write_bytes(compress(head) + compress(mebibyte) * 1024)
    assert path.stat().st_size < 5 * MIB


def gz(content):
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    return compressor.compress(content) + compressor.flush()


@pytest.mark.parametrize("line", [b"\0", b"0 ", b"1 1 1\n", b" ", b".\n"], ids=repr)
@pytest.mark.parametrize("name, compress", [("bomb.blogmel.xz", lzma.compress), ("bomb.blogmel.gz", gz)])
def test_a_compressed_bomb_stops_at_the_limit_of_an_utterance(name, compress, line, tmp_path):
    bomb(tmp_path / name, b"a-1-1\n", line, compress)
    refused(read_archive, tmp_path / name, limit=UTTERANCE_BYTES)


@pytest.mark.parametrize(
    "head", [b"", b"a-1-1 ", b"a-1-1 [", b"a-1-1 \0BFM \4\xff\xff\xff\x7f\4\xff\xff\xff\x7f"], ids=repr
)
def test_a_compressed_bomb_of_an_ark_stops_at_the_limit_of_an_utterance(head, tmp_path):
    bomb(tmp_path / "bomb.ark.gz", head, b"1 1 1\n", gz)
    refused(read_archive, tmp_path / "bomb.ark.gz", limit=UTTERANCE_BYTES)


def test_an_xz_file_that_asks_for_gigabytes_to_decompress_is_refused(tmp_path):
    content = bytearray(lzma.compress(GOOD.encode()))
    header = 12  # where the first block's header starts, behind the stream's
    size = (content[header] + 1) * 4
    assert content[header + 2 : header + 4] == b"\x21\x01"  # the LZMA2 filter, and one byte of properties
    content[header + 4] = 39  # the dictionary's size: 3 GiB
    content[header + size - 4 : header + size] = struct.pack("<I", zlib.crc32(content[header : header + size - 4]))
    (tmp_path / "a.blogmel.xz").write_bytes(content)
    refused(read_archive, tmp_path / "a.blogmel.xz", match="(?i)memory")


@pytest.mark.parametrize("kind", [b"FM ", b"DM ", b"CM ", b"CM2 ", b"CM3 "])
@pytest.mark.parametrize("name", ["a.ark", "a.ark.gz", "a.scp"])
def test_an_ark_that_declares_two_thousand_million_rows_is_refused(name, kind, tmp_path):
    rows, columns = 2**31 - 1, 1
    sizes = (
        struct.pack("<ffii", 0, 1, rows, columns) if kind[0] == ord("C") else struct.pack("<bibi", 4, rows, 4, columns)
    )
    content = b"a-1-1 \0B" + kind + sizes + bytes(100)
    path = tmp_path / name
    if name == "a.scp":
        (tmp_path / "a.ark").write_bytes(content)
        path.write_text(f"a-1-1 {tmp_path / 'a.ark'}:6\n")
    else:
        path.write_bytes(gz(content) if name.endswith("gz") else content)
    refused(read_archive, path, match=r"a-1-1.*2147483647 x 1 is not an utterance")


@pytest.mark.parametrize("load", [load_tensor, load_pretrained])
def test_a_compressed_bomb_in_a_pt_file_is_refused(load, tmp_path):
    save_tensor(tmp_path / "good.pt", torch.ones(2, 2))
    with zipfile.ZipFile(tmp_path / "good.pt") as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    members[next(name for name in members if name.endswith("data/0"))] = bytes(512 * MIB)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    del members, content
    assert (tmp_path / "bomb.pt").stat().st_size < MIB
    refused(load, tmp_path / "bomb.pt", match=r"bomb\.pt is damaged")


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_tensor_that_claims_more_numbers_than_its_file_holds_is_refused(is_zip, tmp_path):
    path = tmp_path / "a.pt"
    strided = torch.ones(1).expand(1 << 18, 1 << 18), torch.ones(1 << 20)[:1].expand(1 << 20, 1 << 20)
    sparse = torch.sparse_coo_tensor([[0], [0]], [1.0], (1 << 30, 1 << 30), check_invariants=True)
    for tensor in (*strided, sparse):
        torch.save(tensor, path, _use_new_zipfile_serialization=is_zip)
        refused(load_tensor, path)


def test_a_pt_file_whose_data_pose_as_a_directory_is_refused(tmp_path):
    """PyTorch would read nothing of it, and give whatever the memory held."""
    path = tmp_path / "a.pt"
    save_tensor(path, torch.ones(2, 2))
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\1\2", 0, content.rindex(b"/data/0"))
    content[entry + 38] |= 0x10  # of the external attributes, that of a directory
    path.write_bytes(content)
    refused(load_tensor, path, match=r"a\.pt is damaged")


def with_pickle(path, pickled, is_zip):
    """A PyTorch file whose object is this pickle (of the opcodes behind its protocol)."""
    torch.save(MARKER, path, _use_new_zipfile_serialization=is_zip)
    if not is_zip:
        path.write_bytes(path.read_bytes().replace(pickle.dumps(MARKER, 2), b"\x80\x02" + pickled + b"."))
        return
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, b"\x80\x02" + pickled + b"." if name.endswith("/data.pkl") else content)


MARKER = "in the place of something else"
PICKLES = {
    "a tuple in a tuple": b")" + b"\x85" * 1_000_000,
    "a key of tuples": b"}K\1" + b"\x85" * 1_000_000 + b"K\1s",
    "few tuples in tuples": b"}K\1" + b"\x85" * 100_000 + b"K\1s",
    "lists in lists": b"]" * 100_000 + b"a" * 99_999,
    "lists by name": b"".join(b"]r" + struct.pack("<I", i) for i in range(5000))
    + b"".join(b"j" + struct.pack("<II", i, 0)[:4] + b"j" + struct.pack("<I", i + 1) + b"a0" for i in range(4999))
    + b"j\0\0\0\0",
    "a list in itself": b"]q\0h\0a",
    "dicts, each twice in the next": b"}q\0"
    + b"".join(b"}q" + bytes([i + 1]) + b"(K\0h" + bytes([i]) + b"K\1h" + bytes([i]) + b"u" for i in range(40)),
    "marks": b"(" * 1_000_000,
    "a bytearray of 8 GiB": b"cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\2\x85R",
    "a tensor of 8 GiB": b"ctorch\nFloatTensor\n\x8a\x05\0\0\0\0\2\x85R",
}


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_nests_or_grows_without_bound_is_refused(name, is_zip, tmp_path):
    with_pickle(tmp_path / "a.pt", PICKLES[name], is_zip)
    for load in (load_tensor, load_pretrained):
        refused(load, tmp_path / "a.pt", match=r"a\.pt (is damaged|would run code)")


def test_a_thousand_views_of_one_storage_are_refused_before_they_are_copied(tmp_path):
    whole = torch.ones(1 << 20, dtype=torch.float16)
    torch.save({f"rnns.{i}.weight_hh_l0": whole[:] for i in range(1000)}, tmp_path / "views.pt")
    shared = {"exp_avg": whole}
    torch.save({"model": {str(i): whole for i in range(1000)}}, tmp_path / "same.pt")
    torch.save({"model": {"a": torch.ones(2)}, "state": {i: shared for i in range(1000)}}, tmp_path / "dicts.pt")
    for name in ("views", "same", "dicts"):
        assert (tmp_path / f"{name}.pt").stat().st_size < 3 * MIB
        refused(load_pretrained, tmp_path / f"{name}.pt", match=r"\.pt is damaged: .*tensors overlap")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("load", [load_tensor, load_pretrained])
def test_tensors_that_are_not_plain_numbers_are_refused(load, tmp_path):
    path = tmp_path / "a.pt"
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])
    quantized = torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.quint8)
    negative = torch.ones(2, 3, dtype=torch.complex64).conj().imag  # has its sign bit flipped when it is read
    tiny = torch.zeros(2, 3, dtype=torch.uint8).view(FLOAT4)
    for tensor in (
        torch.ones(2, 3, device="meta"),
        nested,
        quantized,
        negative,
        tiny,
        tiny.view(torch.uint8),
        torch.ones(2, 3).to(torch.float8_e5m2),
        torch.ones(2, 3, dtype=torch.complex64),
    ):
        for value in (tensor, {"rnns.0.weight_hh_l0": tensor}):
            torch.save(value, path)
            refused(load, path, match=r"a\.pt")
