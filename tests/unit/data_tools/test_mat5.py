import base64
import struct
import zlib

import pytest

from data_tools.mat5 import Synset, read_synsets
from data_tools.raw_forms_1k import meta_mat
from pretrain.errors import DataError

# Written by scipy.io.savemat: another variable, then three rows with ids of type uint8, double and
# int16 and a field that is not ours.
FOREIGN = (
    "c-r%I4DoSvQZUssQ1EpO(M`+DNmU5QNi0drFUqx2D9A6)tk6+#E=o--Nlj76&$ChpF3nT$%P&(fGEy)!u`)EXGBi"
    "~%GB7e@AOkRZ`tk!QLm;l0^Ef#np@SjGOyOC>C4~cAPmLW7l|yv)t0-^f@F-^5$i&Q3vmyNem)#9!hF$io)*y`nj"
    "4+Ki4xBk~fNhCo!;DTwrig_#3q+WeMK&`R7N*7(W_cP0%xi7r*UDo&GSBW{qT@L?wl=qq^YnNg);Tcoo%-Az)b()"
    "Blb$nkrYyQ*!@-}@#>jlA&d=nx<U|AJ8?`+NW*+mIC)tVV{IZz%h120@C7WAY+q7q5(|9<3+j7iMZcO9rm_Iji(S"
    "&L73l|H7%?h3nwPwQX88K7hCq?$W(=*d~W~eyxIH##FlidwxNxqs31xM5QlxJDW6cj7`I>{@~%v_utyySyo3ZMKe"
    "OND*eaaDe4g>6g*8>cK0OPuBGxkF*OxE|BPLp&y5RgG0&vU2d8_2rpx=x|emWlqMkh94^{RcESBy~54Tuq)1RF#y"
    "VknI!"
)
ROWS = [(1, "n02119789", "kit fox, Vulpes"), (2, "n00001740", "")]


def test_another_writers_file_is_read():
    data = zlib.decompress(base64.b85decode(FOREIGN))
    assert read_synsets(data, "meta.mat") == [
        Synset(1, "n02119789", "kit fox, Vulpes macrotis"),
        Synset(2, "n02100735", "English setter"),
        Synset(1001, "n00001740", "entity"),
    ]


def test_our_miniature_is_read_compressed_or_not():
    packed = meta_mat(ROWS)
    plain = packed[:128] + zlib.decompress(packed[136:])
    for data in (packed, plain):
        assert [(s.ilsvrc_id, s.wnid, s.words) for s in read_synsets(data, "x")] == ROWS


@pytest.mark.parametrize("end", [0, 100, 128, 140, 200, -1])
def test_truncation_is_refused(end):
    with pytest.raises(DataError, match=r"x: not the meta\.mat of ILSVRC2012: .*fetch"):
        read_synsets(meta_mat(ROWS)[:end], "x")


def test_no_damage_escapes_as_another_error():
    packed = meta_mat(ROWS)
    plain = bytearray(packed[:128] + zlib.decompress(packed[136:]))
    refused = 0
    for at in range(124, len(plain)):
        for value in (0, 0xFF, plain[at] ^ 1):
            before, plain[at] = plain[at], value
            try:
                read_synsets(bytes(plain), "x")
            except DataError:
                refused += 1
            plain[at] = before
    assert refused > 500


def test_other_files_are_refused():
    empty = meta_mat(ROWS)[:128] + struct.pack("<II", 1, 0)
    for data in (b"x" * 500, empty, meta_mat([])[:128]):
        with pytest.raises(DataError, match="not the meta"):
            read_synsets(data, "x")


def test_bombs_are_refused(monkeypatch):
    monkeypatch.setattr("data_tools.mat5.MAX_BYTES", 1000)
    packed = zlib.compress(bytes(100_000))
    data = meta_mat(ROWS)[:128] + struct.pack("<II", 15, len(packed)) + packed
    with pytest.raises(DataError, match="cut short, or larger than"):
        read_synsets(data, "x")
