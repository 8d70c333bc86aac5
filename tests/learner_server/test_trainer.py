from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from common.codec import Envelope, encode
from common.config import validate
from common.errors import ConfigError, HeadraceError, ProtocolError
from common.messages import Batch
from common.rl.actor import Actor
from common.rl.algorithms.base import Batches, NonFiniteUpdate, OptimizerConfig
from common.rl.replayed import Transitions
from common.types import ActionSpec, Arrays, ArraySpec, EnvSpec, PolicySpec, make_version
from services.learner_server.checkpoint import Checkpoints
from services.learner_server.staging import in_turn
from services.learner_server.trainer import Trainer

SPEC = EnvSpec("toy", (ArraySpec("obs", "<f4", (3,)),), ActionSpec("discrete", "<i8", (), (2,)))
T, B = 8, 4


class Dial(Actor):
    """One weight."""

    spec = PolicySpec()
    noise_size = 0

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.acting = {}
        self.dial = torch.nn.Parameter(torch.full((1,), 3.0 + seed))


class Careful:
    """An algorithm that trains on transitions and explores."""

    batches: ClassVar[Batches] = "transitions"

    @staticmethod
    def make_actor(algorithm: Mapping[str, Any], network: Mapping[str, Any], env: EnvSpec, seed: int) -> Actor:
        return Dial(seed)

    def __init__(self, algorithm: Mapping[str, Any], optimizer: OptimizerConfig, actor: Actor, seed: int) -> None:
        self._boldness = float(algorithm["boldness"])
        self.priorities = None

    def learn(self, batch: Transitions, progress: float) -> dict[str, float]:
        return {"tiny": (batch.reward[:1] * 1e-10).item()}

    def acting(self, steps: int, progress: float) -> dict[str, float]:
        return {"epsilon": steps * progress + self._boldness}


def packed(trainer: Trainer) -> bytes:
    return trainer.weights(0, 0.0).arrays["weights"].tobytes()


def trainer(ordinal: int = 1, **overrides: Any) -> Trainer:
    tree: dict[str, Any] = {
        "network": {"name": "mlp", "hidden": [8], "normalize_observations": True, "popart": True},
        "algorithm": {"name": "ppo", "epochs": 2, "minibatches": 2},
        "learner": {"lr": 1e-2},
    }
    return Trainer(validate({**tree, **overrides}), SPEC, ordinal)


def batch(seed: int, version: int) -> Arrays:
    """A recorded batch: random, but the same for the same seed."""
    random = np.random.default_rng(seed)
    return {
        "observation.obs": random.normal(size=(T + 1, B, 3)).astype(np.float32),
        "first": random.random((T + 1, B)) < 0.1,
        "action": random.integers(0, 2, (T, B)),
        "reward": random.normal(size=(T, B)).astype(np.float32),
        "terminated": random.random((T, B)) < 0.1,
        "truncated": np.zeros((T, B), np.bool_),
        "valid": np.ones((T, B), np.bool_),
        "extras.log_prob": np.full((T, B), -0.69, np.float32),
        "reward_before": np.zeros(B, np.float32),
        "versions": np.full((T, B), version),
    }


def test_a_resumed_learner_fed_the_same_batches_computes_the_same_updates_bit_for_bit(tmp_path: Path) -> None:
    one = trainer()
    for seed in range(3):
        one.update(batch(seed, one.version), progress=0.1)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(one.state_dict(), one.updates, best=False)
    resumed = trainer()
    state = checkpoints.load_latest()
    assert state is not None
    resumed.load_state_dict(state)
    assert packed(resumed) == packed(one)
    for seed in range(3, 6):
        ours, theirs = (t.update(batch(seed, t.version), progress=0.5) for t in (one, resumed))
        assert ours == theirs
    assert packed(resumed) == packed(one)
    assert resumed.updates == 6


def test_a_step_older_than_the_lag_allows_is_never_trained_on() -> None:
    learner = trainer()
    before = packed(learner)
    late = batch(0, learner.version)
    late["versions"][3, 2] = make_version(0, 10**6)
    with pytest.raises(ProtocolError, match=r"life 0, update 1000000 came to life 1, update 0, .*max_policy_lag=0"):
        learner.update(late, progress=0.0)
    assert packed(learner) == before


