"""Parts of the benchmark, a module for each; `measure(config, workdir, report)` of a part returns what it adds.

The report holds what earlier parts have measured. `input` and `start` keep JAX out of this process, and all computing
is done in child processes (`contest`), so that the part before leaves no memory and no threads behind.
"""
