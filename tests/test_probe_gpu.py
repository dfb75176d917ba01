"""GPUs from NVML, nvidia-smi and DCGM, none of which is to be trusted."""

import contextlib
import http.server
import json
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pynvml as real_pynvml
import pytest
from fake_nvml import pynvml as fake_pynvml
from hypothesis import given
from hypothesis import strategies as st

from aitbc_aps_miner.models import Gpu
from aitbc_aps_miner.probe import dcgm, nvml_source, smi
from aitbc_aps_miner.probe.gpu import GpuReport, probe_gpus
from aitbc_aps_miner.probe.values import name, number, percent, whole

HERE = Path(__file__).parent
FAKE_SMI = HERE / "programs" / "fake_nvidia_smi.py"
NVML_GPUS = (
    Gpu(
        index=0,
        uuid="GPU-aaaa",
        name="NVIDIA RTX 6000, Ada",
        vram_mb=49140,
        util_pct=7,
        mem_used_mb=512,
        temp_c=41,
        power_w=23.5,
        driver="550.54.15",
        cuda_version="12.4",
    ),
    Gpu(
        index=1,
        uuid="MIG-b1",
        name="NVIDIA H100 MIG 1g.10gb",
        driver="550.54.15",
        cuda_version="12.4",
    ),
    Gpu(
        index=1,
        uuid="MIG-b2",
        vram_mb=16384,
        mem_used_mb=0,
        driver="550.54.15",
        cuda_version="12.4",
    ),
)
SMI_GPUS = (
    Gpu(
        index=0,
        uuid="GPU-1111",
        name="NVIDIA GeForce RTX 4090",
        vram_mb=24564,
        driver="550.54.15",
        util_pct=3,
        mem_used_mb=1034,
        temp_c=45,
        power_w=21.37,
    ),
    Gpu(
        index=1,
        uuid="GPU-2222",
        name="Tesla, the V100",
        driver="550.54.15",
        temp_c=120,
    ),
)
DCGM_GPUS = (
    Gpu(
        index=0,
        uuid="GPU-604ac76c",
        name="Tesla T4",
        vram_mb=15109,
        util_pct=12,
        mem_used_mb=109,
        temp_c=34,
        power_w=26.25,
    ),
    Gpu(
        index=1,
        uuid="GPU-71b2",
        name='Odd, "quoted" \\ name',
        vram_mb=8000,
        mem_used_mb=5,
    ),
)
NO_DRIVER = "nvml: no NVIDIA driver is loaded"
HANGING = ("/bin/sleep", "600")
PRESENT = ("/",)
"""Driver files that exist on every machine."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The [probe] section as the probe sees it."""

    timeout_s: float = 60
    nvidia_smi: str = "/nonexistent/nvidia-smi"
    dcgm_url: str | None = None


@pytest.fixture
def fake_smi(tmp_path: Path) -> Callable[[str], str]:
    """Give a maker of programs that behave as a mode of the fake nvidia-smi."""

    def make(mode: str) -> str:
        program = tmp_path / "nvidia-smi"
        words = shlex.join([sys.executable, "-S", str(FAKE_SMI), mode])
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        program.chmod(0o755)
        return str(program)

    return make


class Exporter(http.server.BaseHTTPRequestHandler):
    """Serves the files of tests/data as a DCGM exporter does, and worse."""

    released: ClassVar[threading.Event]

    def do_GET(self) -> None:
        """Answer by path."""
        if self.path == "/stall":
            self.released.wait(30)
            return
        self.send_response(500 if self.path == "/error" else 200)
        self.end_headers()
        if self.path == "/flood":
            # The reader goes away at its cap.
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"y" * 65536)
        elif self.path == "/metrics":
            self.wfile.write((HERE / "data" / "dcgm.txt").read_bytes())

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def exporter() -> Iterator[str]:
    """Run an exporter; give its URL without a path."""
    Exporter.released = threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Exporter) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        Exporter.released.set()
        server.shutdown()
        thread.join()


def nvml_argv() -> tuple[str, ...]:
    """Give the NVML program with the fake driver in place of the real one."""
    program = (
        f"import sys; sys.path.insert(0, {str(HERE / 'fake_nvml')!r})\n"
        "from aitbc_aps_miner.probe.nvml_source import main; sys.exit(main())"
    )
    return (sys.executable, "-c", program)


# --- the order of the sources


def test_without_a_gpu_nothing_is_started_and_nothing_found() -> None:
    """A machine without a driver pays for neither a program nor a connection."""
    started = time.monotonic()
    report = probe_gpus(Settings(), nvml_argv=HANGING, driver_files=())
    assert report == GpuReport(
        gpus=(),
        source="none",
        notes=(NO_DRIVER, "nvidia-smi: no program '/nonexistent/nvidia-smi'"),
    )
    assert time.monotonic() - started < 1


