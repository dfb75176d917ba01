"""The node-v1 dialect, row by row, with each row's degradation."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from coordinator_server import CoordinatorServer, echo_manifest
from scripted_server import Answer, Connection, Seen, says, serving
from test_transport import Tokens

from aitbc_aps_miner import manifest as manifests
from aitbc_aps_miner.config.model import Config, Coordinator
from aitbc_aps_miner.coordinator import (
    FixedToken,
    HeartbeatReply,
    JobView,
    NodeV1,
    Registration,
    Transport,
    open_coordinator,
)
from aitbc_aps_miner.errors import (
    CoordinatorError,
    ErrorCode,
    JobGoneError,
    RefusedError,
    UnauthorizedError,
    UnavailableError,
)
from aitbc_aps_miner.models import (
    ArtifactFile,
    Capabilities,
    JobState,
    Lease,
    Manifest,
    Origin,
    Outcome,
    Progress,
    ProgressReply,
)
from aitbc_aps_miner.util.clock import SystemClock

DATE = {"Date": "Sat, 31 Jan 2026 12:00:00 GMT"}
JOB = Manifest(job_id="j", attempt=2, runner="cli", timeout_s=5, command="echo")
FAILURE = Outcome(
    job_id="j",
    attempt=2,
    succeeded=False,
    code=ErrorCode.E_INPUT,
    message="no such file",
    detail={"url": "x"},
)


class QuickClock(SystemClock):
    """The machine's clock; pauses take no time."""

    def sleep(self, seconds: float) -> None:
        """Go on at once."""


def node(url: str, **keys: Any) -> NodeV1:
    """Open the adapter as node `n`."""
    timeout_s = keys.pop("timeout_s", 5)
    tokens = keys.pop("tokens", FixedToken("t"))
    transport = Transport(url, tokens, clock=QuickClock(), timeout_s=timeout_s)
    return NodeV1(transport, "n", **keys)


def ask(answer: Answer, call: Callable[[NodeV1], object]) -> tuple[object, list[Seen]]:
    """Make one call of a scripted server; give its value and what was asked."""
    with serving(answer) as server, closing(node(server.url)) as api:
        return call(api), server.seen


def refused(answer: Answer, call: Callable[[NodeV1], object]) -> type[Exception]:
    """Give the kind of error that a call ends with."""
    with pytest.raises(CoordinatorError) as caught:
        ask(answer, call)
    return type(caught.value)


# register


def register(api: NodeV1) -> Registration:
    """Register as any node."""
    return api.register({"node_id": "n"}, "boot")


def test_registering_gives_what_the_coordinator_says() -> None:
    """Times become durations, rather too short than too long."""
    value = {
        "node_token": "t0k",
        "expires_at": "2026-01-31T13:00:00Z",
        "heartbeat_interval_s": 30,
        "extensions": ["query"],
        "surprise": 1,
    }
    got, seen = ask(says(200, value, headers=DATE), register)
    assert isinstance(got, Registration)
    assert (got.token, got.registered) == ("t0k", True)
    assert (got.heartbeat_interval_s, got.extensions) == (30, frozenset({"query"}))
    assert got.expires_in_s is not None
    assert 3590 < got.expires_in_s <= 3599
    assert seen[0].headers["authorization"] == "Bearer boot"
    assert "t0k" not in repr(got)


def test_the_specifications_answer_is_enough() -> None:
    """A token and no more; what it can do is then not known."""
    got, _ = ask(says(200, {"node_token": "t"}), register)
    assert got == Registration(token="t")


@pytest.mark.parametrize("status", [404, 405, 501])
def test_without_registration_the_bootstrap_token_serves(status: int) -> None:
    """The node goes on with it."""
    got, _ = ask(says(status), register)
    assert got == Registration(token="boot", registered=False)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (says(401), UnauthorizedError),
        (says(422), RefusedError),
        (says(503), UnavailableError),
        (says(200, {}), UnavailableError),
        (says(200, []), UnavailableError),
        (says(200, {"node_token": 5}), UnavailableError),
        (says(200, {"node_token": ""}), UnavailableError),
        (says(200, {"node_token": "t", "expires_at": "soon"}), UnavailableError),
        (
            says(200, {"node_token": "t", "expires_at": "2026-01-01T00:00:00"}),
            UnavailableError,
        ),
        (says(200, {"node_token": "t", "heartbeat_interval_s": -1}), UnavailableError),
    ],
)
def test_register_answers_that_help_nobody(
    answer: Answer, kind: type[Exception]
) -> None:
    """A wrong token is for a person, all else for later or never."""
    assert refused(answer, register) is kind


