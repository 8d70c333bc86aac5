"""On the path while `benchmarks.peers install pufferlib` builds PufferLib's wheel: its C CartPole suffices.

Its setup fetches libraries for its other environments, from hosts that may be out of reach, and compiles all of them.
"""

import glob
import urllib.request
import zipfile
from pathlib import Path

every = glob.glob


def cartpole_alone(pattern, **options):
    found = every(pattern, **options)
    return [path for path in found if "cartpole" in path] if pattern.endswith("binding.c") else found


def empty_archive(url, path):
    if path.endswith(".zip"):
        zipfile.ZipFile(path, "w").close()
        Path(path.removesuffix(".zip"), "include").mkdir(parents=True, exist_ok=True)
    elif path.endswith(".gz"):
        Path(path).write_bytes(b"\0" * 1024)
    else:
        Path(path).touch()


glob.glob = cartpole_alone
urllib.request.urlretrieve = empty_archive
