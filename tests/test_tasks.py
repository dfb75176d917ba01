"""The ticks at the reference coordinator: each does its piece of work and reports."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from coordinator_server import CoordinatorServer, echo_manifest
from daemon_fakes import gpu
from scripted_server import says, serving
from tick_site import Site, capacity, quiet_log, registered

from aitbc_aps_miner import intake, tasks
from aitbc_aps_miner.models import JobState
from aitbc_aps_miner.probe.host import probe_host
from aitbc_aps_miner.reference_coordinator.matching import Appetite
from aitbc_aps_miner.workspace import read_control
from aitbc_aps_miner.world import World


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    with quiet_log():
        yield


@pytest.fixture(scope="module")
def shared() -> Iterator[CoordinatorServer]:
    """Give one coordinator to the whole module; each test has jobs of its own."""
    with CoordinatorServer(max_attempts=1) as server:
        yield server


@pytest.fixture
def server(shared: CoordinatorServer) -> Iterator[CoordinatorServer]:
    """Give a coordinator whose queue is empty."""
    yield shared
    shared.clear_faults()
    shared.call(shared.state._queue.clear)


@pytest.fixture
def site(tmp_path: Path, server: CoordinatorServer) -> Site:
    """Give a registered node."""
    return Site(tmp_path, server.base_url, registered(server))


# Registration and heartbeat


def test_registering_gives_token_and_extensions(
    tmp_path: Path, server: CoordinatorServer
) -> None:
    """And says where it registered, for an edit that crosses it."""
    site = Site(tmp_path, server.base_url, None)
    report = tasks.register(
        site.line, config=site.access["config"], host={}, gpus=[asdict(gpu())]
    )
    assert server.call(lambda: server.state.tokens.node_of(report["token"])) == "n1"
    assert report["registered"] is True
    assert server.base_url in report["place"]
    assert report["extensions"] == sorted(report["extensions"])
    described = server.call(lambda: server.state.nodes["n1"].descriptor)
    assert described["gpu"][0]["uuid"] == "GPU-0"
    assert len(described["public_key"]) == 43


def test_a_wrong_bootstrap_token_is_told_as_such(
    tmp_path: Path, server: CoordinatorServer
) -> None:
    """Only the owner can mend it."""
    site = Site(tmp_path, server.base_url, None, coordinator={"auth_token": "wrong"})
    report = tasks.register(site.line, config=site.access["config"], host={}, gpus=[])
    assert report["unauthorized"] is True


def test_a_bootstrap_token_that_is_not_there_is_the_owners_too(
    tmp_path: Path, server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is said, and nothing was sent."""
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    wish = {"auth_token": "env:NO_SUCH_TOKEN"}
    site = Site(tmp_path, server.base_url, None, coordinator=wish)
    report = tasks.register(site.line, config=site.access["config"], host={}, gpus=[])
    assert report["unauthorized"] is True
    assert "NO_SUCH_TOKEN" in report["error"]


def heartbeat(site: Site, **more: Any) -> tasks.Report:
    """Heartbeat with what the daemon would tell."""
    told: dict[str, Any] = {
        "digest": "abc",
        "host": {},
        "gpus": [],
        "running": ["a"],
        "slots_free": {"cpu": 1, "gpu": 0},
        "draining": True,
        **more,
    }
    return tasks.heartbeat(site.line, **site.access, **told)


def test_a_heartbeat_tells_the_state_and_brings_orders(
    site: Site, server: CoordinatorServer
) -> None:
    """Facts of the last probe are told as they are."""
    node = server.call(lambda: server.state.node("n1"))
    node.drain, node.refresh = True, ["token", "capabilities"]
    facts = asdict(probe_host(site.root))
    report = heartbeat(site, host={**facts, "load1": 7.5})
    node.drain = False
    assert report == {
        "known": True,
        "cancel": (),
        "drain": True,
        "refresh": ["capabilities", "token"],
    }
    body = node.heartbeat or {}
    told = {key: body[key] for key in ("load", "running", "slots", "draining")}
    assert told == {
        "load": 7.5,
        "running": ["a"],
        "slots": {"cpu_free": 1, "gpu_free": 0},
        "draining": True,
    }
    assert heartbeat(site)["drain"] is False


