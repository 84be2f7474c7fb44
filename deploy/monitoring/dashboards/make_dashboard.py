#!/usr/bin/env python3
"""Writes overfill.json, the Grafana dashboard, from what is said here.

    deploy/monitoring/dashboards/make_dashboard.py          writes it
    deploy/monitoring/dashboards/make_dashboard.py --check  exit code 1 if it
                                                            differs
"""

import json
import pathlib
import sys
from typing import Any, Dict, List, Sequence, Tuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from panels import (  # noqa: E402
    SOURCE, TOKENS, Target, floor, heatmap, limits, lines, place,
    query_variable, stat, table)

TARGET = pathlib.Path(__file__).resolve().parent / "overfill.json"

# Which servers. A pattern, since several may be chosen.
S = 'job=~"$job",instance=~"$instance"'
P = S + ',path=~"$path"'
SWAP = "(.+_)?swap"
OVERLOAD = "queue.+|deadline_unreachable|open_streams|tokenizer_full"
DAY = 86400
# Green: an answer; red: the server's fault.
OUTCOMES = {"eos": "green", "length": "light-green", "stop": "dark-green",
            "cancelled": "light-blue", "deadline_exceeded": "purple",
            "resource_exhausted": "yellow", "unavailable": "orange",
            "internal": "red"}

Panels = List[Dict[str, Any]]


def rate(metric: str, chosen: str = S, by: str = "") -> str:
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{chosen}}}[$__rate_interval]))"


def quantile(share: float, metric: str, chosen: str = S, by: str = "") -> str:
    buckets = rate(metric + "_bucket", chosen, f"le, {by}" if by else "le")
    return f"histogram_quantile({share}, {buckets})"


def quantiles(metric: str) -> Sequence[Target]:
    return [Target(quantile(share, metric, P), name)
            for share, name in ((0.99, "p99"), (0.9, "p90"), (0.5, "p50"))]


def mean(metric: str, by: str) -> str:
    return (f"{rate(metric + '_sum', by=by)} / "
            f"({rate(metric + '_count', by=by)} > 0)")


def fault_ratio() -> str:
    faults = rate("overfill_requests_total",
                  S + ',outcome=~"internal|unavailable"')
    return f"{faults} / ({rate('overfill_requests_total')} > 0)"


def overview() -> Panels:
    return [
        stat("Servers up", "Targets that answer Prometheus.", "none",
             Target(f"sum (up{{{S}}})", "up"), [("red", None), ("green", 1)]),
        stat("Requests", "Admitted requests that end, per second.", "reqps",
             Target(rate("overfill_requests_total"), "requests"), decimals=1),
        stat("Tokens out", "Tokens generated per second.", TOKENS,
             Target(rate("overfill_completion_tokens_total"), "tokens"),
             decimals=0),
        stat("Faults", "Share of requests that end INTERNAL or UNAVAILABLE.",
             "percentunit", Target(fault_ratio(), "faults"),
             limits(0.01, 0.05), decimals=2),
        stat("TTFT p99", "One in a hundred waits longer for its first token.",
             "s", Target(quantile(0.99, "overfill_ttft_seconds", P), "p99"),
             limits(2.5, 5)),
        stat("ITL p99", "One in a hundred tokens comes later after the one "
             "before.", "s",
             Target(quantile(0.99, "overfill_inter_token_seconds", P), "p99"),
             limits(0.2, 0.3)),
        stat("Fullest KV", "Blocks that live requests hold, in the fullest "
             "store.", "percentunit",
             Target(f'max (overfill_kv_use_ratio{{{S},store!~"{SWAP}"}})',
                    "use"), limits(0.8, 0.9), decimals=0),
        stat("Waiting", "Requests in the queue.", "none",
             Target(f'sum (overfill_requests{{{S},state="queued"}})',
                    "queued"), limits(16, 128)),
    ]