def test_nvml_is_asked_first(fake_smi: Callable[[str], str]) -> None:
    """With a working NVML nobody else is asked."""
    report = probe_gpus(
        Settings(nvidia_smi=fake_smi("rows")),
        nvml_argv=nvml_argv(),
        driver_files=PRESENT,
    )
    assert report == GpuReport(
        gpus=NVML_GPUS, source="nvml", notes=("nvml: GPU 2: GPU is lost",)
    )


def test_a_hanging_nvml_leaves_time_for_nvidia_smi(
    fake_smi: Callable[[str], str],
) -> None:
    """NVML that hangs costs its share, then nvidia-smi answers."""
    report = probe_gpus(
        Settings(timeout_s=3, nvidia_smi=fake_smi("rows")),
        nvml_argv=HANGING,
        driver_files=PRESENT,
    )
    note = "nvml: did not end within 1.05 s"
    assert report == GpuReport(gpus=SMI_GPUS, source="nvidia-smi", notes=(note,))


def test_everything_hanging_ends_in_none_within_the_limit(
    fake_smi: Callable[[str], str], exporter: str
) -> None:
    """Three sources that hang together take 85 % of the probe's limit."""
    started = time.monotonic()
    report = probe_gpus(
        Settings(
            timeout_s=2, nvidia_smi=fake_smi("hang"), dcgm_url=f"{exporter}/stall"
        ),
        nvml_argv=HANGING,
        driver_files=PRESENT,
    )
    assert time.monotonic() - started < 2 * 2  # the machine may be busy
    assert (report.gpus, report.source) == ((), "none")
    assert report.notes[:2] == (
        "nvml: did not end within 0.7 s",
        "nvidia-smi: did not end within 0.7 s",
    )
    assert report.notes[2:] in {
        ("dcgm: did not end within 0.3 s",),
        ("dcgm: timed out",),  # the client's own limit may be the first
    }


def test_dcgm_is_asked_last(exporter: str) -> None:
    """Without NVML and nvidia-smi the exporter tells."""
    settings = Settings(dcgm_url=f"{exporter}/metrics")
    report = probe_gpus(settings, driver_files=())
    assert (report.gpus, report.source) == (DCGM_GPUS, "dcgm")


# --- NVML


def test_the_real_nvml_program_answers_here() -> None:
    """Whatever this machine has, the real program ends and its answer is read."""
    gpus, notes = nvml_source.run_nvml(30, driver_files=PRESENT)
    assert gpus or notes
    assert not any("JSON" in note or "status" in note for note in notes)


def test_the_fake_driver_speaks_the_real_ones_names() -> None:
    """What is asked of the fake exists in the real module."""
    names = {each for each in vars(fake_pynvml) if each.lower().startswith("nvml")}
    assert len(names) > 10
    assert names <= set(vars(real_pynvml))


@pytest.mark.parametrize(
    ("world", "expected"),
    [
        (fake_pynvml.World(), ((), ())),
        (
            fake_pynvml.World(
                driver=b"390.1",
                cuda=None,
                devices=[fake_pynvml.Device(uuid=None, name=b"Old \xff", mig=False)],
            ),
            (
                (
                    Gpu(
                        index=0,
                        uuid="GPU-0",
                        driver="390.1",
                        name="Old \N{REPLACEMENT CHARACTER}",
                    ),
                ),
                (),
            ),
        ),
        (
            fake_pynvml.World(devices=[fake_pynvml.Device(uuid="GPU-m", mig=True)]),
            ((), ("GPU 0: MIG is on but has no instance",)),
        ),
    ],
)  # fmt: skip - one line per GPU reads better
def test_what_nvml_does_not_tell_is_none(
    monkeypatch: pytest.MonkeyPatch, world: fake_pynvml.World, expected: Any
) -> None:
    """Old drivers give bytes, some queries are not supported, MIG may be empty."""
    monkeypatch.setattr(fake_pynvml, "WORLD", world)
    answer = json.dumps(nvml_source.read(fake_pynvml))
    assert nvml_source.parse(answer) == expected


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("", ((), ())),
        ("no", ((), ("printed no JSON",))),
        ("[" * 100_000, ((), ("printed no JSON",))),
        ("[]", ((), ("printed no JSON object",))),
        ('{"gpus": {}, "notes": [1, "", "a"]}', ((), ("a",))),
        (
            '{"gpus": [1, {"index": -1, "uuid": 5, "vram_mb": -4, "temp_c": "hot"}]}',
            ((Gpu(index=1, uuid="GPU-1"),), ()),
        ),
    ],
)
def test_a_broken_nvml_program_is_read_with_care(printed: str, expected: Any) -> None:
    """What is not of the expected form is left out, never raised."""
    assert nvml_source.parse(printed) == expected


def test_an_nvml_program_that_dies_is_noted() -> None:
    """A crash in the driver's library is a note."""
    argv = ("/bin/sh", "-c", "kill -SEGV $$")
    found = nvml_source.run_nvml(30, argv, PRESENT)
    assert found == ((), ("nvml: ended with status -11",))