def test_a_step_of_another_run_is_never_trained_on() -> None:
    learner = trainer()
    before = packed(learner)
    foreign = batch(0, learner.version)
    foreign["versions"][3, 2] = learner.version + 500
    with pytest.raises(HeadraceError, match=r"life 1, update 500 came to life 1, update 0: another run's.*--run-dir"):
        learner.update(foreign, progress=0.0)
    assert packed(learner) == before


def test_the_lag_of_a_batch_is_counted_in_versions() -> None:
    learner = trainer(
        replay={"max_policy_lag": 5, "tables": {"experience": {"kind": "fifo"}}}, learner={"batch": 1, "lr": 1e-3}
    )
    learner.updates = 7
    arrays = batch(0, learner.version)
    arrays["versions"][:4] -= 5
    update = learner.update(arrays, progress=0.0)
    assert (update.lag_mean, update.lag_max, update.steps) == (2.5, 5, T * B)


@pytest.mark.parametrize("name", ["observation.obs", "reward"])
def test_what_is_not_finite_in_a_batch_changes_nothing(name: str) -> None:
    learner = trainer()
    before = packed(learner)
    arrays = batch(0, learner.version)
    arrays[name][2, 1] = np.inf
    with pytest.raises(NonFiniteUpdate, match=f"{name} is not finite"):
        learner.update(arrays, progress=0.0)
    assert (packed(learner), learner.updates) == (before, 0)


def test_a_table_that_an_algorithm_cannot_train_from_is_refused_at_start() -> None:
    ring = {"tables": {"experience": {"kind": "uniform", "capacity": 1000}}}
    with pytest.raises(ConfigError, match=r"replay\.tables\.experience\.kind='uniform' .*PPO.*set it to fifo"):
        trainer(replay=ring, learner={"batch": 8})
    with pytest.raises(
        ConfigError, match=r"kind='fifo' gives unrolls, Careful trains on transitions .set it to uniform or"
    ):
        trainer(algorithm={"name": f"{__name__}:Careful", "boldness": 1})


MIXED: dict[str, Any] = {
    "rollout": {"tables": ["experience", "stored"]},
    "replay": {
        "max_policy_lag": 5,
        "tables": {"experience": {"kind": "fifo"}, "stored": {"kind": "unrolls", "capacity": 1000}},
    },
    "learner": {"batch": 1, "replayed": {"table": "stored"}},
}


@pytest.mark.parametrize("algorithm", ["a2c", "ppo", "appo", "impala", "laser"])
def test_stored_unrolls_are_mixed_in_only_where_the_algorithm_corrects_for_their_age(algorithm: str) -> None:
    job = MIXED | {"algorithm": {"name": algorithm}}
    if algorithm in ("impala", "laser"):
        assert trainer(**job).updates == 0
        return
    with pytest.raises(ConfigError, match=rf"learner\.replayed\.table='stored' .*{algorithm.upper()}.*to laser or"):
        trainer(**job)


def test_older_policies_steps_are_refused_where_nothing_corrects_for_them() -> None:
    job = {"replay": {"max_policy_lag": 5, "tables": {"experience": {"kind": "fifo"}}}, "learner": {"batch": 1}}
    with pytest.raises(ConfigError, match=r"replay\.max_policy_lag=5 .*A2C does not .*set it to 0, or"):
        trainer(**job, algorithm={"name": "a2c"})
    assert trainer(**job, algorithm={"name": "ppo"}).updates == 0


@pytest.mark.parametrize("section", [{"name": "impala"}, {"name": "laser", "trust_region": None}])
def test_stored_unrolls_are_not_mixed_in_where_the_correction_is_switched_off(section: dict[str, Any]) -> None:
    text = r"learner\.replayed\.table='stored' .*algorithm\.vtrace=false .*set algorithm\.vtrace to true"
    with pytest.raises(ConfigError, match=text):
        trainer(**MIXED | {"algorithm": {**section, "vtrace": False}})
    # A trust region bounds what no ratio corrects.
    trainer(**MIXED | {"algorithm": {"name": "laser", "vtrace": False}})