# heartbeat


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (says(200, {}), HeartbeatReply()),
        (says(204), HeartbeatReply()),
        (says(body=b"ok"), HeartbeatReply()),
        (
            says(200, {"cancel": ["a"], "drain": True, "refresh": ["token"]}),
            HeartbeatReply(cancel=("a",), drain=True, refresh=frozenset({"token"})),
        ),
        (says(404), HeartbeatReply(known=False)),
        (says(405), HeartbeatReply(known=False)),
    ],
)
def test_heartbeats(answer: Answer, expected: HeartbeatReply) -> None:
    """Orders are heard; an unknown node is told so."""
    got, seen = ask(answer, lambda api: api.heartbeat({"node_id": "n", "load": 1}))
    assert got == expected
    assert (seen[0].target, seen[0].json["load"]) == ("/api/v1/nodes/heartbeat", 1)


@pytest.mark.parametrize(
    "value", [[], 5, {"cancel": "a"}, {"cancel": [1]}, {"drain": "no"}, {"refresh": {}}]
)
def test_orders_of_surprising_types_are_not_obeyed(value: object) -> None:
    """The call failed."""
    kind = refused(says(200, value), lambda api: api.heartbeat({}))
    assert kind is UnavailableError


def test_a_heartbeat_that_is_refused() -> None:
    """It is no word about registration."""
    assert refused(says(422), lambda api: api.heartbeat({})) is RefusedError


# pull


def pull(api: NodeV1) -> tuple[object, ...]:
    """Pull two jobs at most."""
    return api.pull("n", {"runners": ["cli"]}, 2, 0.5)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (says(204), ()),
        (says(200), ()),
        (says(body=b"null"), ()),
        (says(200, {}), ()),
        (says(200, {"job": None}), ()),
        (says(200, {"jobs": []}), ()),
        (says(200, {"jobs": None}), ()),
        (says(200, {"job": {"job_id": "a"}}), ({"job_id": "a"},)),
        (says(200, {"jobs": [{"a": 1}, 5]}), ({"a": 1}, 5)),
        (says(200, {"job": "no object"}), ("no object",)),
        (says(200, {"jobs": [1, 2, 3, 4]}), (1, 2, 3, 4)),
    ],
)
def test_pulls(answer: Answer, expected: tuple[object, ...]) -> None:
    """Every form of none, one and many, unchecked; none handed out is passed over."""
    got, seen = ask(answer, pull)
    assert got == expected
    assert seen[0].json == {
        "node_id": "n",
        "filters": {"runners": ["cli"]},
        "max_jobs": 2,
        "wait_s": 0.5,
    }


@pytest.mark.parametrize("value", [[], 5, {"jobs": {}}, {"jobs": "a"}])
def test_pulls_that_make_no_sense(value: object) -> None:
    """An error of that call."""
    assert refused(says(200, value), pull) is UnavailableError


def test_a_long_poll_may_take_its_time() -> None:
    """`wait_s` counts on top of a call's limit."""

    def late(_: Seen, connection: Connection) -> None:
        connection.gone(0.4)
        connection.reply(200, {"job": 1})

    with serving(late) as server, closing(node(server.url, timeout_s=0.2)) as api:
        assert api.pull("n", {}, 1, 5) == (1,)
        with pytest.raises(UnavailableError):
            api.pull("n", {}, 1, 0)


# ack and progress


def test_an_ack_names_the_job_in_body_and_query() -> None:
    """Servers read one or the other."""
    got, seen = ask(says(200, {}), lambda api: api.ack(JOB))
    assert got == Lease()
    assert seen[0].target == "/api/v1/jobs/ack?job_id=j&node_id=n&attempt=2"
    assert seen[0].json == {"job_id": "j", "node_id": "n", "attempt": 2}


