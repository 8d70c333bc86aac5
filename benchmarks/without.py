"""Runs a service with one part of the data path taken out: `python benchmarks/without.py PART -m MODULE ARGUMENT…`."""

import runpy
import sys

part, _, module, *arguments = sys.argv[1:]
sys.argv = [module, *arguments]
if part == "numpy_acting" and module == "services.inference_server":
    import services.inference_server.runner as runner

    runner.numpy_actor = lambda actor: None  # type: ignore[assignment]
elif part == "kept_memory":
    import common.service as service

    service.keep_freed_memory = lambda: False  # type: ignore[assignment]
runpy.run_module(module, run_name="__main__")
