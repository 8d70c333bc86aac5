"""Benchmarks beside peers and limits, each a command: `python -m benchmarks.<name>`."""

import os

# Before numpy or torch is imported, or BLAS takes every core; the processes that benchmarks start inherit it.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"
