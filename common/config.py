"""The configuration: YAML, `HEADRACE_…` variables and dotted overrides, merged into one frozen, validated Config.

The only place, with the command line, that reads files and environment variables for settings. The `network` and
`algorithm` sections are opaque here: the learner validates them, so that roles without torch need not know them.

Precedence, weakest first: `configs/defaults.yaml`, the overlay, environment variables, command-line overrides.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import ConfigError, nearest

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
ENVIRONMENT_PREFIX = "HEADRACE_"
MAX_ENVS = 1 << 43  # of a job: their numbers are part of what their noise is made of


class _Loader(yaml.SafeLoader):
    """YAML 1.2 in two ways: 3e-4 is a number (1.1: text), and a key that comes twice an error (1.1: the last wins)."""

    def construct_document(self, node: yaml.Node) -> Any:
        return self.construct_object(node, deep=True)  # not in two passes, which is how a value gets to hold itself

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [(key.tag, key.value) for key, _ in node.value]
        for at, key in enumerate(keys):
            if key in keys[:at]:
                mark = node.value[at][0].start_mark
                raise yaml.MarkedYAMLError(problem=f"key {key[1]!r} comes twice", problem_mark=mark)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes the text that _Loader would take for a number."""


_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


class Section(BaseModel):
    """A frozen section that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class RunConfig(Section):
    name: str = Field("", description="name of the run's directory; empty: algorithm, environment and time")
    dir: str = Field("runs", description="the directory that holds run directories")
    seed: int = Field(1, ge=0, lt=1 << 31, description="seed of environments, sampling and minibatches")


class EnvConfig(Section):
    id: str = Field("CartPole-v1", description="a Gymnasium id, `module:Id`, or `package.module:factory`")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="arguments of the environment's constructor")
    servers: int = Field(1, ge=1, description="env-server processes started by `headrace train`")
    groups: int = Field(2, ge=1, description="groups per env-server: one steps while another waits for actions")
    envs: int = Field(8, ge=1, description="environments per group")
    frame_skip: int = Field(1, ge=1, description="ticks per step, for simulators that do not say it themselves")
    vectorized: bool = Field(True, description="step all environments of a group natively where that can be done")
    info_mask: bool = Field(False, description="the action mask in the environment's info becomes an observation")
    step_deadline_s: float = Field(60.0, gt=0, description="a step that takes longer ends its env-server")
    affinity: Literal["none", "auto"] = Field("none", description="auto: each env-server keeps to one core")


class RolloutConfig(Section):
    unroll: int = Field(64, ge=1, description="T: steps per unroll")
    tables: tuple[str, ...] = Field(("experience",), min_length=1, description="tables that each unroll goes to")


class InferenceConfig(Section):
    servers: int = Field(1, ge=1, description="inference-server processes started by `headrace train`")
    max_batch: int = Field(4096, ge=1, description="environments in one forward pass at most")
    wait_us: int = Field(0, ge=0, description="microseconds a request waits for others to join its batch")
    device: str = Field("cpu", description="torch device of the forward pass")
    threads: int = Field(1, ge=1, description="torch threads")
    hold_back: int = Field(0, ge=0, description="versions that acting stays behind the newest; for experiments")


class HerConfig(Section):
    k: int = Field(0, ge=0, description="transitions with another goal for each one with its own; 0: no hindsight")
    strategy: Literal["final", "future", "episode"] = Field("future", description="which goal of its episode it gets")


class TableConfig(Section):
    kind: Literal["fifo", "uniform", "prioritized", "unrolls"] = Field(
        "fifo", description="fifo: each unroll once, in order; the others: a ring; unrolls: whole ones, uniformly"
    )
    capacity: int = Field(64, ge=1, description="fifo: unrolls; ring: steps")
    min_size: int = Field(1, ge=1, description="ring: steps before the first batch")
    samples_per_insert: float = Field(0.0, ge=0, description="ring: items drawn per step stored; 0: no limit")
    error_buffer: float = Field(0.0, ge=0, description="ring: how far draws may run ahead or behind, in items")
    n_step: int = Field(1, ge=1, description="steps in a transition")
    discount: float | None = Field(None, gt=0, le=1, description="what a transition's reward is worth a step later")
    reward_clip: float = Field(0.0, ge=0, description="a transition's rewards are clipped to ± this; 0: they are not")
    sequence: int = Field(0, ge=0, description="steps in a sequence, burn-in included; 0: transitions")
    period: int = Field(0, ge=0, description="steps between starts of sequences, a multiple of rollout.unroll")
    burn_in: int = Field(0, ge=0, description="first steps of a sequence that are not learned from: fewer make no item")
    alpha: float = Field(0.6, ge=0, description="prioritized: exponent of the priorities")
    newest: float = Field(0.0, ge=0, le=1, description="ring: share of each batch that is the newest items")
    max_times_sampled: int = Field(0, ge=0, description="ring: draws after which an item is taken away; 0: no limit")
    max_bytes: int = Field(0, ge=0, description="ring: bytes that it may hold, in fewer steps if need be; 0: no bound")
    her: HerConfig = HerConfig()

    @property
    def unread(self) -> tuple[str, ...]:
        """The keys that a table like this does not look at."""
        ring = ("min_size", "samples_per_insert", "error_buffer", "newest", "max_times_sampled", "max_bytes")
        transitions, sequences = ("n_step", "discount", "reward_clip"), ("sequence", "period", "burn_in")
        if self.kind == "fifo":
            return (*ring, *transitions, *sequences, "alpha", "her")
        if self.kind == "unrolls":
            return (*transitions, *sequences, "alpha")
        return (*(transitions if self.sequence else sequences), *(() if self.kind == "prioritized" else ("alpha",)))


class ReplayConfig(Section):
    servers: int = Field(1, ge=1, description="replay-server processes; more than one share out the streams")
    tables: dict[str, TableConfig] = Field(default_factory=lambda: {"experience": TableConfig()}, min_length=1)
    max_policy_lag: int = Field(0, ge=0, description="hard bound on versions from acting to training; 0: synchronous")
    group_deadline_s: float = Field(
        10.0, gt=0, description="a batch goes without a group (lag 0), or a shard, later than this"
    )
    checkpoint_s: float = Field(0.0, ge=0, description="seconds between checkpoints of each ring; 0: none")


class CheckpointConfig(Section):
    interval_s: float = Field(60.0, gt=0, description="seconds between checkpoints")
    keep: int = Field(3, ge=1, description="newest checkpoints kept, besides the best")


class MixConfig(Section):
    """Stored unrolls mixed into each batch of new ones."""

    table: str = Field("", description="a table of kind unrolls; empty: none")
    per_online: int = Field(7, ge=1, description="stored columns for each new one")


class LearnerConfig(Section):
    """Optimiser settings that are null are the algorithm's own."""

    lr: float | None = Field(None, gt=0, description="learning rate")
    lr_schedule: Literal["constant", "linear"] | None = Field(
        None, description="linear: falls to 0 as the job's budget (stop.steps, frames or seconds) is used up"
    )
    optimizer: Literal["adam", "rmsprop"] | None = Field(None, description="the optimiser")
    eps: float | None = Field(
        None, gt=0, description="the optimiser's epsilon; 1e-5 where `optimizer` is not the algorithm's own"
    )
    alpha: float | None = Field(None, gt=0, lt=1, description="rmsprop: decay of the squared gradient")
    max_grad_norm: float | None = Field(None, gt=0, description="the gradient is clipped to this norm")
    table: str = Field("experience", description="the table to train from")
    batch: int = Field(0, ge=0, description="unrolls (0 at lag 0: one of each group), transitions or sequences a batch")
    per_request: int = Field(1, ge=1, description="batches that one request draws from a ring, trained on in turn")
    prefetch: int = Field(1, ge=1, description="requests answered ahead; of a fifo table at lag 0 none are")
    replayed: MixConfig = MixConfig()
    publish_every: int = Field(1, ge=1, description="updates between versions of the weights that are published")
    device: str = Field("cpu", description="torch device of the update")
    threads: int = Field(1, ge=1, description="torch threads, of each replica")
    replicas: int = Field(1, ge=1, description="processes that share each batch, one GPU each where the device is cuda")
    on_nan: Literal["skip", "stop"] = Field("skip", description="what a non-finite loss does")
    log_s: float = Field(1.0, gt=0, description="seconds between rows of progress.csv")
    checkpoint: CheckpointConfig = CheckpointConfig()


