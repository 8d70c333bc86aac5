"""Writes deploy/grafana/dashboards/*.json: `python deploy/grafana/make_dashboards.py`.

Owns which figures are on which page. The expressions rest on Prometheus's recording rules, deploy/prometheus/rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard

FOLDER = Path(__file__).with_name("dashboards")
SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="headrace-prometheus")
TAG = "headrace"
WIDTH, HEIGHT = 8, 8
STAT_WIDTH, STAT_HEIGHT = 4, 4


@dataclass(frozen=True, slots=True)
class Plot:
    """One panel: each query is (expression, legend); `what` is the text behind its title."""

    title: str
    what: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: Literal["lines", "number", "name"] = "lines"


def rate(metric: str, by: str = "", window: str = "$__rate_interval") -> str:
    return f"sum by ({by}) (rate({metric}[{window}]))" if by else f"sum(rate({metric}[{window}]))"


def quantiles(metric: str, *shares: float) -> tuple[tuple[str, str], ...]:
    """Gives queries of percentiles of a histogram, over all processes."""
    buckets = rate(f"{metric}_bucket", "le")
    return tuple((f"histogram_quantile({share}, {buckets})", f"p{share * 100:g}") for share in shares)


def mean(metric: str) -> str:
    return f"{rate(metric + '_sum')} / {rate(metric + '_count')}"


LAG = Plot(
    "Policy lag",
    "versions between acting and training",
    (
        ("headrace_learner_policy_lag_max_versions", "largest"),
        (mean("headrace_learner_policy_lag_versions"), "mean"),
        ("headrace_learner_policy_lag_bound_versions", "bound"),
    ),
)

WAITING = Plot(
    "Waiting at the tables",
    "share of the time in which an insert, or a sample, waited",
    (("table_side:headrace_blocked:ratio", "{{table}}: {{side}}"),),
    "percentunit",
)

HEAD = (
    Plot(
        "Episode return",
        "mean of the last training episodes",
        (("headrace_learner_episode_return", ""),),
        kind="number",
    ),
    Plot("Steps", "collected in this job", (("headrace_learner_env_steps", ""),), kind="number"),
    Plot("Steps/s", "inserted, over 20 s", (("job:headrace_steps:rate20s", ""),), kind="number"),
    Plot(
        "Progress", "to the nearest limit of stop", (("headrace_learner_progress_ratio", ""),), "percentunit", "number"
    ),
    Plot("Policy lag", "largest in the last batch", (("headrace_learner_policy_lag_max_versions", ""),), kind="number"),
    Plot(
        "Bottleneck",
        "the role whose processes are the busiest",
        (("topk(1, role:headrace_busy:ratio)", "{{role}}"),),
        "percentunit",
        "name",
    ),
)

# A gauge, since it goes on from the checkpoint: neither the 0 before a learner's first update, nor falling back to that
# checkpoint, is a speed.
HEARD_OF = "sum(clamp_min(deriv((headrace_learner_env_frames > 0)[20s:5s]), 0))"

OVERVIEW = (
    *HEAD,
    Plot(
        "Steps/s by role",
        "env-servers insert, inference acts, the learner trains; a step trained on twice counts twice",
        (
            ("job:headrace_steps:rate20s", "env: inserted"),
            (rate("headrace_inference_batch_size_envs_sum", window="20s"), "inference: acted"),
            ("job:headrace_trained_steps:rate20s", "learner: trained"),
        ),
    ),
    Plot(
        "Frames/s by role",
        "simulator ticks, as env-servers insert them and as the learner hears of them",
        (
            ("job:headrace_frames:rate20s", "env: inserted"),
            (HEARD_OF, "learner: heard of"),
        ),
    ),
    Plot(
        "Busy: which role is the bottleneck",
        "seconds of work per second and process; the role nearest to 1 is what the job waits for",
        (("role:headrace_busy:ratio", "{{role}}"),),
        "percentunit",
    ),
    Plot(
        "Episode return",
        "mean of the last training episodes, and the goal if there is one",
        (
            ("headrace_learner_episode_return", "return"),
            ('headrace_learner_stop_limit{setting="episode_return"}', "goal"),
        ),
    ),
    LAG,
    Plot(
        "Queue depths",
        "Acts that wait for a pass, inserts that wait for room, batches fetched ahead",
        (
            ("sum(headrace_inference_queue_depth)", "inference: acts"),
            ("sum by (table) (headrace_replay_queue_depth)", "replay: inserts into {{table}}"),
            ("headrace_learner_queue_depth", "learner: batches"),
        ),
    ),
    Plot(
        "Inference batch size",
        "environments per forward pass",
        ((mean("headrace_inference_batch_size_envs"), "mean"), *quantiles("headrace_inference_batch_size_envs", 0.95)),
    ),
    Plot(
        "Act latency",
        "from an env-server's Act to its Actions",
        (("job:headrace_act_seconds:quantile20s", "quantile {{quantile}}"),),
        "s",
    ),
    Plot(
        "Samples per insert",
        "items handed out per item inserted, since the replay-server started",
        (("headrace_replay_sample_insert_ratio", "{{table}}"),),
    ),
    Plot(
        "Bytes/s by message kind",
        "sent, by all roles",
        (("sum by (kind) (role_kind:headrace_sent_bytes:rate20s)", "{{kind}}"),),
        "Bps",
    ),
    WAITING,
    Plot("Processes", "that answer, by role", (('sum by (role) (up{job="headrace"})', "{{role}}"),)),
)

ENV = (
    Plot("Steps/s", "inserted, by process", ((rate("headrace_env_steps_total", "instance"), "{{instance}}"),)),
    Plot("Frames/s", "inserted, by process", ((rate("headrace_env_frames_total", "instance"), "{{instance}}"),)),
    Plot("Unrolls/s", "inserted, by process", ((rate("headrace_env_unrolls_total", "instance"), "{{instance}}"),)),
    Plot("Act latency", "from Act to Actions", quantiles("headrace_env_act_seconds", 0.5, 0.95, 0.99), "s"),
    Plot("Step time", "of one group", quantiles("headrace_env_step_seconds", 0.5, 0.95, 0.99), "s"),
    Plot(
        "Busy",
        "seconds of simulation per second",
        ((rate("headrace_env_work_seconds_total", "instance"), "{{instance}}"),),
        "percentunit",
    ),
    Plot("Episode returns", "of episodes that ended", quantiles("headrace_env_episode_return", 0.1, 0.5, 0.9)),
    Plot("Episode lengths", "in steps", quantiles("headrace_env_episode_length_steps", 0.1, 0.5, 0.9)),
)

BEHIND = "scalar(max(headrace_learner_weights_version_updates)) - headrace_inference_weights_version_updates"

INFERENCE = (
    Plot("Batch size", "environments per pass", quantiles("headrace_inference_batch_size_envs", 0.5, 0.95, 0.99)),
    Plot("Pass time", "one forward pass", quantiles("headrace_inference_forward_seconds", 0.5, 0.95, 0.99), "s"),
    Plot("Passes/s", "by process", ((rate("headrace_inference_forward_seconds_count", "instance"), "{{instance}}"),)),
    Plot(
        "Busy",
        "seconds of passes per second",
        ((rate("headrace_inference_forward_seconds_sum", "instance"), "{{instance}}"),),
        "percentunit",
    ),
    Plot("Queue depth", "Acts that wait for a pass", (("headrace_inference_queue_depth", "{{instance}}"),)),
    Plot(
        "Starved",
        "the share of its time that more env-servers could use; the autoscaler's metric",
        (("job:headrace_inference_starved:ratio", "starved"),),
        "percentunit",
    ),
    Plot(
        "Weights behind the learner's",
        "in updates",
        ((BEHIND, "{{instance}}"),),
    ),
)

REPLAY = (
    Plot("Items", "unrolls or transitions held", (("headrace_replay_items", "{{table}}"),)),
    Plot("Table size", "", (("headrace_replay_table_bytes", "{{table}}"),), "bytes"),
    Plot("Inserts/s", "items", ((rate("headrace_replay_inserts_total", "table"), "{{table}}"),)),
    Plot("Samples/s", "items handed out", ((rate("headrace_replay_samples_total", "table"), "{{table}}"),)),
    Plot("Samples per insert", "since the process started", (("headrace_replay_sample_insert_ratio", "{{table}}"),)),
    WAITING,
    Plot("Queue depth", "inserts that wait for room", (("headrace_replay_queue_depth", "{{table}}"),)),
    Plot("Discarded unrolls", "as too old", (("headrace_replay_discarded_unrolls_total", "{{table}}"),)),
    Plot("Draws ahead of inserts", "items, by the rate limit", (("headrace_replay_limiter_ahead_items", "{{table}}"),)),
    Plot("Stale priorities/s", "ignored", ((rate("headrace_replay_stale_priorities_total", "table"), "{{table}}"),)),
)

LEARNER = (
    Plot("Updates/s", "", ((rate("headrace_learner_updates_total"), "updates"),)),
    Plot("Steps trained/s", "", ((rate("headrace_learner_trained_steps_total"), "steps"),)),
    Plot(
        "Update time", "staging and publishing included", quantiles("headrace_learner_update_seconds", 0.5, 0.95), "s"
    ),
    Plot("Episode return", "mean of the last episodes", (("headrace_learner_episode_return", "return"),)),
    Plot("Episode length", "mean of the last episodes", (("headrace_learner_episode_length_steps", "steps"),)),
    Plot("Episodes/s", "", ((rate("headrace_learner_episodes_total"), "episodes"),)),
    LAG,
    Plot("Losses", "and other scalars of the last update", (("headrace_learner_loss", "{{name}}"),)),
    Plot("Skipped updates", "a loss was not finite", (("headrace_learner_skipped_updates_total", "updates"),)),
    Plot("Queue depth", "batches fetched ahead", (("headrace_learner_queue_depth", "batches"),)),
    Plot("Checkpoints", "written by this process", (("headrace_learner_checkpoints_total", "checkpoints"),)),
    Plot(
        "Disk left",
        "where the run is kept",
        (("headrace_learner_disk_free_bytes / headrace_learner_disk_size_bytes", "free"),),
        "percentunit",
    ),
)


def every_service(role: str) -> tuple[Plot, ...]:
    """Gives the plots that each role's page ends with."""
    p = f"headrace_{role}_"
    up = f'up{{job="headrace",role="{role}"}}'
    errors = f"{rate(p + 'errors_total', 'code')} or 0 * sum({up})"
    ages = f"time() - {p}process_start_seconds"
    sent, received = (rate(f"{p}{way}_bytes_total", "kind") for way in ("sent", "received"))
    return (
        Plot("Requests in flight", "sent and not yet answered", ((f"{p}requests_in_flight", "{{instance}}"),)),
        Plot("Requests parked", "received and not yet answered", ((f"{p}requests_parked", "{{instance}}"),)),
        Plot("Sent", "by message kind", ((sent, "{{kind}}"),), "Bps"),
        Plot("Received", "by message kind", ((received, "{{kind}}"),), "Bps"),
        Plot("Errors/s", "by code", ((errors, "{{code}}"),)),
        Plot(
            "Resent requests and silent peers",
            "since the process started",
            ((f"{p}resent_requests_total", "resent"), (f"{p}stalled_peers_total", "silent peers")),
        ),
        Plot("Age", "a process that starts again falls to 0", ((ages, "{{instance}}"),), "s"),
    )