def test_a_coordinator_that_asks_for_time_is_reported(
    site: Site, server: CoordinatorServer
) -> None:
    """With the seconds that it asked for; no exception leaves the tick."""
    server.set_fault("heartbeat", "status", status=503, retry_after_s=7)
    report = heartbeat(site)
    assert report["retry_after_s"] == 7
    assert report["unauthorized"] is False


def test_an_expired_token_is_renewed_without_a_daemon(
    site: Site, server: CoordinatorServer
) -> None:
    """The tick registers once and repeats its call."""
    server.forget_tokens()
    assert heartbeat(site)["known"] is True


def test_the_probe_looks_at_the_machine(site: Site) -> None:
    """It asks no coordinator."""
    report = tasks.probe(site.line, config=site.access["config"])
    assert report["host"]["cores"] >= 1
    assert report["source"] in {"nvml", "nvidia-smi", "dcgm", "none"}
    assert len(site.line.events("probe.note")) == len(report["notes"])


# Orders


def test_orders_reach_the_control_file(site: Site) -> None:
    """Beside those that it was given before."""
    workspace = site.claim(echo_manifest("a"))
    for orders in ({"cancel": True}, {"limits": {"nice": 5}}):
        told: dict[str, Any] = {"root": str(site.root), "job_id": "a"}
        told |= {"orders": orders, "config": site.access["config"]}
        report = tasks.control(site.line, **told)
        assert report == {"job_id": "a"}
    assert read_control(workspace.root) == {"cancel": True, "limits": {"nice": 5}}
    workspace.close()


@pytest.mark.parametrize("job_id", ["gone", "../a"])
def test_orders_for_a_job_that_is_not_here_do_nothing(site: Site, job_id: str) -> None:
    """It ended meanwhile."""
    told: dict[str, Any] = {"root": str(site.root), "job_id": job_id, "orders": {}}
    report = tasks.control(site.line, config=site.access["config"], **told)
    assert list(report) == ["error"]


# Pull


def test_a_pull_accepts_what_fits(site: Site, server: CoordinatorServer) -> None:
    """With everything that its process needs; nothing is written yet."""
    server.submit(echo_manifest("fits"))
    report = site.pull()
    (job,) = report["accepted"]
    assert {**job, "raw": None} == {
        "job_id": "fits",
        "attempt": 1,
        "runner": "cli",
        "raw": None,
        "origin": asdict(site.origin),
        "reservation": {
            "kind": "cpu",
            "cpu_threads": 1,
            "gpu_uuids": (),
            "vram_mb": 0,
        },
        "root": str(site.root),
        "net_s": 120 + 2 * 10 + intake.NET_S,
    }
    assert job["raw"]["command"] == "echo"
    assert (report["duplicates"], report["refused"], site.names()) == ([], [], [])
    assert ("polling", None) in site.line.said


def test_no_more_is_asked_for_than_fits(site: Site, server: CoordinatorServer) -> None:
    """Slot by slot."""
    for job_id in ("one", "two", "three"):
        server.submit(echo_manifest(job_id))
    assert [job["job_id"] for job in site.pull(slots=2)["accepted"]] == ["one", "two"]


