"""The library of the CPU kernels is compiled once, kept and shared; calls go on, whatever is wrong with a machine."""

import ctypes
import errno
import fcntl
import logging
import multiprocessing
import os
import platform
import pwd
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from fma_kernels import Hierarchy, fma, fma_attention
from fma_kernels.backends import selection
from fma_kernels.backends.cpp import cache, compiler, library

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="the CPU kernels are for Linux on x86-64"
)

#: A compiler that answers like one, notes what it is asked for, and then does what a test wants.
STAND_IN = """#!/bin/sh
PATH=/usr/bin:/bin
case "$*" in
    *--version) printf '%b\\n' '{about}'; exit ;;
    *-dumpversion) echo '{version}'; exit ;;
esac
echo "$*" >> '{asked}'
for target; do :; done
{work}
"""
GNU = "g++ (stand-in)\\nCopyright (C) 2022 Free Software Foundation, Inc."


@pytest.fixture(scope="session")
def compiled() -> None:
    """Nothing that the other tests need: these make machines of their own, most of them without kernels."""


@pytest.fixture(scope="session")
def small_library(tmp_path_factory) -> Path:
    """A library that answers like that of the kernels, compiled in no time."""
    if not shutil.which("g++"):
        pytest.skip("there is no g++")
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.cpp").write_text('extern "C" int fma_panel() { return 16; }')
    command = ["g++", "-shared", "-fPIC", str(folder / "small.cpp"), "-o", str(folder / "small.so")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "small.so"


class Machine:
    """A machine with folders and a compiler of its own."""

    def __init__(self, root: Path):
        self.root, self.cache, self.temporary, self.asked = (root / x for x in ("", "cache", "temporary", "asked"))
        self.temporary.mkdir()
        (root / "bin").mkdir()

    def install(self, work: str, *, about: str = GNU, version: str = "13.1.0", name: str = "g++") -> None:
        """A compiler, of which ``work`` is what it does at each of its two steps to make ``$target``."""
        script = self.root / "bin" / name
        script.write_text(STAND_IN.format(work=work, about=about, version=version, asked=self.asked))
        script.chmod(0o755)

    def compilations(self) -> int:
        return self.asked.read_text().count(" -c ") if self.asked.exists() else 0

    def libraries(self) -> list[Path]:
        return sorted(self.cache.glob("*.so"))

    def reload(self) -> ctypes.CDLL | str:
        """The library that another process would find."""
        library.load.cache_clear()
        return library.load()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """One without a compiler yet."""
    machine = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv(cache.FOLDER, str(machine.cache))
    monkeypatch.setattr(tempfile, "tempdir", str(machine.temporary))
    monkeypatch.setattr(library, "processor_flags", lambda: "avx2 fma")
    for name in ("CXX", "XDG_CACHE_HOME", library.SWITCH):
        monkeypatch.delenv(name, raising=False)
    library.load.cache_clear()
    selection._said.clear()
    yield machine
    library.load.cache_clear()
    selection._said.clear()


@pytest.fixture
def working(machine, small_library):
    """One with a compiler that works."""
    machine.install(f"cp '{small_library}' $target")
    return machine


@pytest.fixture
def kernels():
    """The kernels of this machine, compiled by its compiler."""
    if isinstance(library.load(), str):
        pytest.skip(library.load())


def run_forked(function, *arguments, processes: int = 1, seconds: float = 20) -> list[int]:
    """Exit statuses of forked processes that call a function at the same time; -9 for one that hangs."""
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=function, args=arguments) for _ in range(processes)]
    for child in children:
        child.start()
    end = time.monotonic() + seconds
    for child in children:
        child.join(max(0, end - time.monotonic()))
        child.kill()
        child.join()
    return [child.exitcode for child in children]


# ---------------------------------------------------------------------- compiled once, and kept


def test_compiles_once_with_one_line_and_keeps_the_library(working, caplog):
    loaded = library.load()
    assert loaded.fma_panel() == 16
    (path,) = working.libraries()
    assert [record.getMessage() for record in caplog.records] == [
        f"compiling the CPU kernels, once, which takes some seconds: {path}"
    ]
    assert caplog.records[0].levelno == logging.WARNING, "what Python shows without being told to"
    assert stat.S_IMODE(working.cache.stat().st_mode) == 0o700
    assert working.reload()._name == loaded._name == str(path)
    assert working.compilations() == 1
    assert not [*working.temporary.iterdir(), *working.cache.glob("*.part")]


def test_eight_processes_at_once_compile_once(working, small_library):
    working.install(f"sleep 0.4; cp '{small_library}' $target")

    def start():
        assert library.load().fma_panel() == 16

    assert run_forked(start, processes=8) == [0] * 8
    assert working.compilations() == 1