PAGES = {
    "overview": ("Headrace overview", OVERVIEW),
    "env": ("Headrace env-servers", (*ENV, *every_service("env"))),
    "inference": ("Headrace inference-servers", (*INFERENCE, *every_service("inference"))),
    "replay": ("Headrace replay-server", (*REPLAY, *every_service("replay"))),
    "learner": ("Headrace learner-server", (*LEARNER, *every_service("learner"))),
}


def panel(plot: Plot, number: int) -> Any:
    """Gives the builder of one panel."""
    built: Any = timeseries.Panel() if plot.kind == "lines" else stat.Panel()
    built.id(number).title(plot.title).description(plot.what).datasource(SOURCE).unit(plot.unit)
    for ref, (expression, legend) in zip("ABCDEF", plot.queries, strict=False):
        query = prometheus.Dataquery().ref_id(ref).expr(expression).legend_format(legend or plot.title)
        # Whoever was the busiest once is no bottleneck now.
        built.with_target(query.instant() if plot.kind == "name" else query.range())
    if plot.kind == "lines":
        below = common_builders.VizLegendOptions().show_legend(True).placement(common.LegendPlacement.BOTTOM)
        built.span(WIDTH).height(HEIGHT).fill_opacity(8).show_points(common.VisibilityMode.NEVER)
        return built.legend(below.display_mode(common.LegendDisplayMode.LIST))
    text = common.BigValueTextMode.NAME if plot.kind == "name" else common.BigValueTextMode.VALUE
    last = common_builders.ReduceDataOptions().calcs(["lastNotNull"])
    return built.span(STAT_WIDTH).height(STAT_HEIGHT).text_mode(text).reduce_options(last)


def page(name: str) -> str:
    """Gives one dashboard as JSON."""
    title, plots = PAGES[name]
    links = dashboards.DashboardLink("Pages").type(dashboard.DashboardLinkType.DASHBOARDS).tags([TAG]).keep_time(True)
    built = dashboards.Dashboard(title).uid(f"headrace-{name}").tags([TAG]).link(links)
    built.refresh("5s").time("now-15m", "now").timezone("browser").readonly()
    built.tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    for number, plot in enumerate(plots, 1):
        built.with_panel(panel(plot, number))
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def main() -> None:
    for name in PAGES:
        (FOLDER / f"{name}.json").write_text(page(name))


if __name__ == "__main__":
    main()
