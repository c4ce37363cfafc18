"""Reading rows of a store that may be damaged, for repairs."""

from dfs.core.chunk import Chunk
from dfs.core.errors import DfsError
from dfs.core.ids import MASTER_SESSION, ChunkId, InodeId
from dfs.core.inode import Inode
from dfs.master import keyspace as keys
from dfs.master.keyspace import Reader, get_chunk, get_inode, get_session, scan_prefix


def has_rows(reader: Reader, prefix: bytes) -> bool:
    return next(scan_prefix(reader, prefix), None) is not None


def sound_inode(reader: Reader, ino: InodeId) -> Inode | None:
    """Raises DfsError for a record that is another's: it would be stored there."""
    inode = get_inode(reader, ino)
    if inode is not None and inode.ino != ino:
        raise DfsError(f"the record of inode {ino} says {inode.ino}")
    return inode


def sound_chunk(reader: Reader, number: ChunkId) -> Chunk | None:
    """Raises DfsError for a record that is another's: it would be stored there."""
    chunk = get_chunk(reader, number)
    if chunk is not None and chunk.chunk != number:
        raise DfsError(f"the record of chunk {number} says {chunk.chunk}")
    return chunk


def is_known(reader: Reader, session: int) -> bool:
    return (
        session == MASTER_SESSION
        or get_session(reader, session) is not None
        or reader.get(keys.leftovers_key(session)) is not None
    )
