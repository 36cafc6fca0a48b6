"""Thread that writes states to their folder and removes files, one after another."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from exlstm.serve.state_files import StateFiles
from exlstm.serve.state_records import StateEntry
from exlstm.serve.state_room import StateRoom


class StateWriter:
    """Work on the disk, in order: a file is removed after it was written. failed: writes that were not done.

    files: None does nothing.
    """

    def __init__(self, files: StateFiles | None) -> None:
        self.files, self.failed = files, 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="exlstm-states")

    def write_soon(self, room: StateRoom, entry: StateEntry) -> None:
        """Writes an entry, unless it ends meanwhile. The lock of the room is held."""
        if self.files is not None:
            entry.writing = True
            self._thread.submit(self._write, self.files, room, entry)

    def discard(self, state: str) -> None:
        """Removes a file, after what is to be written before."""
        if self.files is not None:
            self._thread.submit(self._remove, self.files, state)

    def settled(self) -> None:
        """Waits until all that was asked for is done."""
        for _ in range(2):  # what is written may evict files, which are removed after it
            self._thread.submit(int).result()

    def close(self) -> None:
        """Ends the thread, after its work."""
        self._thread.shutdown()

    def _write(self, files: StateFiles, room: StateRoom, entry: StateEntry) -> None:
        size, written, states = 0, False, room.owners[entry.about.owner]
        snapshot = entry.snapshot
        try:
            with suppress(OSError, ValueError):
                if snapshot is not None:
                    data = files.packed(entry.about, snapshot)
                    with room.changed:
                        room.make_room(states, "disk", len(data))
                        size = len(data)
                        room.charge(states, "disk", size)
                    files.folder.write(entry.about.id, data)
                written = True
        finally:  # a call that waits for this entry goes on, whatever happened
            self._end(room, entry, size, written)

    def _end(self, room: StateRoom, entry: StateEntry, size: int, written: bool) -> None:
        with room.changed:
            entry.writing = False
            self.failed += not written
            if written and not entry.gone:
                entry.file_bytes = size
            else:
                room.charge(room.owners[entry.about.owner], "disk", -size)
            room.changed.notify_all()

    def _remove(self, files: StateFiles, state: str) -> None:
        with suppress(OSError):
            files.folder.delete(state)
