"""Files that are made once and kept for later processes, in a folder that nobody else writes to."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Environment variable: the folder, instead of ``fma_kernels`` in the user's cache folder.
FOLDER = "FMA_CACHE_DIR"
#: Bytes that a file is sure to fit in.
RESERVE = 1 << 20
#: Seconds to wait for another process that makes the same file, before this one makes it, too.
PATIENCE = 150
DIGEST = hashlib.sha256().digest_size

_logger = logging.getLogger("fma_kernels")


def keep(name: str, make: Callable[[Path], bytes]) -> Path:
    """A file with the bytes that ``make`` returns, and their digest behind them.

    Of processes that want the file at the same time one makes it, and the others wait. A file that is not whole is
    made again. Where the cache folder cannot be written to, a folder among the temporary files takes its place.

    Args:
        name: name of the file; it stands for its content.
        make: takes the path of the file. It is called if no folder has the file.

    Returns:
        Path of the file.

    Raises:
        OSError: no folder can be written to; or what ``make`` raises.
    """
    reasons = []
    for candidate in _candidates():
        try:
            path = _safe(candidate) / name
            if not _is_whole(path):  # a folder that has the file need not be writable
                _make_once(path, make)
            return path
        except OSError as error:
            reasons.append(f"{candidate}: {error.strerror or error}")
            if os.environ.get(FOLDER) and len(reasons) == 1:
                _logger.warning("%s is not used: %s", FOLDER, reasons[0])
    raise OSError(f"no folder can keep the compiled CPU kernels ({'; '.join(reasons)})")


def _candidates() -> Iterator[Path]:
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if os.environ.get(FOLDER):
        yield Path(os.environ[FOLDER]).expanduser()
    elif home.is_absolute():  # an account without a home has none
        yield home / "fma_kernels"
    with suppress(OSError):
        yield Path(tempfile.gettempdir(), f"fma_kernels-{os.geteuid()}")


def _safe(folder: Path) -> Path:
    """The folder itself, made if there is none: the user's or the system's, and writable by nobody else."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = folder.resolve()  # others may turn a link round
    about = folder.stat()
    if about.st_uid not in (0, os.geteuid()) or about.st_mode & 0o022:
        raise PermissionError(0, "others can write to it")
    return folder


def _is_whole(path: Path) -> bool:
    """Whether a file is what was written: loading a part of a library could end the process."""
    with suppress(OSError):
        data = path.read_bytes()
        return len(data) > DIGEST and hashlib.sha256(data[:-DIGEST]).digest() == data[-DIGEST:]
    return False


def _make_once(path: Path, make: Callable[[Path], bytes]) -> None:
    with _one_at_a_time(path.with_suffix(".lock")):
        if _is_whole(path):
            return
        part, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}-", suffix=".part")
        try:
            with open(part, "wb") as file:
                file.write(bytes(RESERVE))  # a full disk shows before the work is done
                file.flush()
                data = make(path)
                file.seek(0)
                file.write(data + hashlib.sha256(data).digest())
                file.truncate()
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock, which ends with the process. Where locks fail or one never ends, processes do the work each."""
    with open(path, "a") as file:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # some network file systems have no locks
                break
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)  # a child that was forked meanwhile may have the file open, too
