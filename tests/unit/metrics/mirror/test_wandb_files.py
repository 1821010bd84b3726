"""Files of wandb's are read as far as they are sound, and what is not is told."""

import struct
import zlib

import pytest

from pretrain.metrics.mirror.files import BLOCK_BYTES, payloads

RECORDS = [bytes([65 + number]) * length for number, length in enumerate((10, 40_000, 3, 70_000))]


def log_of(records):
    """The bytes of a log as LevelDB writes it."""
    content = b":W&B\xbe\xe1\x00"
    for record in records:
        begun = False
        while True:
            room = BLOCK_BYTES - len(content) % BLOCK_BYTES
            if room < 7:
                content += bytes(room)
                continue
            part, record = record[: room - 7], record[room - 7 :]
            kind = (3 if record else 4) if begun else (2 if record else 1)
            checksum = zlib.crc32(part, zlib.crc32(bytes([kind])))
            content += struct.pack("<IHB", checksum, len(part), kind) + part
            begun = True
            if not record:
                break
    return content


def read(content):
    damage = []
    return list(payloads(content, damage)), damage


def test_a_whole_log_is_read():
    assert read(log_of(RECORDS)) == (RECORDS, [])


@pytest.mark.parametrize("left", [0, 3, 7, 12, 20, 30_000, 100_000])
def test_a_torn_end_costs_the_last_record_and_is_no_damage(left):
    content = log_of(RECORDS)[:left]
    records, damage = read(content)
    assert records == RECORDS[: len(records)]
    assert damage == []
    assert read(content + bytes(5000))[0] == records, "room that nobody wrote to"


@pytest.mark.parametrize("place", [2, 8, 11, 12, 13, 20, 25, 33_000, 60_000])
def test_a_flipped_bit_is_told_and_costs_only_what_is_near(place):
    content = bytearray(log_of([*RECORDS, b"end"]))
    content[place] ^= 4
    records, damage = read(bytes(content))
    assert len(damage) == 1
    assert records[-1] == b"end"
    assert set(records) <= {*RECORDS, b"end"}