@pytest.mark.parametrize(
    ("value", "headers", "least", "most"),
    [
        ({"lease_ttl_s": 60}, {}, 59, 60),
        ({"lease_expires_at": "2026-01-31T12:01:00Z"}, DATE, 58, 59),
        ({"lease_expires_at": "2026-01-31T13:01:00.5+01:00"}, DATE, 58, 59.5),
        ({"lease_expires_at": "2026-01-31T11:00:00Z"}, DATE, 0, 0),
        (
            {"lease_ttl_s": 5, "lease_expires_at": "2026-01-31T12:01:00Z"},
            DATE,
            4,
            5,
        ),
    ],
)
def test_a_lease_is_what_is_left_of_it(
    value: dict[str, Any], headers: dict[str, str], least: float, most: float
) -> None:
    """Counted from the sending, on the server's own clock."""
    got, _ = ask(says(200, value, headers=headers), lambda api: api.ack(JOB))
    assert isinstance(got, Lease)
    assert got.ttl_s is not None
    assert least <= got.ttl_s <= most


def test_without_a_date_our_clock_serves() -> None:
    """As well as it can."""
    answer = says(200, {"lease_expires_at": "2999-01-01T00:00:00Z"})
    got, _ = ask(answer, lambda api: api.ack(JOB))
    assert isinstance(got, Lease)
    assert got.ttl_s is not None
    assert got.ttl_s > 900 * 365 * 86400


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, JobGoneError),
        (409, JobGoneError),
        (410, JobGoneError),
        (422, RefusedError),
        (503, UnavailableError),
    ],
)
def test_acks_that_fail(status: int, kind: type[Exception]) -> None:
    """No longer ours, never, or later."""
    assert refused(says(status), lambda api: api.ack(JOB)) is kind


def test_an_ack_whose_answer_is_lost_is_repeated() -> None:
    """One broken connection does not leave a job to the sweep."""

    def lost(_: Seen, connection: Connection) -> None:
        connection.hang_up()

    with (
        serving(lost, says(503), says(200, {"lease_ttl_s": 9})) as server,
        closing(node(server.url)) as api,
    ):
        assert (api.ack(JOB).ttl_s or 0) > 8
        assert len(server.seen) == 3


def test_progress_is_reported() -> None:
    """With everything that the contract has for it."""
    progress = Progress(
        pct=12.5, note="n\ud800", state=JobState.RUNNING, bytes_out=7, tail="t"
    )
    answer = says(200, {"cancel": True, "lease_ttl_s": 60})
    got, seen = ask(answer, lambda api: api.progress(JOB, progress))
    assert isinstance(got, ProgressReply)
    assert got.cancel
    assert seen[0].json == {
        "job_id": "j",
        "pct": 12.5,
        "note": "n?",
        "node_id": "n",
        "attempt": 2,
        "state": "RUNNING",
        "bytes_out": 7,
        "tail": "t",
    }


def test_progress_that_nobody_wants_is_not_sent_again() -> None:
    """A 404 is no word about the job."""
    with serving(says(404)) as server, closing(node(server.url)) as api:
        for _ in range(3):
            assert api.progress(JOB, Progress(pct=1)) == ProgressReply()
        assert len(server.seen) == 1
        assert not api.capabilities.progress


@pytest.mark.parametrize(
    ("status", "kind"),
    [(409, JobGoneError), (410, JobGoneError), (422, RefusedError)],
)
def test_progress_of_a_job_that_is_gone(status: int, kind: type[Exception]) -> None:
    """The job process stops."""
    call = says(status), lambda api: api.progress(JOB, Progress(pct=1))
    assert refused(*call) is kind


# deliver


def success(folder: Path, **files: bytes) -> tuple[Outcome, Callable[..., Path], Path]:
    """Write artifacts and a log; give what deliver takes."""
    (folder / "exec.log").write_bytes(b"said")
    artifacts = []
    for name, content in files.items():
        (folder / name).write_bytes(content)
        artifacts.append(
            ArtifactFile(
                path=f"out/{name}",
                type="text/plain",
                size_bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                stored=name,
                source="stdout" if name == "std" else "file",
            )
        )
    outcome = Outcome(
        job_id="j",
        attempt=2,
        succeeded=True,
        exit_code=0,
        timings={"PREP": 0.1},
        resources={"wall_s": float("nan")},
        artifacts=tuple(artifacts),
        receipt={"sig": "x"},
        sandbox="none",
        cleanup={"tree_empty": True},
    )
    return outcome, lambda file: folder / file.stored, folder / "exec.log"