MALFORMED: dict[str, Any] = {
    "id-climbs": {"job_id": "../evil"},
    "id-slashes": {"job_id": "a/b"},
    "id-absolute": {"job_id": "/etc/evil"},
    "id-nul": {"job_id": "evil\0"},
    "id-newline": {"job_id": "evil\n"},
    "id-long": {"job_id": "e" * 200},
    "id-cyrillic": {"job_id": "\u0437\u0430\u0434"},
    "id-fullwidth": {"job_id": "\uff4a\uff4f\uff42"},
    "id-dots": {"job_id": "e..vil"},
    "id-hidden": {"job_id": ".evil"},
    "no-timeout": {"timeout_s": None},
    "timeout-negative": {"timeout_s": -1},
    "timeout-zero": {"timeout_s": 0},
    "timeout-absurd": {"timeout_s": 1e300},
    "timeout-longest": {"timeout_s": 10**7},
    "timeout-text": {"timeout_s": "120"},
    "no-command": {"command": None},
    "command-number": {"command": 7},
    "args-text": {"args": "hello"},
    "args-numbers": {"args": [1]},
    "args-too-many": {"args": ["a"] * 100_001},
    "threads-negative": {"requirements": {"cpu_threads": -1}},
    "memory-absurd": {"requirements": {"memory_mb": 10**400}},
    "requirements-list": {"requirements": []},
    "input-climbs": {"input": {"inline": {"../x": "y"}}},
    "artifact-climbs": {"artifacts": [{"path": "../x"}]},
    "artifact-absolute": {"artifacts": [{"path": "/etc/passwd"}]},
    "artifact-twice": {"artifacts": [{"path": "x"}, {"path": "x"}]},
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=list(MALFORMED))
def test_a_malformed_manifest_is_refused_and_the_next_job_taken(
    site: Site, server: CoordinatorServer, change: Mapping[str, Any]
) -> None:
    """E_MANIFEST at the coordinator, one log line, no path made."""
    bad = {**echo_manifest(f"bad-{len(server.state.jobs)}"), **change}
    good = f"good-{len(server.state.jobs)}"
    server.call(lambda: server.state.jobs.pop(bad["job_id"], None))
    server.submit(bad)
    server.submit(echo_manifest(good))
    report = site.pull()
    assert [job["job_id"] for job in report["accepted"]] == [good]
    (refused,) = report["refused"]
    assert refused == {"job_id": bad["job_id"], "code": "E_MANIFEST"}
    job = server.call(lambda: server.state.job(bad["job_id"]))
    assert job.state == "failed"
    assert (job.outcome or {})["error_code"] == "E_MANIFEST"
    assert len(site.line.events("job.refused")) == 1
    assert site.names() == []
    inside = {path.name for path in site.home.rglob("*")}
    assert inside <= {"allow", "echo.yaml", "jobs"}


@pytest.mark.parametrize(
    "raw",
    [
        None,
        7,
        "job",
        [],
        {},
        {"job_id": 7},
        {"job_id": ["a"], "runner": "cli"},
        [[[[]]]],
        {"job_id": "j", "runner": 5, "timeout_s": 1},
        {"job_id": "j", "timeout_s": 1},
        {"job_id": "j", "runner": "cli", "timeout_s": 1, "attempt": -3},
        {"job_id": "j", "runner": "cli", "timeout_s": 1, "attempt": True},
        {"job_id": "e" * 5000},
    ],
    ids=lambda raw: str(raw)[:30],
)
def test_whatever_a_coordinator_hands_out_the_next_job_is_taken(
    tmp_path: Path, raw: object
) -> None:
    """What has an id is reported by it; what has none can't be."""
    jobs = {"jobs": [raw, echo_manifest("good")]}
    with serving(says(200, jobs), says(200, {})) as script:
        site = Site(tmp_path, script.url, "t")
        report = site.pull()
    assert [job["job_id"] for job in report["accepted"]] == ["good"]
    assert [refused["code"] for refused in report["refused"]] == ["E_MANIFEST"]
    assert len(report["refused"][0]["job_id"]) <= intake.JOB_ID_SHOWN
    job_id = raw.get("job_id") if isinstance(raw, dict) else None
    fails = [seen.json for seen in script.seen if seen.target.endswith("/jobs/fail")]
    told = [] if not isinstance(job_id, str) else [(job_id, "E_MANIFEST")]
    assert [(fail["job_id"], fail["error_code"]) for fail in fails] == told
    assert site.names() == []


DENIED = {
    "--help;rm": ["--help;rm"],
    "newline": ["hello\n"],
    "many": ["hello"] * 10_000,
    "capitals": ["HELLO"],
}


@pytest.mark.parametrize("args", DENIED.values(), ids=list(DENIED))
def test_an_argument_that_is_not_allowed_is_named(
    site: Site, server: CoordinatorServer, args: list[str]
) -> None:
    """E_DENY before any process."""
    job_id = server.submit({**echo_manifest(), "args": args})
    assert site.pull()["refused"] == [{"job_id": job_id, "code": "E_DENY"}]
    outcome = server.job(job_id)["outcome"]
    assert outcome["error_code"] == "E_DENY"
    assert "arg" in outcome["error_msg"]


@pytest.mark.parametrize("command", ["rm", "/bin/echo", "../echo", "ech"])
def test_a_command_that_is_not_allowed_is_named(
    site: Site, server: CoordinatorServer, command: str
) -> None:
    """A path from the wire is a name like any other."""
    job_id = server.submit({**echo_manifest(), "command": command})
    site.pull()
    outcome = server.job(job_id)["outcome"]
    assert outcome["error_code"] == "E_DENY"
    assert command in outcome["error_msg"]


