"""Images through the Nature CNN: how long a pass takes in each memory format, compiled, and in bfloat16; one thread.

All forms take turns, and the shortest pass of each stands in docs/algorithms.md: other work only lengthens one.

    python -m benchmarks.images
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.page import stamped, write_sections
from common.allocator import keep_freed_memory
from common.rl.fastest import shortest
from common.rl.networks import Inputs, NetworkConfig, Trunk
from common.rl.processor import has_bf16
from common.types import ArraySpec

PAGE = Path("docs/algorithms.md")
SPEC = ArraySpec("obs", "|u1", (4, 84, 84), stack=4)
COLUMNS = {"acting, 64 rows": (64, False), "learning, 64 rows": (64, True), "learning, 256 rows": (256, True)}


def _pass(config: NetworkConfig, rows: int, learns: bool) -> Callable[[], object]:
    """Gives a pass of random images, there or there and back."""
    inputs = Inputs((SPEC,), config)
    trunk = Trunk(inputs, config)
    images = {SPEC.name: torch.randint(0, 256, (rows, *SPEC.shape), dtype=torch.uint8)}

    def there() -> torch.Tensor:
        features: torch.Tensor = trunk(inputs(images))
        return features

    if learns:
        return lambda: torch.autograd.grad(there().sum(), list(trunk.parameters()))
    return torch.inference_mode()(there)


def report() -> str:
    """Gives Markdown: a row for each form."""
    keep_freed_memory()
    torch.set_num_threads(1)
    forms = {"": {}, ", compiled": {"compile": True}}
    if has_bf16(torch.device("cpu")):
        forms[", bf16"] = {"bf16": True}
    build = partial(NetworkConfig, name="nature_cnn")
    configs = {
        f"{name}{form}": build(channels_last=last, **settings)
        for form, settings in forms.items()
        for name, last in (("contiguous", False), ("channels_last", True))
    }
    cells = [
        shortest([_pass(config, rows, learns) for config in configs.values()]) for rows, learns in COLUMNS.values()
    ]
    lines = [f"| format | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for name, *row in zip(configs, *cells, strict=True):
        lines.append(f"| {name} | {' | '.join(f'{1e3 * seconds:.1f}' for seconds in row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    write_sections(PAGE, {"images": stamped(report(), "the shortest of three or more passes, in milliseconds")})