def traffic() -> Panels:
    return [
        lines("Requests by outcome", "Admitted requests, when they end.",
              "reqps", Target(rate("overfill_requests_total", P, "outcome"),
                              "{{outcome}}"), stacked=True, colors=OUTCOMES),
        lines("Requests by path", "Which models they asked for.", "reqps",
              Target(rate("overfill_requests_total", P, "path"), "{{path}}"),
              stacked=True),
        lines("Live requests", "By what their farthest answer does. `queued` "
              "for long: see the pools and KV.", "none",
              Target(f"sum by (state) (overfill_requests{{{S}}})",
                     "{{state}}"), stacked=True),
        lines("Refusals by reason", "Requests that were not admitted.",
              "reqps", Target(rate("overfill_requests_rejected_total",
                                   by="reason") + " > 0", "{{reason}}"),
              stacked=True),
        lines("Refusals by overload", "Share of the requests that a bound of "
              "the whole server refused.", "percentunit",
              Target(f"""{rate("overfill_requests_rejected_total",
                               S + f',reason=~"{OVERLOAD}"')}
                     / ({rate("overfill_requests_rejected_total",
                              S + f',reason=~"{OVERLOAD}"')}
                     + {rate("overfill_requests_total")} > 0)""", "refused"),
              limit=0.05),
        lines("Open streams", "Streams of Generate, those that are only being "
              "read among them.", "none",
              Target(f"sum by (instance) (overfill_open_streams{{{S}}})",
                     "{{instance}}")),
    ]


def latencies() -> Panels:
    def of(title: str, about: str, metric: str, **extra: Any) -> Dict:
        return lines(title, about, "s", *quantiles(metric), **extra)
    return [
        of("Time to first token", "Arrival to the first token.",
           "overfill_ttft_seconds", limit=5),
        of("Queue", "Arrival to the first prefill step: part of the time to "
           "first token.", "overfill_queue_seconds"),
        of("Inter-token latency", "One token to the next.",
           "overfill_inter_token_seconds", limit=0.3),
        of("Time per output token", "Of each answer: first token to last, by "
           "the tokens after the first.",
           "overfill_time_per_output_token_seconds"),
        of("End to end", "Arrival to the end of complete answers; long ones "
           "take long.", "overfill_e2e_seconds"),
        lines("Time to first token by path", "p99.", "s",
              Target(quantile(0.99, "overfill_ttft_seconds", P, "path"),
                     "{{path}}"), limit=5),
        heatmap("Time to first token, all", "How many requests per bucket.",
                "s", Target(f"""sum by (le) (increase(
                    overfill_ttft_seconds_bucket{{{P}}}[$__rate_interval]))""",
                            "{{le}}")),
        heatmap("Inter-token latency, all", "How many tokens per bucket.",
                "s", Target(f"""sum by (le) (increase(
                    overfill_inter_token_seconds_bucket{{{P}}}
                    [$__rate_interval]))""", "{{le}}")),
    ]


def tokens() -> Panels:
    requests = f"({rate('overfill_requests_total', P)} > 0)"
    return [
        lines("Generated tokens", "As they come.", TOKENS,
              Target(rate("overfill_completion_tokens_total", P, "path"),
                     "{{path}}"), stacked=True),
        lines("Prompt tokens", "Of requests, when they end.", TOKENS,
              Target(rate("overfill_prompt_tokens_total", P, "path"),
                     "{{path}}"), stacked=True),
        lines("Tokens of a request", "The mean.", "none",
              Target(rate("overfill_prompt_tokens_total", P) + " / " +
                     requests, "prompt"),
              Target(rate("overfill_completion_tokens_total", P) + " / " +
                     requests, "answer")),
    ]