def test_first_priorities_of_actors_are_refused_where_goals_are_exchanged() -> None:
    her = {"kind": "prioritized", "capacity": 1000, "her": {"k": 4}, "discount": 0.9}
    section = {"name": "sac", "actor_priorities": True, "reward": "by_hand:sparse"}
    with pytest.raises(ConfigError, match=r"actor_priorities=True is of other goals .*experience\.her\.k .*k to 0"):
        trainer(algorithm=section, replay={"tables": {"experience": her}}, learner={"batch": 8}, stop={"steps": 9})


@pytest.mark.parametrize("algorithm", ["dqn", "sac"])
def test_goals_that_nobody_would_reward_anew_are_refused_at_start(algorithm: str) -> None:
    ring = {"tables": {"experience": {"kind": "uniform", "capacity": 1000, "her": {"k": 4}}}}
    with pytest.raises(ConfigError, match=r"experience\.her\.k=4 with algorithm\.reward='': .*\(set algorithm\.reward"):
        trainer(replay=ring, learner={"batch": 8}, algorithm={"name": algorithm}, network={})


@pytest.mark.parametrize(
    ("algorithm", "text"),
    [
        (
            {"name": "dqn"},
            r"algorithm\.epsilon\.share=0\.1 has no end to fall to .*, or algorithm\.epsilon\.steps\)",
        ),
        ({"name": "dqn", "epsilon": {"share": 0.5}}, r"algorithm\.epsilon\.share=0\.5 has no end"),
        (
            {"name": "td3", "noise": {"schedule": "linear"}},
            r"algorithm\.noise\.schedule=linear has no end.* constant",
        ),
    ],
)
def test_what_would_never_fall_for_want_of_a_budget_is_refused_at_start(algorithm: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        trainer(**PRIORITIZED | {"algorithm": algorithm, "stop": {"episode_return": 1.0}})


def test_a_clip_that_would_never_fall_is_refused_at_start() -> None:
    falling = {"name": "ppo", "clip_schedule": "linear"}
    with pytest.raises(ConfigError, match=r"algorithm\.clip_schedule=linear has no end to fall to"):
        trainer(algorithm=falling)
    trainer(algorithm=falling, stop={"seconds": 9})


@pytest.mark.parametrize("epsilon", [{"steps": 10}, {"actors": 4}, {"start": 0.1, "end": 0.1}])
def test_exploration_that_needs_no_budget_is_taken_without_one(epsilon: dict[str, Any]) -> None:
    trainer(**PRIORITIZED | {"algorithm": {"name": "dqn", "epsilon": epsilon, "importance": 1.0}, "stop": {}})


@pytest.mark.parametrize("algorithm", [{"name": "dqn", "epsilon": {"steps": 10}}, {"name": "sac", "importance": 0.4}])
def test_importance_that_would_never_rise_is_refused_at_start(algorithm: dict[str, Any]) -> None:
    job = PRIORITIZED | {"algorithm": algorithm, "stop": {"episode_return": 1.0}}
    text = r"algorithm\.importance=0\.4 has no end at which .*set stop\.steps, .* or algorithm\.importance to 1\)"
    with pytest.raises(ConfigError, match=text):
        trainer(**job)
    trainer(**job | {"algorithm": {**algorithm, "importance": 1.0}})
    trainer(**job | {"stop": {"seconds": 9}})
    # Every item is as likely: the weights are 1, whatever their exponent.
    uniform = {"kind": "uniform", "capacity": 100}
    trainer(**job | {"replay": {"tables": {"experience": uniform}}})
    # But for the newest, which a share of each draw makes likelier.
    with pytest.raises(ConfigError, match=text):
        trainer(**job | {"replay": {"tables": {"experience": {**uniform, "newest": 0.5}}}})


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ({"name": "dqn", "importance": 0.5}, r"importance=0\.5"),
        ({"name": "sac", "importance": 1.0}, r"importance=1\.0"),
        ({"name": "dqn", "actor_priorities": True}, "actor_priorities=True"),
        ({"name": "sac", "actor_priorities": True}, "actor_priorities=True"),
        ({"name": "r2d2", "largest": 0.5}, r"largest=0\.5"),
    ],
)
def test_a_key_of_priorities_is_refused_where_the_table_has_none(algorithm: dict[str, Any], words: str) -> None:
    kinds = {"kind": "uniform", "capacity": 400} | ({"sequence": 64, "period": 64} if "largest" in algorithm else {})
    job: dict[str, Any] = {"replay": {"tables": {"experience": kinds}}, "algorithm": algorithm}
    job |= {"learner": {"batch": 8}, "stop": {"steps": 9}, "network": {}}
    text = rf"algorithm\.{words} does nothing with replay\.tables\.experience\.kind=uniform"
    with pytest.raises(ConfigError, match=text):
        trainer(**job)
    if "importance" in algorithm:
        # The newest are likelier than others, which the weights make good.
        trainer(**job | {"replay": {"tables": {"experience": {**kinds, "newest": 0.5}}}})


