"""The one network protocol of dfs (PROTOCOL.md), from the bytes up.

- `messages`    every request and reply; the numbered method table
- `framing`     bytes <-> frames, without I/O, bounded
- `hello`       the first frame of each side: versions, role, cluster, token
- `transport`   byte streams under a connection; TCP, addresses
- `memory`      byte streams without sockets, and a network that fails on demand: simulations
- `limits`      what one connection and one server hold at most
- `payloads`    memory that payloads are received into, used again
- `complaints`  log lines about what others do wrong, few of them
- `handlers`    what a program that answers requests hands in
- `side`        what one program brings to all its connections
- `outbox`      the queue of what is to be sent, and its sender
- `connection`  calls and answers over one transport
- `handshake`   the exchange of hellos
- `dial`        `connect`: one connection to one address
- `pool`        `Pool`: calls by address, connections kept and re-opened
- `serve`       `serve`: accept connections and answer
- `threads`     where handlers run what blocks
- `http`        the monitoring port, apart from all this
"""
