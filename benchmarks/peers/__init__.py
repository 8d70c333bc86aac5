"""Other libraries in their own virtual environments: `python -m benchmarks.peers install`, then `run`.

The scripts here run under the peers' interpreters and import nothing of Headrace. Each is called with what to measure,
the seconds of each measurement and, if only one is wanted, a setting's name; it prints one line of JSON last, the rate
of each setting.
"""