def test_the_name_stands_for_all_that_the_code_depends_on(working, monkeypatch, tmp_path, small_library):
    names = []

    def load():
        names.append(working.reload()._name)

    load()
    monkeypatch.setattr(library, "processor_flags", lambda: "avx2 avx512f fma")
    load()
    monkeypatch.setattr(compiler, "COMPILE", ("-O2", *compiler.COMPILE))
    load()
    working.install(f"cp '{small_library}' $target", about=GNU.replace("stand-in", "newer"))
    load()
    monkeypatch.setenv("CXX", "g++ -DNDEBUG")
    load()
    sources = tmp_path / "sources"
    shutil.copytree(library.SOURCES, sources)
    monkeypatch.setattr(library, "SOURCES", sources)
    (sources / "lanes.h").write_text("// changed")
    load()
    assert len(set(names)) == len(names) == working.compilations()
    load()
    assert names[-1] == names[-2]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:64] + b"\0" + data[65:],
        lambda data: b"\x7fELF" + data,
    ],
    ids=["empty", "truncated", "digest", "a byte", "shifted"],
)
def test_a_damaged_file_is_made_again(working, damage):
    library.load()
    (path,) = working.libraries()
    whole = path.read_bytes()
    path.unlink()  # it is in use
    path.write_bytes(damage(whole))
    assert working.reload().fma_panel() == 16
    assert path.read_bytes() == whole and working.compilations() == 2


def test_what_a_killed_process_leaves_is_harmless(working, small_library):
    started = working.root / "started"
    working.install(f"touch '{started}'; echo part > $target; exec sleep 3")
    child = multiprocessing.get_context("fork").Process(target=library.load)
    child.start()
    while not started.exists():
        time.sleep(0.01)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL and not working.libraries()
    working.install(f"cp '{small_library}' $target")
    start = time.monotonic()
    assert working.reload().fma_panel() == 16
    assert time.monotonic() - start < 2, "the lock has ended with the process"


def test_a_lock_that_never_ends_is_not_waited_for(working, monkeypatch):
    library.load()
    (path,) = working.libraries()
    path.unlink()
    monkeypatch.setattr(cache, "PATIENCE", 0.2)
    with open(path.with_suffix(".lock")) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert working.reload().fma_panel() == 16


