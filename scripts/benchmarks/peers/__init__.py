"""`scripts/bench peers`: dfs and its peers, set up, measured and torn down in one run.

- `__main__`: the command line: one column after the other, then document, table and plot
- `rows`: what is measured, and what dfs must reach; `verdicts`: whether it does; both pure
- `results`: figures as a JSON document; `table`: as Markdown; `plot`: as SVG
- `enclosure`: namespaces of its own for each column, which take all with them when they end
- `inside`: what runs in there: brings one system up, and measures it row by row
- `system`, `systems/`: the contract of a file system that is measured, and one module for each
- `processes`: who runs in there, what they use of the processor and of memory
- `streams`, `names`, `storage`, `failure`, `commands`: the workloads

Only ratios within one run count: the machine, and what else it does, are the same for all.
"""
