"""What W&B's local files hold: run-<id>.wandb, a LevelDB log of protobuf records."""

import time
from collections.abc import Iterator
from pathlib import Path

BLOCK, HEADER = 32768, 7  # bytes; the file's own header, before its first record, is as long as a record's
FULL, FIRST, LAST = 1, 2, 4  # kinds of fragments; 3 is one in the middle
# Seconds for which the service of a killed process may still write.
SETTLED = 3.0


def last_step(folder: Path, own: str) -> int:
    """The highest step that a file below `folder`/wandb holds for the run `own`; -1 where none does or none is readable."""
    steps = [-1]
    for path in Path(folder).glob(f"wandb/*run-*/run-{own}.wandb"):
        if not path.parent.is_symlink():  # latest-run
            time.sleep(min(max(path.stat().st_mtime + SETTLED - time.time(), 0.0), SETTLED))
            steps += steps_of(path.read_bytes())
    return max(steps)


def steps_of(content: bytes) -> Iterator[int]:
    """The step of each history row."""
    from wandb.proto import wandb_internal_pb2

    for data in records(content):
        record = wandb_internal_pb2.Record()
        try:
            record.ParseFromString(data)
        except Exception:  # protobuf's own DecodeError: damaged here, and so is what follows
            return
        if record.HasField("history"):
            yield record.history.step.num


def records(content: bytes) -> Iterator[bytes]:
    """The records of a log, up to where it was cut."""
    at, found = HEADER, b""
    while at + HEADER <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # a block ends in zeros
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        data = content[at + HEADER : at + HEADER + length]
        if len(data) < length or kind not in (FULL, FIRST, 3, LAST):
            return
        found = data if kind in (FULL, FIRST) else found + data
        if kind in (FULL, LAST):
            yield found
        at += HEADER + length
