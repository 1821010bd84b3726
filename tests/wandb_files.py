"""Reading back what wandb wrote offline."""

import json
import struct
import zlib


def records_of(path):
    """The records of a .wandb file: LevelDB log blocks of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, payload, records = 7, b"", []
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        crc, length, kind = struct.unpack("<IHB", content[position : position + 7])
        part = content[position + 7 : position + 7 + length]
        assert crc == zlib.crc32(part, zlib.crc32(bytes([kind])))
        position += 7 + length
        payload += part
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(payload)
            records.append(record)
            payload = b""
    return records


def history_of(path):
    """The logged rows of a .wandb file, without wandb's own columns."""
    rows = []
    for record in records_of(path):
        if record.WhichOneof("record_type") == "history":
            items = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            rows.append({key: items[key] for key in items if not key.startswith("_")})
    return rows


def offline_files(run):
    return sorted(run.wandb_dir.glob("offline-run-*/*.wandb"))