def pools() -> Panels:
    return [
        lines("Time in steps", "Near 1: the pool always works. On one device "
              "a step also waits for the other pool's.", "percentunit",
              Target(f"""avg by (pool) (rate(
                  overfill_step_seconds_sum{{{S}}}[$__rate_interval]))""",
                     "{{pool}}"), most=1),
        lines("Step time", "One step of a pool.", "s",
              Target(quantile(0.99, "overfill_step_seconds", by="pool"),
                     "{{pool}} p99"),
              Target(quantile(0.5, "overfill_step_seconds", by="pool"),
                     "{{pool}} p50")),
        lines("Sequences of a step", "The mean: how well steps are filled.",
              "none", Target(mean("overfill_step_sequences", "pool"),
                             "{{pool}}")),
        lines("Rows of a step", "The mean, of prompt tokens and decoded ones.",
              "none", Target(mean("overfill_step_rows", "pool, kind"),
                             "{{pool}}, {{kind}} rows")),
        lines("Stalled", "Time since the last step of a pool that has work. "
              "More than a few steps' time: it hangs.", "s",
              Target(f"max by (pool) (overfill_pool_stalled_seconds{{{S}}})",
                     "{{pool}}"), limit=60),
        lines("Prefill chunk", "Prompt tokens that a step may take. Low: more "
              "would slow the running answers.", "none",
              Target(f"min by (instance) (overfill_prefill_chunk_rows{{{S}}})",
                     "{{instance}}")),
    ]


def kv() -> Panels:
    return [
        lines("KV blocks", "Cached ones are free for whoever needs them.",
              "none", Target(f"""sum by (store, state) (
                  overfill_kv_blocks{{{S},store!~"{SWAP}"}})""",
                             "{{store}} {{state}}"), stacked=True),
        lines("KV in use", "Owned and quarantined blocks of all, in the "
              "fullest server.", "percentunit",
              Target(f"max by (store) (overfill_kv_use_ratio{{{S}}})",
                     "{{store}}"), limit=0.9, most=1),
        lines("Prefix cache", "Share of the prompt tokens that were found.",
              "percentunit",
              Target(f"""{rate("overfill_prefix_cache_hit_tokens_total")}
                     / ({rate("overfill_prefix_cache_queried_tokens_total")}
                     > 0)""", "hits"), most=1),
        lines("Preemptions", "Running answers whose KV went to the swap "
              "space.", "ops",
              Target(rate("overfill_preemptions_total", by="instance"),
                     "{{instance}}")),
        lines("Migrations", "KV that changes owner between the pools: "
              "handoffs move no byte.", "ops",
              Target(rate("overfill_migration_seconds_count", by="kind"),
                     "{{kind}}")),
        lines("Migration time", "p99.", "s",
              Target(quantile(0.99, "overfill_migration_seconds", by="kind"),
                     "{{kind}}")),
        lines("Migrated bytes", "Moved by copies.", "Bps",
              Target(rate("overfill_migration_bytes_sum", by="kind"),
                     "{{kind}}")),
        lines("Transfers under way", "`fencing`: past its lease and not yet "
              "back.", "none",
              Target(f"sum by (state) (overfill_kv_transfers{{{S}}})",
                     "{{state}}")),
        lines("Failed transfers", "Sent again; and ends that came too late "
              "or twice.", "ops",
              Target(rate("overfill_transfer_retries_total"), "retries"),
              Target(rate("overfill_discarded_commits_total"),
                     "discarded commits")),
    ]


def security() -> Panels:
    left = f"""min by (certificate) (
        overfill_certificate_expiry_timestamp_seconds{{{S}}}) - time()"""
    return [
        stat("Certificates expire in", "The first of all servers.", "s",
             Target(left, "{{certificate}}"), floor(14 * DAY, 2 * DAY),
             size=(6, 8)),
        lines("Calls without a valid token", "By what was wrong.", "ops",
              Target(rate("overfill_unauthenticated_calls_total",
                          by="reason"), "{{reason}}"), size=(6, 8)),
        lines("Failed TLS handshakes", "By server.", "ops",
              Target(rate("overfill_tls_handshake_failures_total",
                          by="instance"), "{{instance}}"), size=(6, 8)),
        lines("Reloaded files", "Since the servers started.", "none",
              Target(f"""sum by (what, outcome) (
                  overfill_reloads_total{{{S}}})""", "{{what}} {{outcome}}"),
              size=(6, 8)),
    ]


