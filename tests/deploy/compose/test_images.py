"""The two images: what is in them, and what is not."""

from __future__ import annotations

import docker
import pytest
from docker.errors import ContainerError

IMAGES = ("headrace-slim", "headrace")
SERVICES = {"headrace-slim": ("env", "replay"), "headrace": ("env", "replay", "inference", "learner")}
COMPILERS = "cc gcc g++ c++ clang tcc ld as make cmake rustc cargo go nvcc"
SIMULATORS = """
import warnings; warnings.simplefilter("ignore")
import ale_py, crafter, gymnasium, minatar.gym
gymnasium.register_envs(ale_py)
minatar.gym.register_envs()
for name in ("CartPole-v1", "Pendulum-v1", "HalfCheetah-v5", "ALE/Pong-v5", "MinAtar/Breakout-v1"):
    env = gymnasium.make(name)
    env.reset(seed=0)
    env.step(env.action_space.sample())
env = crafter.Env()
env.reset()
print(env.step(0)[0].shape)
"""


def run(engine: docker.DockerClient, image: str, *command: str) -> str:
    """What a command prints in a container that is confined as compose confines it, and without network."""
    output = engine.containers.run(
        f"{image}:latest",
        list(command),
        remove=True,
        read_only=True,
        tmpfs={"/tmp": ""},
        cap_drop=["ALL"],
        network_mode="none",
    )
    return str(output.decode())


@pytest.mark.usefixtures("images")
class TestImages:
    def test_slim_is_under_400_mb(self, images: dict[str, docker.models.images.Image]) -> None:
        assert images["headrace-slim"].attrs["Size"] < 400e6

    @pytest.mark.parametrize("image", IMAGES)
    def test_user_is_not_root(self, engine: docker.DockerClient, image: str) -> None:
        assert run(engine, image, "id", "-u").strip() == "10001"

    @pytest.mark.parametrize("image", IMAGES)
    def test_no_compiler_and_no_pip_is_left(self, engine: docker.DockerClient, image: str) -> None:
        found = run(engine, image, "sh", "-c", f"for name in {COMPILERS} pip pip3; do command -v $name; done; true")
        assert found == ""

    @pytest.mark.parametrize("image", IMAGES)
    def test_sigterm_stops_it_and_health_is_liveness(
        self, images: dict[str, docker.models.images.Image], image: str
    ) -> None:
        config = images[image].attrs["Config"]
        assert config["StopSignal"] == "SIGTERM"
        assert "/healthz" in config["Healthcheck"]["Test"][-1]

    def test_slim_has_no_torch(self, engine: docker.DockerClient) -> None:
        with pytest.raises(ContainerError, match=r"No module named .*torch"):
            run(engine, "headrace-slim", "python", "-c", "import torch")

    def test_full_has_torch_and_the_command_line(self, engine: docker.DockerClient) -> None:
        assert run(engine, "headrace", "python", "-c", "import torch; print(torch.ones(3).sum().item())") == "3.0\n"
        assert "ppo" in run(engine, "headrace", "headrace", "algorithms")

    @pytest.mark.parametrize("image", IMAGES)
    def test_simulators_step(self, engine: docker.DockerClient, image: str) -> None:
        assert run(engine, image, "python", "-c", SIMULATORS).splitlines()[-1] == "(64, 64, 3)"

    @pytest.mark.parametrize(("image", "role"), [(image, role) for image in IMAGES for role in SERVICES[image]])
    def test_has_the_command_of_the_service(self, engine: docker.DockerClient, image: str, role: str) -> None:
        assert f"headrace {role}-server" in run(engine, image, "python", "-m", f"services.{role}_server", "--help")