def test_a_table_that_keeps_back_more_than_the_burn_in_is_refused_at_start() -> None:
    sequences = {"kind": "prioritized", "capacity": 100, "sequence": 9, "period": 64, "burn_in": 4}
    job: dict[str, Any] = {"replay": {"tables": {"experience": sequences}}, "network": {"name": "mlp", "lstm": 4}}
    job |= {"learner": {"batch": 1}, "stop": {"steps": 9}}
    with pytest.raises(ConfigError, match=r"experience\.burn_in=4 keeps back what algorithm\.burn_in=3 learns .*to 3"):
        trainer(**job, algorithm={"name": "r2d2", "burn_in": 3})
    trainer(**job, algorithm={"name": "r2d2", "burn_in": 4})


def test_any_algorithm_makes_its_own_actor_and_says_what_acting_needs() -> None:
    ring = {"tables": {"experience": {"kind": "uniform", "capacity": 1000}}}
    section = {"name": f"{__name__}:Careful", "boldness": 0.5}
    made = trainer(replay=ring, learner={"batch": 8}, algorithm=section)
    assert isinstance(made.policy, Dial)
    assert packed(made) == np.full(1, 4.0, np.float32).tobytes()
    assert made.algorithm.acting(40, 0.25) == {"epsilon": 10.5}


PRIORITIZED: dict[str, Any] = {
    "network": {"name": "mlp", "hidden": [8]},
    "algorithm": {"name": "dqn"},
    "learner": {"lr": 1e-2, "batch": 3},
    "replay": {"tables": {"experience": {"kind": "prioritized", "capacity": 100}}},
    "stop": {"steps": 1000},
}


def transitions(n: int) -> Arrays:
    random = np.random.default_rng(0)
    return {
        "observation.obs": random.normal(size=(n, 3)).astype(np.float32),
        "next_observation.obs": random.normal(size=(n, 3)).astype(np.float32),
        "action": random.integers(0, 2, n),
        "reward": random.normal(size=n).astype(np.float32),
        "discount": np.full(n, 0.9, np.float32),
        "relative": np.ones(n, np.float32),
    }


def test_several_batches_of_one_draw_train_one_after_another_and_each_item_gets_its_own_priority() -> None:
    together, apart = trainer(**PRIORITIZED), trainer(**PRIORITIZED)
    drawn = transitions(6)
    update = together.update_in_turn(together.stage(drawn, 2), 0.5)
    first, second = (apart.update(batch, 0.5) for batch in in_turn(drawn, 2))
    assert packed(together) == packed(apart)
    assert (together.updates, update.made, update.steps, update.scalars) == (2, 2, 6, second.scalars)
    assert update.priorities is not None
    assert first.priorities is not None
    assert second.priorities is not None
    assert update.priorities[0::2].tolist() == first.priorities.tolist()
    assert update.priorities[1::2].tolist() == second.priorities.tolist()
    assert first.priorities.tolist() != second.priorities.tolist()