class StopConfig(Section):
    steps: int = Field(0, ge=0, description="environment steps; 0: no limit")
    frames: int = Field(0, ge=0, description="simulator frames; 0: no limit")
    seconds: float = Field(0.0, ge=0, description="seconds of training; 0: no limit")
    episode_return: float | None = Field(None, description="mean return over `episodes` training episodes")
    episodes: int = Field(100, ge=1, description="episodes in that mean")


class NetConfig(Section):
    act: tuple[str, ...] = Field(("tcp://127.0.0.1:5701",), min_length=1, description="inference-server addresses")
    experience: tuple[str, ...] = Field(("tcp://127.0.0.1:5702",), min_length=1, description="replay-server addresses")
    weights: str = Field("tcp://127.0.0.1:5703", description="learner-server address")
    security: Literal["auto", "curve", "plain"] = Field(
        "auto", description="tcp that is encrypted (CURVE): auto: all that leaves this machine; curve: all; plain: none"
    )
    keys: str = Field("", description="folder of CURVE keys, made by `headrace keys`")
    resend_s: float = Field(3.0, gt=0, description="an unanswered request is sent again after this long")
    deadline_s: float = Field(10.0, gt=0, description="a peer silent for this long is reported as stalled")
    give_up_s: float = Field(600.0, gt=0, description="a service ends with an error after waiting this long for a peer")
    linger_s: float = Field(5.0, ge=0, description="how long a finished server goes on telling its clients")