def test_file_systems_without_locks_will_do(working, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert library.load().fma_panel() == 16
    assert len(working.libraries()) == 1


# ---------------------------------------------------------------------- folders


def temporary_library(machine) -> Path:
    (path,) = machine.temporary.glob(f"fma_kernels-{os.geteuid()}/*.so")
    return path


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_the_default_folder_is_in_the_cache_folder_of_the_user(working, monkeypatch, variable):
    monkeypatch.delenv(cache.FOLDER)
    monkeypatch.setenv(variable, str(working.root / "own"))
    folder = working.root / "own" / (".cache" if variable == "HOME" else "") / "fma_kernels"
    assert Path(library.load()._name).parent == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_account_without_a_home_has_a_folder_among_the_temporary_files(working, monkeypatch):
    def getpwuid(uid):
        raise KeyError(uid)

    monkeypatch.delenv(cache.FOLDER)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    monkeypatch.chdir(working.root)
    assert library.load()._name == str(temporary_library(working))
    assert not (working.root / "~").exists()


def test_a_home_that_cannot_be_written_to_has_one_too(working, monkeypatch, caplog):
    monkeypatch.delenv(cache.FOLDER)
    monkeypatch.setenv("HOME", "/proc/self")  # where not even root makes a folder
    assert library.load()._name == str(temporary_library(working))
    assert working.reload()._name == str(temporary_library(working)) and working.compilations() == 1
    assert len(caplog.records) == 1


def test_a_folder_that_has_the_library_need_not_be_writable(working, monkeypatch):
    library.load()

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    working.cache.chmod(0o500)
    monkeypatch.setattr(cache, "open", refuse, raising=False)  # for root, too
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    assert Path(working.reload()._name).parent == working.cache


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_write_to_is_not_trusted(working, caplog, mode):
    library.load()
    working.cache.chmod(mode)
    caplog.clear()
    assert working.reload()._name == str(temporary_library(working))
    assert caplog.messages[0] == f"{cache.FOLDER} is not used: {working.cache}: others can write to it"


def test_nor_is_a_folder_of_another_user(working, monkeypatch):
    library.load()
    if os.geteuid() == 0:
        os.chown(working.cache, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    loaded = working.reload()
    assert isinstance(loaded, str) or Path(loaded._name).parent != working.cache


def test_a_link_that_is_turned_round_later_has_no_effect(working):
    real = working.root / "real"
    working.cache.symlink_to(real)
    real.mkdir(mode=0o700)
    assert Path(library.load()._name).parent == real


def test_a_disk_that_is_full_at_the_end_is_not_the_only_one(working, monkeypatch):
    replace = os.replace

    def full(source, target):
        if Path(target).parent == working.cache:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert library.load()._name == str(temporary_library(working))
    assert not [*working.cache.glob("*.part"), *working.libraries()]


def test_full_disks_show_before_the_work_is_done(working):
    """A limit on the size of files has the kernel refuse to write, as a full disk does."""

    def load():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        reason = library.load()
        assert "no folder can keep the compiled CPU kernels" in reason and "File too large" in reason, reason

    assert run_forked(load) == [0]
    assert working.compilations() == 0 and not [*working.cache.glob("*.part")]


# ---------------------------------------------------------------------- calls go on


def reason(caplog) -> str:
    """Why there are no kernels, after calls that the torch path has answered, saying so once."""
    hierarchy = Hierarchy((40,), 8, 2)
    lengths = (40, 40, 40, *[hierarchy.num_summaries] * 2)
    inputs = [*(torch.randn(1, 1, n, 16) for n in lengths), hierarchy]
    expected = fma_attention(*inputs, backend="torch")
    for _ in range(2):
        assert torch.equal(fma_attention(*inputs), expected)
    found = library.load()
    assert isinstance(found, str) and "\n" not in found
    said = [message for message in caplog.messages if not message.startswith("compiling")]
    assert said == [f"fma_attention runs without the fused kernels: {found}"]
    with pytest.raises(ValueError) as error:
        fma_attention(*inputs, backend="cpp")
    assert str(error.value) == f"backend='cpp': expected another one for fma_attention: {found}"
    return found


NO_OMP = """
if [ "$1" = -O3 ]; then
    echo 'In file included from attention.h:2,' >&2
    echo 'lanes.h:9:10: fatal error: omp.h: No such file or directory' >&2
    echo 'compilation terminated.' >&2
    exit 1
fi
"""


@pytest.mark.parametrize(
    ("compiler_of_machine", "expected"),
    [
        (dict(work="exit 1"), "g++ does not compile the CPU kernels: no message"),
        (dict(work="exit 0"), "g++ does not compile the CPU kernels: no message"),
        (dict(work=NO_OMP), "g++ does not compile the CPU kernels: lanes.h:9:10: fatal error: omp.h: No such file"),
        (dict(work=r"printf '\377\n'; exit 1"), "g++ does not compile the CPU kernels: \N{REPLACEMENT CHARACTER}"),
        (dict(work="kill -9 $$"), "g++ does not compile the CPU kernels"),
        (dict(work="seq 1000 > $target"), "invalid ELF header"),
        (dict(work="exit", version="8.5.0"), "g++ is of version 8.5.0, older than 9"),
        (dict(work="exit", version="?"), "the compiler g++ does not answer"),
        (dict(work="exit", about="clang version 17.0.0"), "no GNU C++ compiler is found"),
        (None, "no GNU C++ compiler is found"),
    ],
    ids=["fails", "idle", "no OpenMP", "binary output", "killed", "no library", "old", "mute", "not GNU", "absent"],
)
def test_no_compiler_breaks_a_call(machine, caplog, compiler_of_machine, expected):
    if compiler_of_machine:
        machine.install(**compiler_of_machine)
    assert expected in reason(caplog)
    assert machine.compilations() <= 1, "one failure is enough"


def test_a_library_without_the_kernels_breaks_no_call(machine, caplog, small_library):
    machine.install(f"sed s/fma_panel/fma_lenap/g '{small_library}' > $target")
    assert reason(caplog).endswith("does not hold the CPU kernels")


def test_a_compiler_that_hangs_is_ended_with_all_that_it_started(machine, caplog, monkeypatch):
    machine.install(f"sleep 30 & echo $! > '{machine.root}/pid'; wait")
    monkeypatch.setattr(compiler, "TIMEOUT", 0.5)
    start = time.monotonic()
    assert reason(caplog) == "g++ has not compiled the CPU kernels after 0.5 s"
    assert time.monotonic() - start < 10
    status = Path(f"/proc/{(machine.root / 'pid').read_text().strip()}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"


def test_processes_that_may_not_be_started_break_no_call(machine, caplog, monkeypatch):
    """As under a filter of system calls."""
    machine.install("exit")

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert "the compiler g++ does not answer" in reason(caplog)


def test_no_folder_at_all_breaks_no_call(working, caplog, monkeypatch):
    monkeypatch.delenv(cache.FOLDER)
    monkeypatch.setenv("HOME", "/proc/self")
    monkeypatch.setattr(tempfile, "tempdir", "/proc/self")
    assert "no folder can keep the compiled CPU kernels (/proc/self/.cache/fma_kernels: No such file" in reason(caplog)


def test_what_nobody_thought_of_breaks_no_call(machine, caplog, monkeypatch):
    def surprise():
        raise KeyError("surprise")

    monkeypatch.setattr(library, "processor_flags", surprise)
    assert reason(caplog) == "KeyError('surprise')"


def test_the_switch(working, caplog, monkeypatch):
    monkeypatch.setenv(library.SWITCH, "0")
    assert reason(caplog) == "FMA_CPU_KERNELS=0 switches the CPU kernels off"
    assert working.compilations() == 0


def test_other_processors_and_systems(working, caplog, monkeypatch):
    monkeypatch.setattr(library, "processor_flags", lambda: "avx sse4_2")
    assert reason(caplog) == "the processor lacks avx2 and fma, which the CPU kernels need"
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert working.reload() == "the CPU kernels are for Linux on x86-64, not Darwin on arm64"


# ---------------------------------------------------------------------- which compiler


@pytest.mark.parametrize(
    ("variable", "asked"),
    [
        ("other++ -DMINE='a b'", "-DMINE=a b -O3"),
        ("clang++", "-O3"),
        ("absent++", "-O3"),
        ('g++ "', "-O3"),
        (" ", "-O3"),
    ],
    ids=["GNU, with flags", "not GNU", "absent", "unbalanced", "empty"],
)
def test_cxx_names_the_compiler_if_it_is_a_gnu_one(working, monkeypatch, variable, asked, small_library):
    working.install(f"cp '{small_library}' $target", name="other++")
    working.install("exit 1", name="clang++", about="clang version 17.0.0")
    monkeypatch.setenv("CXX", variable)
    assert library.load().fma_panel() == 16
    assert working.asked.read_text().startswith(asked)


def test_language_and_temporary_files_are_the_compilers_own(working, small_library, monkeypatch):
    """Words about the version are a part of the name; what a compiler leaves behind is taken away."""
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("TMPDIR", str(working.temporary))
    working.install(f"echo $LC_ALL > '{working.root}/language'; touch $TMPDIR/left; cp '{small_library}' $target")
    assert library.load().fma_panel() == 16
    assert (working.root / "language").read_text() == "C\n"
    assert not [*working.temporary.iterdir()]


# ---------------------------------------------------------------------- threads and processes, with the kernels


def test_a_machine_that_can_have_the_kernels_has_them():
    """Their tests are skipped where there are none, which must not hide an error in the sources."""
    if os.environ.get(library.SWITCH) == "0" or not {*library.processor_flags().split()} >= library.INSTRUCTIONS:
        pytest.skip("not here")
    try:
        compiler.find()
    except RuntimeError as error:
        pytest.skip(str(error))
    assert isinstance(library.load(), ctypes.CDLL), library.load()


def outputs() -> list[torch.Tensor]:
    """Output and gradients of a call of the kernels, so small that PyTorch uses no threads: in forks it would hang."""
    query, key, value = torch.randn(3, 1, 8, 64, 16, generator=torch.Generator().manual_seed(0)).unbind()
    inputs = [x.requires_grad_() for x in (query, key, value)]
    out = fma(*inputs, cell_size=8, rank=2, backend="cpp")
    return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_threads_are_those_of_pytorch(kernels, two_threads):
    expected = outputs()
    assert library.threads() == 2
    torch.set_num_threads(1)
    assert library.threads() == 1
    assert all(map(torch.equal, outputs(), expected))


def test_forked_processes_work_on_one_thread(kernels, two_threads):
    expected = outputs()
    torch.zeros(1 << 20).exp()  # has PyTorch start its threads

    def compare():
        assert library.threads() == 1
        assert all(map(torch.equal, outputs(), expected))

    assert run_forked(compare, processes=2) == [0, 0]


class OfKernels(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return outputs()[0]


def test_workers_of_data_loaders_use_the_kernels(kernels, two_threads):
    expected = outputs()[0]
    loader = torch.utils.data.DataLoader(
        OfKernels(), batch_size=None, num_workers=2, timeout=60, multiprocessing_context="fork"
    )
    assert [torch.equal(x, expected) for x in loader] == [True] * 4


ONE_RUNTIME = """
import os, torch
from fma_kernels import fma
torch.set_num_threads(3)
def state():
    runtimes = {line.split()[-1] for line in open("/proc/self/maps") if "omp" in os.path.basename(line.split()[-1])}
    return len(os.listdir("/proc/self/task")), sorted(runtimes)
torch.randn(300, 300) @ torch.randn(300, 300)
torch.zeros(1 << 20).exp()
before = state()
fma(*torch.randn(3, 1, 4, 1024, 32), cell_size=32, rank=2, backend="cpp")
print(before == state(), *state())
"""


def test_pytorch_and_the_kernels_share_one_openmp_runtime_and_its_threads(kernels):
    done = subprocess.run([sys.executable, "-c", ONE_RUNTIME], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("True"), done.stdout + done.stderr
