import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from jobs import PATIENCE_S, Service, short_dir, until, write_config

from common import service
from common.config import load, validate
from common.errors import ConfigError, Finished, HeadraceError, PeerLost, RemoteError
from common.messages import PROTOCOL, Hello
from common.service import Context, Health, connect, first_welcome, make_context, serve_http, supervise, until_stopped
from common.transport.server import Server


@pytest.fixture
def context() -> Context:
    return make_context(load(None, (), {}), "replay", restarts=3)


@pytest.fixture
def http(context: Context) -> Iterator[ThreadingHTTPServer]:
    server = serve_http(context)
    yield server
    server.shutdown()
    server.server_close()


def get(server: ThreadingHTTPServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_are_served_under_the_roles_name(context: Context, http: ThreadingHTTPServer) -> None:
    context.metrics.errors.labels("protocol").inc(2)
    status, text = get(http, "/metrics")
    assert status == 200
    assert 'headrace_replay_errors_total{code="protocol"} 2.0' in text
    assert "headrace_replay_restarts 3.0" in text


def test_health_says_who_it_is_and_whom_it_waits_for(context: Context, http: ThreadingHTTPServer) -> None:
    context.health.waiting("learner")("waits for the learner-server at x")
    status, text = get(http, "/healthz")
    report = json.loads(text)
    assert status == 200
    assert (report["role"], report["name"], report["pid"]) == ("replay", "replay-0", os.getpid())
    assert (report["ready"], report["waiting_for"]) == (False, "waits for the learner-server at x")


def test_a_service_is_ready_when_it_says_so(context: Context, http: ThreadingHTTPServer) -> None:
    assert get(http, "/readyz")[0] == 503
    context.health.ready = True
    assert get(http, "/readyz")[0] == 200


def test_other_pages_are_not_there(http: ThreadingHTTPServer) -> None:
    assert get(http, "/") == (404, "try /metrics, /healthz or /readyz\n")


def test_a_connection_that_asks_for_nothing_is_closed(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "HTTP_S", 0.1)
    server = serve_http(context)
    try:
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as silent:
            assert silent.recv(1) == b""
        assert get(server, "/readyz")[0] == 503
    finally:
        server.shutdown()
        server.server_close()


def test_a_port_in_use_is_a_config_error_that_names_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = make_context(validate({"metrics": {"port": port}}), "env")
        with pytest.raises(ConfigError, match=rf"metrics\.port={port} on 127\.0\.0\.1: Address already in use"):
            serve_http(busy)


def test_health_reports_the_longest_wait_until_it_ends() -> None:
    health = Health()
    replay, inference = health.waiting("replay"), health.waiting("inference")
    assert health.report()["waiting_for"] is None
    replay("waits for the replay-server")
    inference("waits for the inference-server")
    replay("waits for the replay-server: full")
    assert health.report()["waiting_for"] == "waits for the replay-server: full"
    replay(None)
    assert health.report()["waiting_for"] == "waits for the inference-server"
    inference(None)
    inference(None)
    assert health.report()["waiting_for"] is None


def test_a_notice_is_said_in_the_log_and_in_the_report(caplog: pytest.LogCaptureFixture) -> None:
    health = Health()
    health.say("the batch goes without env-1/0")
    assert health.report()["notice"] == "the batch goes without env-1/0"
    assert "the batch goes without env-1/0" in caplog.text


def test_a_learner_has_no_number_in_its_name_and_others_do() -> None:
    config = load(None, (), {})
    assert make_context(config, "learner").name == "learner"
    assert make_context(config, "env", index=4).name == "env-4"
    context = make_context(config, "env", name="env-host-1")
    assert context.hello(streams=(("s", 5),)) == Hello(PROTOCOL, "env", "env-host-1", context.life, None, (("s", 5),))
    assert make_context(config, "env").life != context.life


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Finished("done"), 0),
        (HeadraceError("broken"), 1),
        (ConfigError("wrong"), 2),
        (RemoteError("config", "wrong there"), 2),
        (RemoteError("protocol", "odd"), 1),
        (PeerLost("silent"), 3),
    ],
)
async def test_the_exit_code_is_that_of_the_error_that_ended_the_service(
    context: Context, error: HeadraceError, code: int
) -> None:
    async def run(_: Context) -> None:
        raise error

    assert await supervise(context, run) == code


