"""The one name for "bytes of any kind": what sockets send and files write without a copy."""

from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