def test_more_than_the_node_has_is_refused_for_another_one(
    site: Site, server: CoordinatorServer
) -> None:
    """E_NORES or E_NOGPU: it may be run elsewhere."""
    wish = {"requirements": {"gpu": True}}
    with serving(says(200, {"jobs": [echo_manifest("g", **wish)]}), says()) as script:
        other = Site(site.home, script.url, "t")
        assert other.pull()["refused"] == [{"job_id": "g", "code": "E_NOGPU"}]
    assert script.seen[-1].json["retryable"] is True


@pytest.mark.parametrize(("attempt", "told"), [(3, 3), ("x", 1), (None, 1)])
def test_a_refusal_names_the_attempt_where_there_is_one(
    tmp_path: Path, attempt: object, told: int
) -> None:
    """Else the first."""
    bad = {"job_id": "b", "attempt": attempt}
    with serving(says(200, {"jobs": [bad]}), says(200, {})) as script:
        Site(tmp_path, script.url, "t").pull()
    assert script.seen[-1].json["attempt"] == told


def test_a_refusal_that_can_not_be_told_is_logged(tmp_path: Path) -> None:
    """Its lease runs out, and it comes again."""
    with serving(says(200, {"jobs": [{"job_id": "b"}]}), says(503)) as script:
        site = Site(tmp_path, script.url, "t")
        assert len(site.pull()["refused"]) == 1
    (event,) = site.line.events("job.refusal_untold")
    assert event["job_id"] == "b"


def test_a_job_given_twice_in_one_answer_is_taken_once(tmp_path: Path) -> None:
    """As a coordinator does that answers twice."""
    jobs = [echo_manifest("a"), echo_manifest("a")]
    with serving(says(200, {"jobs": jobs})) as script:
        report = Site(tmp_path, script.url, "t").pull()
    assert len(report["accepted"]) == 1
    assert (report["duplicates"], report["refused"]) == ([], [])


def test_a_job_of_an_earlier_root_is_not_taken_again(
    site: Site, server: CoordinatorServer
) -> None:
    """What was begun before a move of the root is answered as if nothing had moved."""
    earlier = Site(
        site.home,
        server.base_url,
        site.token,
        workspace={"root": str(site.home / "earlier")},
    )
    raws = {name: echo_manifest(f"moved-{name}") for name in ("acked", "done")}
    for raw in raws.values():
        server.submit(raw)
    earlier.claim(raws["acked"]).close()
    earlier.delivered(raws["done"])
    report = site.pull(earlier=str(earlier.root))
    assert (report["accepted"], report["duplicates"]) == ([], ["moved-done"])


def test_a_new_job_goes_under_the_root_in_force(tmp_path: Path) -> None:
    """Not under one that an edit names and nobody may have."""
    with serving(says(200, {"jobs": [echo_manifest("a")]})) as script:
        site = Site(tmp_path, script.url, "t")
        report = tasks.pull(
            site.line,
            **site.access,
            roots=["/in/force"],
            capacity=capacity(),
            held=[],
        )
    assert [job["root"] for job in report["accepted"]] == ["/in/force"]


def test_a_job_that_is_here_is_not_taken_again(
    site: Site, server: CoordinatorServer
) -> None:
    """One with an outcome is answered with it; a later attempt is a new job."""
    raws = {name: echo_manifest(f"here-{name}") for name in ("held", "acked", "done")}
    for raw in raws.values():
        server.submit(raw)
    site.claim(raws["acked"]).close()
    site.delivered(raws["done"])
    report = site.pull("here-held")
    assert (report["accepted"], report["refused"]) == ([], [])
    assert report["duplicates"] == ["here-done"]
    again = {**raws["done"], "attempt": 2}
    with serving(says(200, {"jobs": [again]})) as script:
        report = Site(site.home, script.url, "t").pull()
    assert [job["attempt"] for job in report["accepted"]] == [2]