@pytest.mark.parametrize("name", ["reward", "next_observation.obs"])
def test_an_item_that_is_not_finite_costs_its_own_batch_and_is_not_wanted_again(name: str) -> None:
    together, apart = trainer(**PRIORITIZED), trainer(**PRIORITIZED)
    drawn = transitions(6)
    other = in_turn(drawn, 2)[0]
    drawn[name][3] = np.inf
    update = together.update_in_turn(together.stage(drawn, 2), 0.5)
    expected = apart.update(other, 0.5)
    assert packed(together) == packed(apart)
    assert (together.updates, update.made, update.steps) == (1, 1, 3)
    assert [str(error) for error in update.skipped] == [
        f"{name} is not finite (mend the environment: it gives inf or nan)"
    ]
    assert update.priorities is not None
    assert expected.priorities is not None
    assert update.priorities[0::2].tolist() == expected.priorities.tolist()
    # The others of its batch keep what they have.
    np.testing.assert_array_equal(update.priorities[1::2], [np.nan, 0.0, np.nan])


@pytest.mark.parametrize("batches", [1, 2])
def test_a_draw_without_a_finite_batch_changes_nothing_but_the_priorities_of_what_spoilt_it(batches: int) -> None:
    made, drawn = trainer(**PRIORITIZED), transitions(6)
    before = packed(made)
    drawn["reward"][[2, 3]] = np.nan
    update = made.update_in_turn(made.stage(drawn, batches), 0.5)
    assert (packed(made), made.updates, update.made, update.steps) == (before, 0, 0, 0)
    assert len(update.skipped) == batches
    np.testing.assert_array_equal(update.priorities, [np.nan, np.nan, 0.0, 0.0, np.nan, np.nan])


def test_denormal_numbers_are_zero_in_an_update_and_nowhere_else() -> None:
    """A decayed moment of a unit that is dead is one: a product of matrices of them takes a hundred times as long."""
    drawn = transitions(2) | {"reward": np.full(2, 1e-30, np.float32)}
    section = {"name": f"{__name__}:Careful", "boldness": 0.5}
    made = trainer(**PRIORITIZED | {"algorithm": section})
    assert made.update(drawn, 0.5).scalars == {"tiny": 0.0}
    assert (torch.tensor([1e-30]) * 1e-10).item() > 0.0


def test_optimiser_settings_that_are_not_given_are_the_algorithms_own() -> None:
    rate = trainer(algorithm={"name": "a2c"}, learner={}).update(batch(0, make_version(1, 0)), 0.0).scalars["lr"]
    assert rate == pytest.approx(7e-4)


def test_rmsprops_decay_is_refused_where_the_optimiser_is_adam() -> None:
    with pytest.raises(ConfigError, match=r"learner\.alpha=0\.9 does nothing: .*set learner\.optimizer to rmsprop"):
        trainer(learner={"alpha": 0.9})
    trainer(learner={"alpha": 0.9, "optimizer": "rmsprop"})
    # Its own is RMSProp.
    trainer(algorithm={"name": "a2c"}, learner={"alpha": 0.9})


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"algorithm": {"name": "ppo", "clipp": 3}}, r"algorithm\.clipp.*did you mean clip\?"),
        ({"algorithm": {"name": "pop"}}, r"algorithm\.name: .*'pop'"),
        ({"network": {"name": "mlp", "hiden": [3]}}, r"network\.hiden.*did you mean hidden\?"),
    ],
)
def test_a_wrong_opaque_section_is_refused_naming_key_value_and_the_nearest(section: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        trainer(**section)


def test_a_device_that_is_not_there_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"learner\.device='warp': .*set it to cpu"):
        trainer(learner={"device": "warp"})