def process() -> Panels:
    def each(title: str, about: str, unit: str, expr: str) -> Dict[str, Any]:
        return lines(title, about, unit, Target(expr, "{{instance}}"),
                     size=(6, 8))
    return [
        each("CPU", "Cores in use.", "none",
             rate("process_cpu_seconds_total", by="instance")),
        each("Memory", "Resident.", "bytes",
             f"max by (instance) (process_resident_memory_bytes{{{S}}})"),
        each("Open files", "Of those allowed.", "percentunit",
             f"""max by (instance) (
                 process_open_fds{{{S}}} / process_max_fds{{{S}}})"""),
        each("Uptime", "Since the process started.", "s",
             f"""time() - max by (instance) (
                 process_start_time_seconds{{{S}}})"""),
        lines("Faults of the server itself", "Stuck steps, and checks of the "
              "KV blocks that failed; since the start.", "none",
              Target(f"sum by (pool) (overfill_stuck_steps_total{{{S}}})",
                     "stuck {{pool}}"),
              Target(f"sum (overfill_integrity_failures_total{{{S}}})",
                     "integrity"), size=(12, 8)),
        lines("Scrapes", "How long Prometheus takes to read the metrics.",
              "s", Target(f"max by (instance) (scrape_duration_seconds{{{S}}})",
                          "{{instance}}"), size=(12, 8)),
        table("Servers", "What each of them serves.",
              Target(f"""overfill_model_info{{{S}}}
                     * on (job, instance) group_left (version)
                     overfill_build_info{{{S}}}""", ""),
              hidden=("Time", "Value", "job", "__name__")),
    ]


ROWS: Sequence[Tuple[str, Any]] = (
    ("Overview", overview), ("Traffic and outcomes", traffic),
    ("Latencies", latencies), ("Tokens", tokens), ("Pools", pools),
    ("KV memory", kv), ("Security", security), ("Process", process))


def variables() -> List[Dict[str, Any]]:
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource",
         "description": "Where the servers' metrics are.",
         "query": "prometheus", "regex": "", "refresh": 1, "hide": 0,
         "multi": False, "includeAll": False, "skipUrlSync": False,
         "current": {"selected": False, "text": "default",
                     "value": "default"}, "options": []},
        query_variable("job", "Job", "label_values(overfill_build_info, job)",
                       "Prometheus' name for a group of servers."),
        query_variable("instance", "Server", 'label_values('
                       'overfill_build_info{job=~"$job"}, instance)',
                       "Which servers."),
        query_variable("path", "Path", "label_values("
                       f"overfill_requests_total{{{S}}}, path)",
                       "Which models the requests asked for."),
    ]


def annotations() -> List[Dict[str, Any]]:
    return [
        {"name": "Alerts", "enable": True, "iconColor": "red",
         "datasource": SOURCE, "titleFormat": "{{alertname}}",
         "textFormat": "{{instance}}", "step": "60s",
         "expr": 'ALERTS{alertname=~"Overfill.+",alertstate="firing"}'},
        {"name": "Starts", "enable": True, "iconColor": "blue",
         "datasource": SOURCE, "titleFormat": "{{instance}} started",
         "step": "60s", "useValueForTime": True,
         "expr": f"process_start_time_seconds{{{S}}} * 1000"},
    ]


def dashboard() -> Dict[str, Any]:
    return {
        "title": "OverFill", "uid": "overfill", "tags": ["overfill", "llm"],
        "description": "overfill-server: what its users see, and why.",
        "schemaVersion": 42, "version": 1, "id": None, "editable": True,
        "graphTooltip": 1, "fiscalYearStartMonth": 0, "weekStart": "",
        "timezone": "browser", "time": {"from": "now-1h", "to": "now"},
        "timepicker": {}, "refresh": "30s", "preload": False, "links": [],
        "annotations": {"list": annotations()},
        "templating": {"list": variables()},
        "panels": place([(title, make()) for title, make in ROWS]),
    }


def main() -> int:
    text = json.dumps(dashboard(), indent=2) + "\n"
    if sys.argv[1:] == ["--check"]:
        old = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
        if old == text:
            return 0
        print(f"{TARGET.name} is not what make_dashboard.py writes",
              file=sys.stderr)
        return 1
    if sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        return 2
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