@pytest.mark.parametrize(
    "answer",
    [
        says(200, body=b"<html>not json</html>"),
        says(200, {"jobs": 7}),
        says(200, body=b"[" * 100_000),
        says(500),
        says(302, headers={"Location": "http://elsewhere/"}),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_failed_pull(
    tmp_path: Path, answer: Any
) -> None:
    """Never an exception out of the tick."""
    with serving(answer) as script:
        report = Site(tmp_path, script.url, "t").pull()
    assert "error" in report


# Deliver


def acked(site: Site, server: CoordinatorServer, job_id: str) -> Mapping[str, Any]:
    """Let the node take a job at the coordinator."""
    raw = echo_manifest(job_id)
    server.submit(raw)
    server.call(lambda: server.state.pull("n1", Appetite()))
    server.call(lambda: server.state.ack(job_id, "n1", 1))
    return raw


def test_a_waiting_outcome_is_delivered(site: Site, server: CoordinatorServer) -> None:
    """And marked so; a second time there is nothing to do."""
    site.waiting(acked(site, server, "wait-1"))
    report = site.deliver("wait-1")
    assert (report["state"], report["resent"]) == (JobState.DONE, False)
    assert server.job("wait-1")["state"] == "succeeded"
    assert site.deliver("wait-1") == {"job_id": "wait-1", "state": JobState.IDLE}


def test_a_coordinator_that_is_away_is_tried_later(
    site: Site, server: CoordinatorServer
) -> None:
    """The outcome stays."""
    site.waiting(acked(site, server, "wait-2"), succeeded=False)
    server.set_fault("fail", "status", status=503)
    assert site.deliver("wait-2")["state"] == JobState.RETRY_WAIT
    server.clear_faults()
    assert site.deliver("wait-2")["state"] == JobState.FAILED
    assert server.job("wait-2")["outcome"]["error_code"] == "E_EXIT"


def test_what_nobody_takes_in_time_is_dropped(
    tmp_path: Path, server: CoordinatorServer
) -> None:
    """It is kept for the owner, with the reason."""
    site = Site(
        tmp_path, server.base_url, registered(server), results={"keep_trying": 0}
    )
    workspace = site.recorded(acked(site, server, "late"))
    workspace.enter(JobState.UPLOADING)
    workspace.enter(JobState.RETRY_WAIT)
    workspace.close()
    report = site.deliver("late")
    assert report["state"] == JobState.DONE
    assert "results.keep_trying" in report["message"]
    record = site.found("late").record
    assert record is not None
    assert record.dropped == report["message"]
    assert server.job("late")["state"] == "acked"


def test_an_outcome_that_vanished_is_nothing_to_deliver(site: Site) -> None:
    """Between the look and the lock."""
    site.waiting(echo_manifest("thin"))
    workspaces = site.workspaces
    (site.root / "thin" / "outcome.json").unlink()
    world = World(site.line, site.access["config"], site.token)
    report = tasks._deliver_one(world, workspaces, "thin", resend=False)
    assert report == {"job_id": "thin", "state": JobState.IDLE}


def test_a_delivered_job_handed_out_again_is_acked_and_answered(
    site: Site, server: CoordinatorServer
) -> None:
    """With its kept outcome, by the same key."""
    raw = echo_manifest("again")
    site.delivered(raw, succeeded=False)
    server.submit(raw)
    site.pull()
    report = site.deliver("again", resend=True)
    assert (report["state"], report["resent"]) == (JobState.FAILED, True)
    states = [step["state"] for step in server.job("again")["history"]]
    assert states == ["queued", "leased", "acked", "failed"]
    (call,) = server.calls("jobs/fail")[-1:]
    assert call[3]["idempotency-key"] == "again:1"


def test_a_tombstone_answers_as_well(site: Site, server: CoordinatorServer) -> None:
    """Its files are gone; what is left of it recognises the job and tells its end."""
    raw = echo_manifest("buried")
    site.delivered(raw, succeeded=False)
    workspace = site.workspaces.open("buried")
    workspace.bury()
    workspace.close()
    server.submit(raw)
    assert site.pull()["duplicates"] == ["buried"]
    assert site.deliver("buried", resend=True)["state"] == JobState.FAILED
    assert server.job("buried")["outcome"]["error_code"] == "E_EXIT"


def test_an_ack_that_is_not_taken_does_not_keep_the_answer_back(
    site: Site, server: CoordinatorServer
) -> None:
    """The submission itself says what is true."""
    site.delivered(echo_manifest("unknown-there"))
    report = site.deliver("unknown-there", resend=True)
    assert report["state"] == JobState.DONE
    assert "dropped" in report["message"]