# --- nvidia-smi


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("rows", (SMI_GPUS, ())),
        ("partly", (SMI_GPUS[:1], ("nvidia-smi: ended with status 15",))),
        (
            "failed",
            (
                (),
                ("nvidia-smi: ended with status 9: NVIDIA-SMI has failed: no driver.",),
            ),
        ),
        ("garbage", ((), ("nvidia-smi: lists no GPU",))),
        ("leak", ((), ("nvidia-smi: lists no GPU",))),
    ],
)
def test_nvidia_smi_is_read_with_care(
    fake_smi: Callable[[str], str], mode: str, expected: Any
) -> None:
    """Rows are read, everything else is left out and noted."""
    assert smi.run_smi(fake_smi(mode), 30) == expected


@given(st.text(alphabet=st.sampled_from("019-,. []NA/\n\0xé")) | st.text())
def test_any_text_of_nvidia_smi_is_read(text: str) -> None:
    """No output raises, and what is believed is in range."""
    for gpu in smi.parse(text):
        assert gpu.uuid
        assert gpu.index >= 0
        assert gpu.util_pct is None or 0 <= gpu.util_pct <= 100


# --- DCGM


def test_mig_instances_of_dcgm_are_one_gpu() -> None:
    """Instances repeat the index: memory adds up, the busiest tells the use."""
    text = (HERE / "data" / "dcgm_mig.txt").read_text()
    assert dcgm.parse(text) == (
        Gpu(
            index=3,
            uuid="GPU-aa",
            name="NVIDIA H100",
            vram_mb=20000,
            driver="550.54",
            util_pct=60,
            mem_used_mb=300,
            temp_c=40,
        ),
        Gpu(index=5, uuid="GPU-5", util_pct=1),
    )


@pytest.mark.parametrize(
    ("path", "note"),
    [
        ("/error", "dcgm: answers 500"),
        ("/flood", "dcgm: sends over 4194304 bytes"),
        ("/empty", "dcgm: the exporter lists no GPU"),
    ],
)
def test_an_exporter_that_misbehaves_is_noted(
    exporter: str, path: str, note: str
) -> None:
    """Errors, floods and empty answers end in a note."""
    assert dcgm.run_dcgm(exporter + path, 30) == ((), (note,))


def test_an_exporter_that_drips_ends_at_its_deadline() -> None:
    """One byte now and then keeps no reader beyond the limit for all of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                while not stop.wait(0.02):
                    connection.send(b"H")

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
        found = dcgm.run_dcgm(url, 0.3)
        stop.set()
        thread.join()
    assert found[0] == ()
    assert found[1][0].startswith("dcgm: ")


@pytest.mark.parametrize("url", ["https://127.0.0.1:9/m", "http://[::1/", "http://"])
def test_an_exporter_that_cannot_be_reached_is_noted(url: str) -> None:
    """Refused connections and impossible URLs are notes."""
    gpus, (note,) = dcgm.run_dcgm(url, 30)
    assert (gpus, note[:6], len(note) > 6) == ((), "dcgm: ", True)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["GPU_UTIL", "FB_USED", "X"]),
            st.text(alphabet=st.sampled_from('gpu="01,{}\\ \n#x-é'), max_size=30)
            | st.text(max_size=20)
            | st.just('{gpu="0"}'),
            st.text(max_size=8) | st.floats().map(str),
        )
    )
)
def test_any_text_of_an_exporter_is_read(rows: list[tuple[str, str, str]]) -> None:
    """No line raises, and what is believed is in range."""
    text = "\n".join(f"DCGM_FI_DEV_{m}{labels} {value}" for m, labels, value in rows)
    for gpu in dcgm.parse(text):
        assert gpu.util_pct is None or 0 <= gpu.util_pct <= 100


# --- values


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, 5.0),
        (" 5.5 ", 5.5),
        ("[N/A]", None),
        ("nan", None),
        (float("inf"), None),
        (-1, None),
        (True, None),
        (None, None),
        ([], None),
        (10**400, None),
        (2**31 - 16, None),
        (2**31 - 17, 2.0**31 - 17),
        ("9223372036854775794", None),
    ],
)
def test_numbers_are_finite_and_in_range(value: Any, expected: float | None) -> None:
    """Blank marks, negative, infinite and other odd values are None."""
    assert number(value) == expected


def test_the_other_values_follow() -> None:
    """Whole numbers, percentages and names are read alike."""
    seen = (whole("7.9"), whole("x"), percent(100), percent(100.1))
    assert seen == (7, None, 100.0, None)
    names = [
        name(value) for value in (" A\x00\n100 ", "", "N/A", "[N/A]", 5, "y" * 200)
    ]
    assert names == ["A100", None, None, None, None, "y" * 128]
