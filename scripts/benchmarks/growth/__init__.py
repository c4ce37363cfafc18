"""What files, clients, sizes and servers cost as there are more of them; as a table and a plot.

- `__main__`  the command: its options, the clusters, what has to stay flat
- `axes`      measures along one axis each: number of files, clients, bytes of a file, servers
- `crowd`     many client processes at once
- `series`    what was measured: pure values, and the table
- `plot`      the picture (SVG)
"""