def test_a_result_is_a_form(tmp_path: Path) -> None:
    """Job, metadata, the log, then the artifacts as declared; keyed."""
    _, seen = ask(says(200, {}), lambda api: api.deliver(*success(tmp_path, std=b"1")))
    body = seen[0].body
    wanted = [
        b'name="job_id"\r\n\r\nj\r\n',
        b'name="metadata"\r\n\r\n{',
        b'name="artifact"; filename="artifacts/logs/exec.log"',
        b'name="artifact"; filename="artifacts/out/std"',
    ]
    places = [body.index(words) for words in wanted]
    assert places == sorted(places)
    assert seen[0].headers["idempotency-key"] == "j:2"
    assert seen[0].headers["content-length"] == str(len(body))
    for words in (
        b'"exit_code":0,"timings":{"PREP":0.1},"resources":{"wall_s":null}',
        b'"artifacts":[{"path":"out/std","type":"text/plain","bytes":1,"sha256":"6b86',
        b'"source":"stdout"}],"receipt":{"sig":"x"},"sandbox":"none"',
    ):
        assert words in body


def test_a_job_without_a_log_still_sends_a_file(tmp_path: Path) -> None:
    """Some servers demand one."""
    outcome, open_artifact, _ = success(tmp_path)
    missing = tmp_path / "none.log"
    _, seen = ask(
        says(body=b"accepted"), lambda api: api.deliver(outcome, open_artifact, missing)
    )
    assert b'filename="artifacts/logs/exec.log"' in seen[0].body


def test_a_failure_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    """In the contract's words, keyed."""
    log = tmp_path / "exec.log"
    log.write_bytes(b"x" * 5000 + b"\xffend")
    _, seen = ask(says(200), lambda api: api.deliver(FAILURE, lambda _: log, log))
    told = seen[0].json
    detail = told.pop("detail")
    assert told == {
        "job_id": "j",
        "error_code": "E_INPUT",
        "error_msg": "no such file",
        "logs_ref": "n/j/logs/exec.log",
        "node_id": "n",
        "attempt": 2,
        "retryable": True,
    }
    assert detail["url"] == "x"
    assert detail["log_tail"] == "x" * 4092 + "\ufffdend"
    assert seen[0].headers["idempotency-key"] == "j:2"


def test_an_unusable_manifest_is_reported(tmp_path: Path) -> None:
    """Under the id as it came."""
    _, seen = ask(
        says(200),
        lambda api: api.fail_raw("../x\0", 1, ErrorCode.E_MANIFEST, "bad", {"a": 1}),
    )
    assert seen[0].target == "/api/v1/jobs/fail"
    assert seen[0].json["job_id"] == "../x\0"
    assert seen[0].json["detail"] == {"a": 1}
    assert "idempotency-key" not in seen[0].headers


HTML = says(body=b"<html>Please log in</html>")


@pytest.mark.parametrize("is_success", [True, False])
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (says(409), None),
        (says(404), JobGoneError),
        (says(410), JobGoneError),
        (says(400), RefusedError),
        (says(413), RefusedError),
        (says(422), RefusedError),
        (says(302, headers={"Location": "/x"}), UnavailableError),
        (says(405), UnavailableError),
        (says(403), UnauthorizedError),
        (says(500), UnavailableError),
        (HTML, UnavailableError),
    ],
)
def test_what_becomes_of_an_outcome(
    tmp_path: Path, answer: Answer, kind: type[Exception] | None, is_success: bool
) -> None:
    """Only a refusal of this very outcome condemns it; all else is tried again."""
    arguments = success(tmp_path)
    if not is_success:
        arguments = (FAILURE, *arguments[1:])

    with serving(answer) as server, closing(node(server.url)) as api:
        if kind is None:
            api.deliver(*arguments)
        else:
            with pytest.raises(CoordinatorError) as caught:
                api.deliver(*arguments)
            assert type(caught.value) is kind


def test_an_artifact_that_changed_is_never_sent(tmp_path: Path) -> None:
    """What was promised is no more: the job fails with the reason."""
    arguments = success(tmp_path, a=b"one")
    (tmp_path / "a").write_bytes(b"other")
    with (
        serving(says(200)) as server,
        closing(node(server.url)) as api,
        pytest.raises(RefusedError, match="changed after it was collected"),
    ):
        api.deliver(*arguments)