def test_a_checkpoint_of_another_network_is_refused_with_what_differs() -> None:
    other = trainer(network={"name": "mlp", "hidden": [16]}).state_dict()
    words = r"network\.hidden=\[8\]: the checkpoint was trained with \[16\] \(use the settings"
    with pytest.raises(ConfigError, match=words):
        trainer().load_state_dict(other)
    del other["layout"]  # as checkpoints of before were
    with pytest.raises(ConfigError, match=r"the checkpoint is of another network .*size mismatch"):
        trainer().load_state_dict(other)


SEPARATE = {"name": "mlp", "hidden": [8]}


def test_a_checkpoint_of_another_network_of_the_same_shapes_is_refused_but_not_one_for_other_hardware() -> None:
    trained = trainer(network=SEPARATE).state_dict()
    with pytest.raises(ConfigError, match=r"network\.activation='relu': the checkpoint was trained with 'tanh'"):
        trainer(network={**SEPARATE, "activation": "relu"}).load_state_dict(trained)
    same = trainer(network={**SEPARATE, "activation": "tanh", "bf16": True, "compile": True, "channels_last": False})
    same.load_state_dict(trained)
    assert packed(same) == packed(trainer(network=SEPARATE))


@pytest.mark.parametrize(
    ("trained", "resumed", "why"),
    [
        ({"name": "ppo"}, {"name": "ppo", "curiosity": {}}, "it has no 'curiosity'"),
        ({"name": "a2c"}, {"name": "ppo"}, "it has no 'generator'"),
        ({"name": "ppo", "curiosity": {"hidden": 8}}, {"name": "ppo", "curiosity": {"hidden": 16}}, "size of tensor"),
        (
            {"name": "ppo", "curiosity": {}},
            {"name": "ppo", "curiosity": {"network": {"normalize_observations": True}}},
            "normalizer",
        ),
    ],
    ids=["curiosity", "algorithm", "width", "normalizer"],
)
def test_a_checkpoint_of_another_algorithm_is_refused_with_what_differs(
    trained: dict[str, Any], resumed: dict[str, Any], why: str
) -> None:
    state = trainer(algorithm=trained).state_dict()
    with pytest.raises(ConfigError, match=rf"of another algorithm than `algorithm:` .*{why}.*use the settings"):
        trainer(algorithm=resumed).load_state_dict(state)


def test_a_batch_of_more_unrolls_than_a_message_can_name_is_refused_and_a_smaller_one_can_be_sent() -> None:
    tree = {
        "env": {"envs": 1},
        "rollout": {"unroll": 1},
        "replay": {"max_policy_lag": 4, "tables": {"experience": {"kind": "fifo", "capacity": 9000}}},
        "learner": {"batch": 4000},
    }
    with pytest.raises(ConfigError, match=r"learner\.batch=4000 .*set it to (\d+) or less") as refused:
        Trainer(validate(tree), SPEC, 1)
    most = int(refused.value.remedy.split()[3])
    trainer = Trainer(validate(tree | {"learner": {"batch": most}}), SPEC, 1)
    unroll: Arrays = {name: np.zeros((1, 1), np.bool_) for name in ("terminated", "truncated", "valid")}
    unroll |= {f"extras.{extra.name}": np.zeros((1, 1, *extra.shape)) for extra in trainer.policy.spec.extras}
    unroll |= {"observation.obs": np.zeros((2, 1, 3), np.float32), "final.obs": np.zeros((1, 3), np.float32)}
    unroll |= {"first": np.zeros((2, 1), np.bool_), "reward": np.zeros((1, 1), np.float32)}
    unroll |= {"action": np.zeros((1, 1), np.int64), "reward_before": np.zeros(1, np.float32)}
    unroll |= {"versions": np.zeros(1, np.int64), "final_index": np.zeros(1, np.int32)}
    unroll |= {"episode_returns": np.zeros(1, np.float32), "episode_lengths": np.zeros(1, np.int32)}
    for n, fits in ((most, True), (4000, False)):
        arrays = {f"{i}/{name}": array for i in range(n) for name, array in unroll.items()}
        with nullcontext() if fits else pytest.raises(ProtocolError, match="has a header of"):
            encode(Batch(n, 0, 0.0, 0, arrays=arrays), Envelope(1, 1, 1, 0))
