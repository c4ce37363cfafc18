"""One fragment file: create, append, find, seal, recover. Blocking calls only, no event loop.

`append`, `seal` and `sync` run in worker threads; their caller (`dfs.chunkserver.fragment`) lets
one of `append` and `seal` run at a time. `locate` is quick and may run at any time in any thread.
Whatever fails, the index never says more than the file holds.

OSErrors leave as they are: `Disk` knows what they mean for the disk.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

import msgspec

from dfs.chunkserver.fragment_format import (
    FILE_HEADER_BYTES,
    BlockIndex,
    FragmentHeader,
    FragmentName,
    decode_file_header,
    encode_footer,
    footer_bytes,
)
from dfs.chunkserver.fragment_scan import find_records, read_footer, verify
from dfs.chunkserver.identity import sync_directory
from dfs.core.block import Record, parse_records
from dfs.core.buffers import Buffer
from dfs.core.erasure import piece_length
from dfs.core.errors import CorruptError, DfsError, FragmentError
from dfs.wire.messages import FragmentStatus

_log = logging.getLogger(__name__)

Claim = Callable[[int], None]
"""Asks for room for so many bytes before they are written (NoSpaceError); negative gives back."""

REPLY_MAX_BYTES: Final = 12 * 1024 * 1024
"""Of records in one answer. Raw bytes are bounded by the request, tiny blocks' headers are not."""

_IOV_MAX: Final = 1024


class FragmentGoneError(FragmentError):
    """The file is not there any more. On the wire a plain FragmentError."""


class Batch(msgspec.Struct, frozen=True):
    """Records of one Append request."""

    first_block: int
    blocks: int
    payload: memoryview


class Reached(msgspec.Struct, frozen=True):
    """How far a fragment goes."""

    next_block: int
    length: int
    """Raw bytes."""


