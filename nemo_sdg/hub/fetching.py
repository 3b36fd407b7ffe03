"""The files of a listing are brought, several at once, and every byte of them is hashed before they count."""

from __future__ import annotations

import contextlib
import logging
import queue
import shutil
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from nemo_sdg.console import Activity, Console, size_text
from nemo_sdg.errors import HubError
from nemo_sdg.hub.listing import RemoteFile
from nemo_sdg.hub.places import Place
from nemo_sdg.hub.refusals import passing, refusal

WORKERS = 8
"""Files in flight: enough to fill a line of 10 Gbit/s, few enough for a parallel file system."""
GRACE_S = 2.0
"""Seconds that the other files get to come to an end after one has failed."""
TRIES = 3
"""Attempts at a file in a row that bring no byte further."""


def fetch(place: Place, console: Console, tell: Callable[[str], None] = lambda text: None) -> dict[str, str]:
    """Brings every file of the place's listing, and returns their SHA-256 by name.

    A file that is there already is hashed and, if it is right, not asked for again.

    Args:
        tell: is told every second how far it is, for those who wait.
    Raises:
        HubError: too little room on the disk, which is looked at first; a refusal of the hub; wrong bytes.
    """
    check_room(place)
    listing = place.listing
    work = _Work(place)
    unit, name = (10**6, "MB") if listing.size >= 10**7 else (10**3, "kB")
    with quiet(), console.progress(f"downloading {listing.address.label}, {name}", listing.size // unit) as activity:
        # Daemons: Ctrl-C, or one file that fails, must not wait for others that take hours.
        threads = [threading.Thread(target=work.run, name="download", daemon=True) for _ in range(WORKERS)]
        for thread in threads:
            thread.start()
        try:
            _watch(work, activity, unit, tell)
        finally:
            work.stop.set()
            end = time.monotonic() + GRACE_S
            for thread in threads:
                thread.join(max(0, end - time.monotonic()))
    return work.sums


def check_room(place: Place) -> None:
    """Raises HubError if the disk cannot hold what is still missing."""
    needed = place.missing_bytes()
    root = next(folder for folder in (place.root, *place.root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(root).free
    if needed > free:
        raise HubError(
            "the disk has too little room", where=root, found=f"{size_text(free)} free",
            expected=f"{size_text(needed)} for {place.listing.address.label}",
            way_out="make room, or choose another folder or HF_HOME",
        )  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The bars and warnings of huggingface_hub stay silent: the console says what there is to say.

    After a failure they stay so, for a thread that was left behind may still want to speak.
    """
    logger, were_off = logging.getLogger("huggingface_hub"), are_progress_bars_disabled()
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        disable_progress_bars()
        yield
        logger.setLevel(level)
        if not were_off:
            enable_progress_bars()


class _Work:
    """What the threads share."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.left = deque(sorted(place.listing.files, key=lambda file: -file.size))  # large ones last would wait alone
        self.active: dict[str, RemoteFile] = {}
        self.sums: dict[str, str] = {}
        self.results: queue.SimpleQueue = queue.SimpleQueue()
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                file = self.left.popleft()
            except IndexError:
                return
            self.active[file.name] = file
            try:
                self.sums[file.name] = _bring(self.place, file)
                self.results.put(file)
            except BaseException as error:
                self.results.put((file, error))
                return
            finally:
                del self.active[file.name]


def _watch(work: _Work, activity: Activity, unit: int, tell: Callable[[str], None]) -> None:
    """Counts until all files are there. Raises HubError for the first one that fails."""
    files = work.place.listing.files
    done = ready = 0
    told = time.monotonic()
    while ready < len(files):
        with contextlib.suppress(queue.Empty):
            result = work.results.get(timeout=0.25)
            if isinstance(result, tuple):
                file, error = result
                address = work.place.listing.address
                raise refusal(error, address, f"{address.label}/{file.name}") from error
            done, ready = done + result.size, ready + 1
        now = done + sum(min(file.size, work.place.present(file)) for file in list(work.active.values()))
        activity.done, activity.note = now // unit, f"{ready} of {len(files)} files"
        if time.monotonic() - told >= 1:
            told = time.monotonic()
            tell(f"{size_text(now)} of {size_text(work.place.listing.size)}")


def _bring(place: Place, file: RemoteFile) -> str:
    """The SHA-256 of a file that is whole. Raises HubError when its bytes are not those that were announced."""
    path = place.path(file)
    found = file.hashed(path)
    if found is not None:
        return found
    if path.exists():  # of an attempt that was cut off, or damaged since
        place.forget(file)
    _download(place, file)
    found = file.hashed(path)
    if found is None:
        place.forget(file)
        raise HubError(
            "the bytes are not those that the hub announces", where=f"{place.listing.address.label}/{file.name}",
            expected=f"{file.size} bytes of {'SHA-256' if file.sha256 else 'git id'} {file.etag}",
            way_out="what came was deleted; the same command asks for the file again",
        )  # fmt: skip
    return found


def _download(place: Place, file: RemoteFile) -> None:
    """Downloads, and goes on where the line broke, as long as each attempt brings something."""
    fruitless = 0
    while True:
        before = place.present(file)
        if before > file.size:
            place.forget(file)
            before = 0
        try:
            place.get(file)
            return
        except Exception as error:
            if not passing(error):
                raise
            fruitless = 0 if place.present(file) > before else fruitless + 1
            if fruitless == TRIES:
                raise
            time.sleep(2**fruitless / 2)