async def test_a_service_that_ends_by_itself_has_exit_code_0(context: Context) -> None:
    async def run(_: Context) -> None:
        """Has nothing to do."""

    assert await supervise(context, run) == 0


async def test_an_unforeseen_error_is_not_swallowed(context: Context) -> None:
    async def run(_: Context) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await supervise(context, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_tells_the_service_to_stop(context: Context, number: signal.Signals) -> None:
    async def run(context: Context) -> None:
        os.kill(os.getpid(), number)
        await asyncio.wait_for(context.stopping.wait(), 10)

    try:
        assert await supervise(context, run) == 0
    finally:
        asyncio.get_running_loop().remove_signal_handler(number)


async def test_work_goes_on_until_all_of_it_ends(context: Context) -> None:
    done: list[int] = []

    async def work(n: int) -> None:
        for _ in range(n):
            await asyncio.sleep(0)
        done.append(n)

    await until_stopped(context, [work(3), work(1)])
    assert done == [1, 3]


async def test_one_failure_ends_all_work(context: Context) -> None:
    ended = asyncio.Event()

    async def fail() -> None:
        raise ConfigError("wrong")

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(ConfigError, match="wrong"):
        await until_stopped(context, [endless(), fail()])
    assert ended.is_set()


async def test_stopping_ends_all_work(context: Context) -> None:
    async def stop() -> None:
        context.stopping.set()
        await asyncio.Event().wait()

    await asyncio.wait_for(until_stopped(context, [stop()]), 10)


async def test_a_process_that_is_told_to_stop_ends_with_exit_code_0(tmp_path: Path) -> None:
    with short_dir() as sockets:
        config = write_config(tmp_path / "c.yaml", {"net": {"experience": [f"ipc://{sockets}/replay"]}})
        service = Service("replay", config, tmp_path / "run")
        try:
            url = await until(service.url, f"its address: {service.text()}")
            with urllib.request.urlopen(f"{url}/healthz", timeout=10) as answer:
                assert json.loads(answer.read())["pid"] == service.process.pid
            service.process.send_signal(signal.SIGTERM)
            assert await service.ended() == 0, service.text()
            assert "stopped" in service.text()
            assert "Traceback" not in service.text()
        finally:
            service.kill()


async def test_a_service_may_have_as_many_files_open_as_the_system_lets_it(tmp_path: Path) -> None:
    (soft, hard), few = resource.getrlimit(resource.RLIMIT_NOFILE), 1000
    with short_dir() as sockets:
        config = write_config(tmp_path / "c.yaml", {"net": {"experience": [f"ipc://{sockets}/replay"]}})
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        try:
            service = Service("replay", config, tmp_path / "run")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        try:
            await until(service.url, f"its address: {service.text()}")
            assert resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
        finally:
            service.kill()


def test_a_process_with_a_wrong_setting_ends_with_exit_code_2_and_names_it() -> None:
    line = [sys.executable, "-m", "services.replay_server", "replay.max_policy_lagg=1"]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 2
    assert "unknown key replay.max_policy_lagg=1 (did you mean replay.max_policy_lag?)" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_the_first_of_several_servers_to_answer_is_enough(context: Context) -> None:
    with short_dir() as sockets:
        there = Server(f"ipc://{sockets}/1", lambda t: t.welcome(), net=context.config.net, metrics=context.metrics)
        clients = [connect(context, f"ipc://{sockets}/{i}", "replay", max_in_flight=1) for i in range(2)]
        try:
            welcome = await asyncio.wait_for(first_welcome(clients), PATIENCE_S)
            assert welcome.life == there.life
        finally:
            for opened in (*clients, there):
                opened.close()