class FragmentFile:
    """An open fragment file, or one that its first append will create."""

    def __init__(self, directory: str, header: FragmentHeader) -> None:
        """A fragment that is not there yet: no file until the first append succeeds."""
        self.header = header
        self.index = BlockIndex()
        self.sealed = False
        self.promised_length = 0
        """Raw bytes the file's name says it has; more than the index where it is damaged."""
        self.appends = 0
        """Goes up with every change that a sync makes durable."""
        self.size_change = 0
        """Bytes that opening it added to the file: below zero where it was cut."""
        self._directory = directory
        self._name = FragmentName(header.chunk, header.index, None)
        self._fd = -1
        self._directory_synced = False

    @classmethod
    def open(cls, directory: str, name: FragmentName, cluster: UUID) -> "FragmentFile":
        """Open what is on disk: a sealed one by its footer, an open one by reading all of it.

        An open one is cut at the first bad record; a sealed one is never changed.

        Raises:
            FragmentError: the file is missing, or is not the fragment its name says.
        """
        path = os.path.join(directory, str(name))
        try:
            fd = _open_fd(path, writable=name.length is None)
        except FileNotFoundError as error:
            raise FragmentGoneError(f"{_describe(name)} is missing: its file is gone") from error
        try:
            head = os.pread(fd, FILE_HEADER_BYTES, 0)
            try:
                header = decode_file_header(head)
            except CorruptError as error:
                raise FragmentError(f"{_describe(name)} is unreadable: {error.message}") from error
            if (header.cluster, header.chunk, header.index) != (cluster, name.chunk, name.index):
                raise FragmentError(
                    f"{path} holds fragment {header.index} of chunk {header.chunk} of cluster "
                    f"{header.cluster}: not what its name says"
                )
            file = cls(directory, header)
            file._name = name
            file._fd = fd
            file._load()
        except BaseException:
            os.close(fd)
            raise
        return file

    # ------------------------------------------------------------------ what it is

    @property
    def path(self) -> str:
        return os.path.join(self._directory, str(self._name))

    @property
    def name(self) -> FragmentName:
        """As on disk: it changes when the fragment is sealed."""
        return self._name

    @property
    def exists(self) -> bool:
        """False until the first append."""
        return self._fd >= 0

    @property
    def fd(self) -> int:
        return self._fd

    @property
    def reached(self) -> Reached:
        index = self.index
        return Reached(len(index), index.length)

    def status(self) -> FragmentStatus:
        index = self.index
        header = self.header
        return FragmentStatus(
            header.index,
            len(index),
            index.length,
            self.stored_bytes,
            self.sealed,
            header.k,
            header.m,
        )

    @property
    def index_bytes(self) -> int:
        """Memory the index takes."""
        return len(self.index) * 8

    @property
    def stored_bytes(self) -> int:
        """Size of the file, as it should be."""
        index = self.index
        return index.file_end + (footer_bytes(len(index)) if self.sealed else 0)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def check_present(self, end: int) -> int:
        """The size of the file, once sure that it is still there and has `end` bytes.

        Raises:
            FragmentError: it was deleted or cut short behind our back.
        """
        status = os.fstat(self._fd)
        if status.st_nlink == 0:
            raise FragmentError(f"{_describe(self._name)} is missing: its file was deleted")
        if status.st_size < end:
            raise FragmentError(
                f"{_describe(self._name)} is short: its file has {status.st_size} bytes of {end}"
            )
        return status.st_size

    # ------------------------------------------------------------------ reading

    def locate(self, offset: int, length: int) -> tuple[int, int, int]:
        """(file offset, bytes, records) of the records that overlap raw [offset, offset + length).

        Only the first of them where they take more than `REPLY_MAX_BYTES`.

        Raises:
            FragmentError: the fragment should have them, and does not any more.
        """
        start, size, records = self.index.locate(offset, length, REPLY_MAX_BYTES)
        self.check_present(start + size)
        if max(offset, self.index.length) < min(offset + length, self.promised_length):
            raise FragmentError(
                f"{_describe(self._name)} is short: {self.index.length} of "
                f"{self.promised_length} bytes are left"
            )
        return start, size, records

    # ------------------------------------------------------------------ writing

    def append(
        self, batches: Sequence[Batch], claim: Claim, sync: bool = False
    ) -> list[Reached | DfsError]:
        """Verify and store the batches in order; what became of each.

        Blocks already stored are compared and skipped. The others are written together; then
        they are in the page cache, or with `sync` on the disk, as all that was there before.

        Raises:
            OSError, NoSpaceError: nothing of what was not yet stored is; or the sync failed.
        """
        outcomes: list[Reached | DfsError] = []
        fresh: list[Record] = []
        buffers: list[Buffer] = []
        for batch in batches:
            if fresh and batch.first_block <= fresh[-1].header.block_index:
                # Repeats what waits to be written: to compare, it has to be there.
                self._store(fresh, buffers, claim)
                fresh, buffers = [], []
            try:
                records, part = self._check(batch, fresh[-1] if fresh else None)
            except DfsError as error:
                outcomes.append(error)
                continue
            if records:
                fresh += records
                buffers.append(part)
                last = records[-1].header
                outcomes.append(Reached(last.block_index + 1, last.raw_end))
            else:
                outcomes.append(self.reached)
        if fresh:
            self._store(fresh, buffers, claim)
        if sync and self._fd >= 0:
            self.sync()
        return outcomes

    def _check(self, batch: Batch, before: Record | None) -> tuple[list[Record], memoryview]:
        """The batch's records that are not stored yet, and their bytes.

        `before`: the last record that waits to be written.
        """
        header = self.header
        records = parse_records(
            batch.payload, chunk=header.chunk, content_index=header.content_index
        )
        if len(records) != batch.blocks or batch.blocks == 0:
            raise FragmentError(
                f"{_describe(self._name)}: the request announces {batch.blocks} blocks and "
                f"brings {len(records)}"
            )
        next_block, length = len(self.index), self.index.length
        if before is not None:
            next_block, length = before.header.block_index + 1, before.header.raw_end
        if batch.first_block > next_block:
            raise FragmentError(
                f"{_describe(self._name)} has a gap: block {batch.first_block} was sent, "
                f"the next is {next_block}"
            )
        stored = min(next_block - batch.first_block, len(records))
        stored_bytes = sum(record.length for record in records[:stored])
        end = length if stored < len(records) else None
        for number, record in enumerate(records):
            self._check_place(record, batch.first_block + number)
            if number >= stored:
                if record.header.raw_offset != end:
                    raise FragmentError(
                        f"{_describe(self._name)}: block {record.header.block_index} starts at "
                        f"{record.header.raw_offset}, the one before ends at {end}"
                    )
                end = record.header.raw_end
        if stored:
            self._compare(batch.first_block, batch.payload[:stored_bytes])
        if self.sealed and stored < len(records):
            raise FragmentError(
                f"{_describe(self._name)} is sealed with {next_block} blocks, "
                f"{length} bytes; it takes no more"
            )
        return records[stored:], batch.payload[stored_bytes:]

    def _check_place(self, record: Record, block_index: int) -> None:
        header = record.header
        if header.block_index != block_index:
            raise FragmentError(
                f"{_describe(self._name)}: block {header.block_index} comes where block "
                f"{block_index} belongs"
            )
        if header.payload_length != piece_length(header.encoded_length, self.header.k):
            raise FragmentError(
                f"{_describe(self._name)}: block {block_index} is not split into "
                f"{self.header.k} pieces"
            )

    def _compare(self, first_block: int, sent: memoryview) -> None:
        start = self.index.start_of(first_block)
        self.check_present(start + len(sent))
        if os.pread(self._fd, len(sent), start) != sent:
            raise FragmentError(
                f"{_describe(self._name)}: block {first_block} or one after it is stored already, "
                "with other bytes"
            )

    def _store(self, records: list[Record], buffers: list[Buffer], claim: Claim) -> None:
        """Write the records and add them to the index; all of them or none."""
        size = sum(map(len, buffers))
        if self._fd < 0:
            self._create(buffers, size, claim)
        else:
            start = self.index.file_end
            beyond = self.check_present(start) - start
            claim(size)
            try:
                if beyond:
                    os.ftruncate(self._fd, start)
                _write_all(self._fd, buffers, start)
            except BaseException:
                claim(-size)
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, start)
                raise
        for record in records:
            self.index.add(record.header)
        self.appends += 1

    def _create(self, buffers: list[Buffer], size: int, claim: Claim) -> None:
        size += FILE_HEADER_BYTES
        claim(size)
        fd = -1
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = os.open(self.path, flags, 0o600)
            _write_all(fd, [self.header.encode(), *buffers], 0)
        except BaseException:
            claim(-size)
            if fd >= 0:
                os.close(fd)
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
            raise
        self._fd = fd

    def check_reaches(self, length: int) -> None:
        """Raises FragmentError where it does not hold the first `length` raw bytes of its chunk."""
        if self.index.length < length:
            raise FragmentError(
                f"{_describe(self._name)} is short: it ends at {self.index.length}, "
                f"and has to reach {length}"
            )

    def sync(self) -> None:
        """Make all that was appended durable, and the file's name."""
        _sync_data(self._fd)
        self._sync_name()

    def _sync_name(self) -> None:
        if not self._directory_synced:
            sync_directory(self._directory)
            self._directory_synced = True

    def seal(self, length: int, claim: Claim) -> None:
        """Cut after the block that holds the last of `length` raw bytes, add the footer, sync.

        Usually that block ends at `length`. It need not: the master seals the chunk of a session
        that died at its last committed byte, and blocks are never split.

        Raises:
            FragmentError: the fragment does not reach `length`.
        """
        index = self.index
        self.check_reaches(length)
        if self.sealed:
            return
        self.check_present(index.file_end)
        before = self.stored_bytes
        index = index.first(index.blocks_within(length))
        footer = encode_footer(index, self.header)
        end = index.file_end + len(footer)
        # From here on the file is as the shorter index says, or fails as a whole.
        self.index = index
        try:
            _write_all(self._fd, [footer], index.file_end)
            os.ftruncate(self._fd, end)
        except BaseException:
            claim(index.file_end - before)
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, index.file_end)
            raise
        claim(end - before)
        _sync_data(self._fd)
        self._finish_seal()

    def _finish_seal(self) -> None:
        """The footer is durable: say so in the name.

        A crash before the new name is on disk does no harm: the footer is found under the old,
        which is made durable first. So whoever sees the new name knows that all is durable.
        """
        self._sync_name()
        sealed = FragmentName(self.header.chunk, self.header.index, self.index.length)
        os.rename(self.path, os.path.join(self._directory, str(sealed)))
        self._name = sealed
        self.sealed = True
        self.promised_length = self.index.length
        self.appends += 1

    # ------------------------------------------------------------------ opening

    def _load(self) -> None:
        size = os.fstat(self._fd).st_size
        promised = self._name.length
        if promised is not None:
            self.sealed = True
            self.promised_length = promised
            self._directory_synced = True
        try:
            self.index = read_footer(self._fd, self.header, size)
            if promised is None:
                # A power cut may have kept the footer and lost records before it.
                verify(self._fd, self.header, self.index)
        except CorruptError as error:
            if promised is None:
                self._recover(size)
            else:
                self.index = find_records(self._fd, self.header, size, verify_payload=False)
                _log.warning(
                    "%s: %s; its records were read instead and reach %d of %d bytes",
                    self.path, error.message, self.index.length, promised,
                )  # fmt: skip
            return
        if promised is None:
            # The server died between the footer and the name, and all is there.
            try:
                _sync_data(self._fd)
                self._finish_seal()
            except OSError as error:
                if error.errno != errno.EROFS:  # a read-only disk is still worth reading
                    raise
        elif self.index.length != promised:
            raise FragmentError(
                f"{self.path} covers {self.index.length} bytes: not what its name says"
            )

    def _recover(self, size: int) -> None:
        """Bring an open fragment back to its last good record after a crash."""
        self.index = find_records(self._fd, self.header, size, verify_payload=True)
        end = self.index.file_end
        if size > end:
            _log.info(
                "%s: cut after its last good record, from %d to %d bytes", self.path, size, end
            )
            with contextlib.suppress(OSError):  # a read-only disk is still worth reading
                os.ftruncate(self._fd, end)
                self.size_change = end - size


def _open_fd(path: str, *, writable: bool) -> int:
    if writable:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _sync_data(fd: int) -> None:
    """fdatasync. Where it fails, bytes may be gone for good, and a second try would not say so.

    Raises OSError with EIO, also where the reason was a lack of space: the disk has failed.
    """
    try:
        os.fdatasync(fd)
    except OSError as error:
        raise OSError(errno.EIO, f"{error.strerror} in fdatasync") from error


def _write_all(fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    rest = [memoryview(buffer) for buffer in buffers]
    while rest:
        written = os.pwritev(fd, rest[:_IOV_MAX], offset)
        offset += written
        while rest and written >= len(rest[0]):
            written -= len(rest[0])
            del rest[0]
        if written:
            rest[0] = rest[0][written:]


def _describe(name: FragmentName) -> str:
    return f"fragment {name.index} of chunk {name.chunk}"