def test_a_log_that_cannot_be_read_is_no_crash(tmp_path: Path) -> None:
    """Its path is a directory, say: an empty one is sent."""
    outcome, open_artifact, _ = success(tmp_path)
    ask(says(200), lambda api: api.deliver(outcome, open_artifact, tmp_path))


def test_a_log_that_breaks_off_is_an_error_of_the_tree(tmp_path: Path) -> None:
    """A disk that fails, say; here a file that opens and cannot be read."""
    outcome, open_artifact, _ = success(tmp_path)
    memory = Path("/proc/self/mem")
    with closing(node("http://127.0.0.1:1")) as api, pytest.raises(RefusedError):
        api.deliver(outcome, open_artifact, memory)


# queries


def test_one_job_is_asked_after() -> None:
    """All that the contract has of it."""
    value = {
        "job_id": "j",
        "state": "acked",
        "node_id": "n",
        "attempt": 3,
        "lease_expires_at": "2026-01-31T11:00:00Z",
        "outcome": {"a": 1},
        "manifest": {"b": 2},
    }
    got, _ = ask(says(200, value, headers=DATE), lambda api: api.query("j"))
    assert got == JobView(
        job_id="j",
        state="acked",
        node_id="n",
        attempt=3,
        lease=Lease(ttl_s=0.0),
        outcome={"a": 1},
        manifest={"b": 2},
    )


def test_an_id_is_one_segment_of_the_path() -> None:
    """Whatever it holds."""
    got, seen = ask(says(404), lambda api: api.query("../a?b"))
    assert got is None
    assert seen[0].target == "/api/v1/jobs/..%2Fa%3Fb"


def test_another_jobs_answer_is_none() -> None:
    """Something is wrong there."""
    answer = says(200, {"job_id": "other", "state": "acked"})
    assert refused(answer, lambda api: api.query("j")) is UnavailableError
    assert refused(says(422), lambda api: api.query("j")) is RefusedError


def line(job_id: str) -> dict[str, object]:
    """Give a job of a list."""
    return {"job_id": job_id, "state": "running"}


@pytest.mark.parametrize(
    ("following", "target"),
    [
        ("c 2", "/api/v1/jobs?node_id=n&state=active&next=c+2"),
        ("/api/v1/jobs?page=2", "/api/v1/jobs?page=2"),
        ("?page=2", "/api/v1/?page=2"),
    ],
)
def test_a_list_is_followed_to_its_end(following: str, target: str) -> None:
    """Half a list would make jobs look absent."""
    pages = (
        says(200, {"jobs": [line("a")], "next": following}),
        says(200, {"jobs": [line("b")], "next": None}),
    )
    with serving(*pages) as server, closing(node(server.url)) as api:
        jobs = api.active_jobs("n")
    assert jobs is not None
    assert [job.job_id for job in jobs] == ["a", "b"]
    assert [seen.target for seen in server.seen] == [
        "/api/v1/jobs?node_id=n&state=active",
        target,
    ]


@pytest.mark.parametrize(
    ("pages", "kind"),
    [
        ((says(200, {}),), UnavailableError),
        ((says(200, {"jobs": [{"job_id": "a"}]}),), UnavailableError),
        ((says(200, {"jobs": [], "next": "x"}), says(404)), RefusedError),
        ((says(200, {"jobs": [], "next": "https://else.example/"}),), RefusedError),
        ((says(200, {"jobs": [], "next": "x"}),), UnavailableError),
        ((says(422),), RefusedError),
    ],
)
def test_a_list_that_is_not_complete_is_none(
    pages: tuple[Answer, ...], kind: type[Exception]
) -> None:
    """Also one that never ends."""
    with (
        serving(*pages) as server,
        closing(node(server.url)) as api,
        pytest.raises(CoordinatorError) as caught,
    ):
        api.active_jobs("n")
    assert type(caught.value) is kind


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_coordinator_without_queries(status: int) -> None:
    """It is said so, not guessed."""
    got, _ = ask(says(status), lambda api: api.active_jobs("n"))
    assert got is None


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        (None, Capabilities()),
        (frozenset(), Capabilities(query=False)),
        (frozenset({"query", "tus"}), Capabilities(uploads=True)),
    ],
)
def test_capabilities_are_what_was_said(
    extensions: frozenset[str] | None, expected: Capabilities
) -> None:
    """Without a word, queries are tried and uploads are asked for first."""
    with closing(node("http://127.0.0.1:1", extensions=extensions)) as api:
        assert api.capabilities == expected