class MetricsConfig(Section):
    host: str = Field("127.0.0.1", description="address of /metrics and /healthz")
    port: int = Field(0, ge=0, le=65535, description="port of /metrics and /healthz; 0: any free one, said in the log")


class Config(Section):
    """Everything a job is. `to_yaml` writes what `load` reads."""

    run: RunConfig = RunConfig()
    env: EnvConfig = EnvConfig()
    rollout: RolloutConfig = RolloutConfig()
    inference: InferenceConfig = InferenceConfig()
    replay: ReplayConfig = ReplayConfig()
    learner: LearnerConfig = LearnerConfig()
    network: dict[str, Any] = Field(default_factory=lambda: {"name": "mlp"}, description="validated by the learner")
    algorithm: dict[str, Any] = Field(default_factory=lambda: {"name": "ppo"}, description="validated by the learner")
    stop: StopConfig = StopConfig()
    net: NetConfig = NetConfig()
    metrics: MetricsConfig = MetricsConfig()

    @model_validator(mode="after")
    def _agree(self) -> Config:
        tables = self.replay.tables
        if (run := self.run.name) and (Path(run).name != run or run == ".." or "\0" in run):
            raise ConfigError(f"run.name={run!r} is no name of a directory", "leave slashes out: run.dir is its place")
        for key, names in (("rollout.tables", self.rollout.tables), ("learner.table", (self.learner.table,))):
            for name in names:
                if name not in tables:
                    text = f"{key} names table {name!r}, which replay.tables does not have"
                    raise ConfigError(text, f"use one of {sorted(tables)} or add it to replay.tables")
        for name, table in tables.items():
            for key in table.unread:
                if (value := getattr(table, key)) != TableConfig.model_fields[key].default:
                    of = " of sequences" if table.sequence else ""
                    text = f"replay.tables.{name}.{key}={value} does nothing in a table of kind {table.kind}{of}"
                    raise ConfigError(text, "leave it out")
        if self.learner.table not in self.rollout.tables:
            name = self.learner.table
            text = f"learner.table={name} would deadlock: rollout.tables={[*self.rollout.tables]} lack it"
            raise ConfigError(text, f"add {name} to rollout.tables, or set learner.table to one of them")
        for name in [name for name in tables if name not in (self.learner.table, self.learner.replayed.table)]:
            if tables[name].kind == "fifo" and name in self.rollout.tables:
                text = f"rollout.tables names fifo table {name!r}, which would deadlock: nobody draws from it"
                raise ConfigError(text, f"leave it out, or set learner.table to {name}")
            if limit := tables[name].samples_per_insert:
                text = f"replay.tables.{name}.samples_per_insert={limit} would deadlock: nobody draws"
                raise ConfigError(text, f"set it to 0, or learner.table to {name}")
        if self.learner.lr_schedule == "linear" and not (self.stop.steps or self.stop.frames or self.stop.seconds):
            raise ConfigError("learner.lr_schedule=linear has no end to fall to", "set stop.steps, frames or seconds")
        if self.env.envs % (n := self.learner.replicas):
            text = f"env.envs={self.env.envs} is no multiple of learner.replicas={n}, which train on equal columns"
            raise ConfigError(text, f"set env.envs to {-(-self.env.envs // n) * n}")
        if (n := self.replay.servers) > (streams := self.env.servers * self.env.groups):
            text = f"replay.servers={n} would deadlock: {streams} groups send to as many replay-servers at most"
            raise ConfigError(text, f"set it to {streams}, or env.groups to {-(-n // self.env.servers)}")
        if self.learner.replayed.table:
            self._check_mix()
        table, batch = tables[self.learner.table], self.learner.batch
        if table.kind == "fifo" and (n := self.learner.per_request) > 1:
            raise ConfigError(f"learner.per_request={n}: a fifo table has nothing to draw", "set it to 1")
        if self.synchronous:
            self._check_synchronous()
            return self
        if not 1 <= batch <= table.capacity:
            what = "unrolls" if table.kind == "fifo" else "transitions"
            text = f"learner.batch={batch} is no number of {what} to draw from table {self.learner.table!r}"
            raise ConfigError(f"{text} of {table.capacity}", f"set learner.batch between 1 and {table.capacity}")
        if self.inference.hold_back and table.kind == "fifo":
            self._check_hold_back(table.capacity // batch)
        return self

    def _check_synchronous(self) -> None:
        own = (("learner.publish_every", self.learner.publish_every, 1), ("replay.servers", self.replay.servers, 1))
        for key, n, most in (*own, ("inference.hold_back", self.inference.hold_back, 0)):
            if n > most:
                text = f"{key}={n}: at replay.max_policy_lag=0 acting waits for each version, trained from one table"
                raise ConfigError(text, f"set it to {most}, or replay.max_policy_lag above 0")
        if self.learner.batch:
            text = f"learner.batch={self.learner.batch} has no meaning at replay.max_policy_lag=0"
            raise ConfigError(text, "leave it 0: a synchronous batch is one unroll from each group")

    def _check_mix(self) -> None:
        name, tables = self.learner.replayed.table, self.replay.tables
        if name not in self.rollout.tables or tables[name].kind != "unrolls":
            text = f"learner.replayed.table={name!r} is no table of whole unrolls that unrolls go to"
            raise ConfigError(text, f"add {name}: {{kind: unrolls}} to replay.tables, and {name} to rollout.tables")
        if self.synchronous or tables[self.learner.table].kind != "fifo":
            text = f"learner.replayed.table={name!r} is mixed into the unrolls of an asynchronous fifo table"
            raise ConfigError(text, "set learner.table to a fifo table, and replay.max_policy_lag above 0")

    def _check_hold_back(self, waiting: int) -> None:
        learner, behind, lag = self.learner, self.inference.hold_back, self.replay.max_policy_lag
        # As many versions pass while batches wait in the table, and while they and weights are under way.
        needed = behind + waiting + learner.prefetch + learner.publish_every
        if lag < needed:
            text = f"inference.hold_back={behind} would deadlock at replay.max_policy_lag={lag}: all are too old"
            raise ConfigError(text, f"set replay.max_policy_lag to {needed} or more")

    @property
    def synchronous(self) -> bool:
        """Whether the learner trains on nothing older than its own version, so that acting waits for it."""
        return self.replay.max_policy_lag == 0 and self.replay.tables[self.learner.table].kind == "fifo"

    def to_yaml(self) -> str:
        return yaml.dump(self.model_dump(), Dumper=_Dumper, sort_keys=False)


def load(
    overlay: str | Path | None = None, overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None
) -> Config:
    """Gives the Config of defaults, `overlay`, variables and `key=value` overrides; a ConfigError names the key."""
    tree = _read(CONFIGS / "defaults.yaml")
    if overlay is not None:
        merge(tree, _read(Path(overlay)))
    for key, value in (os.environ if environ is None else environ).items():
        if key.startswith(ENVIRONMENT_PREFIX):
            dotted = key.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            merge(tree, nest(dotted, value, source=f"environment variable {key}"))
    for override in overrides:
        dotted, equals, value = override.partition("=")
        if not equals or not dotted or not value:
            raise ConfigError(f"override {override!r} is not key=value", "write it like learner.lr=3e-4")
        merge(tree, nest(dotted, value, source=f"override {override!r}"))
    return validate(tree)


def validate(tree: Mapping[str, Any]) -> Config:
    """Gives the Config that `tree` describes; raises ConfigError for the first thing wrong with it."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"unknown key {key}={first['input']!r}", nearest(key, known_keys())) from None
        raise ConfigError(f"{key}={first['input']!r}: {first['msg']}", f"see docs/configuration.md for {key}") from None


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Gives every dotted key of Config, in the order of the models."""
    for name, info in model.model_fields.items():
        kinds = (info.annotation, *get_args(info.annotation))
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not sections:
            yield f"{prefix}{name}"
        for section in sections:
            by_name = "" if section is info.annotation else "<name>."
            yield from known_keys(section, f"{prefix}{name}.{by_name}")


def merge(tree: dict[str, Any], overlay: Mapping[str, Any]) -> None:
    """Lays `overlay` over `tree`, in place; mappings merge, everything else replaces, an empty mapping too."""
    for key, value in overlay.items():
        if isinstance(value, Mapping) and value and isinstance(tree.get(key), dict):
            merge(tree[key], value)
        else:
            tree[key] = dict(value) if isinstance(value, Mapping) else value


def nest(dotted: str, value: str, source: str) -> dict[str, Any]:
    """Turns `a.b` and a YAML value into {"a": {"b": value}}."""
    try:
        tree = yaml.load(value, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the 13th month, or 5,000 digits
        raise ConfigError(f"{source}: {value!r} is not YAML", "quote it") from error
    for part in reversed(dotted.split(".")):
        tree = {part: tree}
    return dict(tree)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(), _Loader)
    except FileNotFoundError:
        others = sorted(str(other) for other in path.parent.glob("*.yaml"))
        remedy = nearest(str(path), others) if others else "check the path"
        raise ConfigError(f"no config file {path}", remedy) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {error}", "mend the file") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "name a file that can be read") from error
    if not isinstance(tree or {}, dict):
        raise ConfigError(f"{path} holds {type(tree).__name__}, not a mapping", "write sections and keys")
    return dict(tree or {})