# against the reference coordinator


class SameToken(Tokens):
    """A registration that gives the same token again."""

    def renew(self, stale: str | None) -> str:
        """Note it."""
        super().renew(stale)
        assert stale is not None
        return stale


_NUMBERS = count(1)


class Live:
    """A node at the reference coordinator."""

    def __init__(self, server: CoordinatorServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.node_id = f"node-{next(_NUMBERS)}"
        self.token = ""

    def open(self, extensions: frozenset[str] | None = None, **keys: Any) -> NodeV1:
        """Register and open the adapter."""
        timeout_s = keys.pop("timeout_s", 2)
        url = self.server.base_url
        with Transport(url, None, clock=QuickClock()) as boot:
            first = NodeV1(boot, self.node_id)
            registration = first.register({"node_id": self.node_id}, self.server.token)
        said = registration.extensions if extensions is None else extensions
        self.token = registration.token
        tokens = FixedToken(self.token)
        transport = Transport(url, tokens, clock=QuickClock(), timeout_s=timeout_s)
        return NodeV1(transport, self.node_id, extensions=said, **keys)

    def acked(self, api: NodeV1) -> Manifest:
        """Submit, pull and ack a job."""
        self.server.submit(echo_manifest())
        (raw,) = api.pull(self.node_id, {}, 1, 0)
        manifest = manifests.parse(raw, max_timeout_s=3600)
        api.ack(manifest)
        return manifest

    def deliver(self, api: NodeV1, manifest: Manifest, **files: bytes) -> None:
        """Deliver a success."""
        outcome, open_artifact, log = success(self.folder, **files)
        fields = {**vars(outcome), "job_id": manifest.job_id, "attempt": 1}
        api.deliver(Outcome(**fields), open_artifact, log)

    def states(self, manifest: Manifest) -> list[str]:
        """Give the states a job has had."""
        history = self.server.job(manifest.job_id)["history"]
        return [step["state"] for step in history]


@pytest.fixture(scope="module")
def coordinator() -> Iterator[CoordinatorServer]:
    """Give one reference coordinator for the tests below."""
    with CoordinatorServer() as running:
        yield running


@pytest.fixture
def live(coordinator: CoordinatorServer, tmp_path: Path) -> Iterator[Live]:
    """Give a node of its own."""
    yield Live(coordinator, tmp_path)
    coordinator.clear_faults()


@pytest.mark.parametrize("kind", ["drop_reply", "answer_twice"])
def test_a_result_whose_reply_is_lost_is_one_outcome(live: Live, kind: str) -> None:
    """The repetition finds it done."""
    with closing(live.open()) as api:
        manifest = live.acked(api)
        live.server.set_fault("result", kind, count=1)
        live.deliver(api, manifest, a=b"x")
        live.deliver(api, manifest, a=b"x")
    assert live.states(manifest) == ["queued", "leased", "acked", "succeeded"]


def test_a_401_in_the_middle_costs_one_registration(live: Live) -> None:
    """The upload is sent again from its first byte."""
    with closing(live.open()) as api:
        manifest = live.acked(api)
        tokens = SameToken(live.token)
        api._transport._tokens = tokens
        live.server.set_fault("result", "status", status=401, count=1)
        live.deliver(api, manifest, a=b"x" * 100_000)
    assert live.states(manifest)[-1] == "succeeded"
    assert tokens.renewed == [live.token]


def test_too_many_requests_are_passed_on_with_their_wish(live: Live) -> None:
    """The ticks' backoff obeys it."""
    with closing(live.open()) as api:
        live.server.set_fault("pull", "status", status=429, retry_after_s=7)
        with pytest.raises(UnavailableError) as caught:
            api.pull(live.node_id, {}, 1, 0)
    assert caught.value.retry_after_s == 7


def test_a_stall_ends_at_the_calls_limit(live: Live) -> None:
    """And is for later."""
    with closing(live.open(timeout_s=0.2)) as api:
        live.server.set_fault("heartbeat", "stall", seconds=2)
        with pytest.raises(UnavailableError):
            api.heartbeat({"node_id": live.node_id})


@pytest.mark.parametrize("said", [None, frozenset({"uploads"})])
def test_large_artifacts_go_by_tus(live: Live, said: frozenset[str] | None) -> None:
    """The result then names them; small ones stay parts."""
    with closing(live.open(said, resumable_above_mb=0.5)) as api:
        manifest = live.acked(api)
        live.deliver(api, manifest, large=b"x" * 2**20, small=b"y")

    def calls() -> list[tuple[str, str]]:
        """Give the calls by method and kind of path."""
        return [
            (method, path.split("/")[3])
            for method, path, _, headers in live.server.requests
            if headers["authorization"] == f"Bearer {live.token}"
        ][2:]

    # A call is noted a moment after its answer was sent.
    live.server.wait_until(lambda: len(calls()) >= 3, 5)
    assert calls() == [("POST", "uploads"), ("PATCH", "uploads"), ("POST", "jobs")]
    large = live.server.artifact(manifest.job_id, "out/large")
    assert (len(large), large[:1]) == (2**20, b"x")
    assert live.server.artifact(manifest.job_id, "out/small") == b"y"


def test_a_result_that_is_too_large_goes_by_tus(live: Live) -> None:
    """413 is not the end where uploads are offered."""
    with closing(live.open()) as api:
        manifest = live.acked(api)
        live.server.set_fault("result", "status", status=413, count=1)
        live.deliver(api, manifest, a=b"x" * 1000)
    assert live.states(manifest)[-1] == "succeeded"
    assert live.server.artifact(manifest.job_id, "out/a") == b"x" * 1000


def test_where_uploads_are_not_known_they_are_asked_for(tmp_path: Path) -> None:
    """Once; without an answer the form is the way."""

    def answer(request: Seen, connection: Connection) -> None:
        connection.reply(503 if request.method == "OPTIONS" else 200)

    with (
        serving(answer) as server,
        closing(node(server.url, resumable_above_mb=0)) as api,
    ):
        api.deliver(*success(tmp_path, a=b"1"))
        assert [seen.method for seen in server.seen] == ["OPTIONS", "POST"]
        assert not api.capabilities.uploads


def test_where_uploads_are_not_offered_that_is_remembered(tmp_path: Path) -> None:
    """One question is enough."""
    with (
        serving(says(404), says(200)) as server,
        closing(node(server.url, resumable_above_mb=0)) as api,
    ):
        for _ in range(2):
            api.deliver(*success(tmp_path, a=b"1"))
        assert [seen.method for seen in server.seen] == ["OPTIONS", "POST", "POST"]


@pytest.mark.parametrize("no_registration", [False, True])
def test_the_specification_alone_is_enough(
    tmp_path: Path, no_registration: bool
) -> None:
    """No leases, queries, uploads; with and without registration a job is delivered."""
    with CoordinatorServer(spec_only=True, no_registration=no_registration) as server:
        live = Live(server, tmp_path)
        with closing(live.open(resumable_above_mb=0)) as api:
            manifest = live.acked(api)
            assert api.progress(manifest, Progress(pct=1)).lease == Lease()
            beat = api.heartbeat({"node_id": live.node_id})
            assert beat.known is not no_registration
            assert api.active_jobs(live.node_id) is None
            assert api.query(manifest.job_id) is None
            live.deliver(api, manifest, a=b"x")
        assert live.states(manifest)[-1] == "succeeded"
        assert server.artifact(manifest.job_id, "out/a") == b"x"


def test_a_jobs_origin_outlives_the_configuration() -> None:
    """What came from one coordinator never goes to another."""
    section = Coordinator(base_url="http://127.0.0.1:1/new")
    config = Config(node_id="new", coordinator=section)
    with serving(says(200)) as server:
        origin = Origin(api="node-v1", base_url=server.url, node_id="old")
        opened = open_coordinator(config, FixedToken("t"), None, origin=origin)
        with closing(opened) as api:
            api.ack(JOB)
        assert server.seen[0].json["node_id"] == "old"
