"""What a power failure can leave on the disk, from the record of a run; the weakest POSIX.

An fsync of a file makes its data, size and mode certain; an fsync of a directory makes its names
certain (created, linked, renamed, removed). Any part of everything else may be there: kept,
dropped, reordered, torn, or a size without its data. An fsync of a file does not keep its name,
although on most file systems it does.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

_SECTOR = 512
Fate = Literal["lost", "kept", "names only", "data only", "some"]
FATES: tuple[Fate, ...] = ("lost", "kept", "names only", "data only")


@dataclass(frozen=True)
class Call:
    """One call that changed the disk; `inode` is the kernel's, which may use it again."""

    op: str
    inode: int
    number: int
    runtime: str
    path: str
    other: str
    data: bytes


def read_record(file: Path) -> list[Call]:
    """Parse what record.c wrote; the last call may be cut if the program was killed."""
    raw, at, calls = file.read_bytes(), 0, list[Call]()
    while at < len(raw):
        end = raw.index(b"\n", at)
        op, inode, number, size, runtime, path, other = raw[at:end].decode().split("\t")
        at = end + 1 + int(size)
        calls.append(Call(op, int(inode), int(number), runtime, path, other, raw[end + 1 : at]))
    return calls


@dataclass(frozen=True)
class Change:
    """A change of a file, or of the names in a directory, that is not certain yet."""

    op: str
    number: int = 0
    data: bytes = b""
    name: str = ""
    new: str = ""
    node: int = 0


@dataclass
class Node:
    """A file or directory as it certainly is on the disk, and what may be added."""

    is_directory: bool
    mode: int
    data: bytes = b""
    names: dict[str, int] = field(default_factory=dict)
    unsure: list[Change] = field(default_factory=list)

    def sync(self) -> None:
        for change in self.unsure:
            self.apply(change)
        self.unsure = []

    def apply(self, change: Change) -> None:
        match change.op:
            case "write":
                whole = bytearray(self.data)
                whole.extend(bytes(max(0, change.number - len(whole))))
                whole[change.number : change.number + len(change.data)] = change.data
                self.data = bytes(whole)
            case "truncate":
                self.data = self.data[: change.number].ljust(change.number, b"\0")
            case "mode":
                self.mode = change.number
            case "enter":
                self.names[change.name] = change.node
            case "unlink":
                self.names.pop(change.name, None)
            case "rename":
                self.names.pop(change.name, None)
                self.names[change.new] = change.node

    def after(self, fate: Fate, chance: random.Random) -> "Node":
        """Return the node as it is when the power is back."""
        if not self.unsure or fate == "lost":
            return self
        found = Node(self.is_directory, self.mode, self.data, dict(self.names))
        for change in self._survivors(fate, chance):
            found.apply(change)
        return found

    def _survivors(self, fate: Fate, chance: random.Random) -> Iterator[Change]:
        match fate:
            case "kept":
                yield from self.unsure
            case "names only" | "data only":
                if self.is_directory == (fate == "names only"):
                    yield from self.unsure
            case "some":
                yield from _some(self.unsure, chance)


def _some(changes: list[Change], chance: random.Random) -> Iterator[Change]:
    """Keep a beginning, or any part, in order or (for data) in another; tear some writes."""
    if chance.random() < 0.3:
        kept = changes[: chance.randrange(len(changes) + 1)]
    else:
        share = chance.random()
        kept = [one for one in changes if chance.random() < share]
    if kept and kept[0].op == "write" and chance.random() < 0.3:
        kept = chance.sample(kept, len(kept))
    for one in kept:
        yield _torn(one, chance) if one.op == "write" and chance.random() < 0.25 else one


def _torn(change: Change, chance: random.Random) -> Change:
    """Keep some sectors of a write, or a number of its bytes, or only its length."""
    size = len(change.data)
    match chance.randrange(3):
        case 0:
            return Change("write", change.number, change.data[: chance.randrange(size + 1)])
        case 1:
            sectors = [change.data[at : at + _SECTOR] for at in range(0, size, _SECTOR)]
            kept = [one if chance.random() < 0.5 else bytes(len(one)) for one in sectors]
            return Change("write", change.number, b"".join(kept))
        case _:
            return Change("write", change.number, bytes(size))


@dataclass(frozen=True)
class Found:
    """What is there when the power is back: by path, below the root; mode and content."""

    directories: dict[str, int]
    files: dict[str, tuple[int, bytes]]

    def materialise(self, root: Path) -> None:
        for path, mode in sorted(self.directories.items()):
            (root / path).mkdir(exist_ok=True)
            (root / path).chmod(mode)
        for path, (mode, data) in self.files.items():
            (root / path).write_bytes(data)
            (root / path).chmod(mode)


class Disk:
    """The disk below `root` as the recorded calls change it, one after the other."""

    def __init__(self, root: str, before: Found | None = None) -> None:
        self._root = root
        self._numbers = itertools.count(1)
        self._nodes: dict[int, Node] = {0: Node(is_directory=True, mode=0o755)}
        self._now: dict[str, int] = {"": 0}  # as the program sees it, by path
        self._by_inode: dict[int, int] = {}
        for path, mode in sorted(before.directories.items()) if before else ():
            self._make("mkdir", path, mode)
        for path, (mode, data) in before.files.items() if before else ():
            self._make("create", path, mode).data = data
        for node in self._nodes.values():
            node.sync()

    def goes_on_in(self, root: str) -> None:
        """Let another run continue with this disk, including uncertain parts; its path is another."""
        self._root = root
        self._by_inode = {}

    def _relative(self, path: str) -> str:
        return path.removeprefix(self._root).strip("/")

    def _parent(self, path: str) -> tuple[Node, str]:
        directory, _, name = path.rpartition("/")
        return self._nodes[self._now[directory]], name

    def _make(self, op: str, path: str, mode: int) -> Node:
        parent, name = self._parent(path)
        number = next(self._numbers)
        self._now[path] = number
        self._nodes[number] = node = Node(is_directory=op == "mkdir", mode=mode)
        parent.unsure.append(Change("enter", name=name, node=number))
        return node

    def apply(self, call: Call, *, synced: bool = True) -> None:
        """Apply one call; with `synced` False, it is a forgotten fsync."""
        path, other = self._relative(call.path), self._relative(call.other)
        match call.op:
            case "create" | "mkdir":
                self._make(call.op, path, call.number)
                self._by_inode[call.inode] = self._now[path]
            case "link":
                parent, name = self._parent(other)
                self._now[other] = self._now[path]
                parent.unsure.append(Change("enter", name=name, node=self._now[path]))
            case "unlink":
                parent, name = self._parent(path)
                del self._now[path]
                parent.unsure.append(Change("unlink", name=name))
            case "rename":
                self._rename(path, other)
            case "stored":
                pass  # the program reports something and changes nothing
            case "sync":
                if synced:
                    self._node(call, path).sync()
            case op:
                change = Change(op, call.number, call.data)
                self._node(call, path).unsure.append(change)

    def _rename(self, path: str, other: str) -> None:
        parent, name = self._parent(path)
        target, new = self._parent(other)
        assert parent is target, "the program moves nothing from one directory to another"
        node = self._now[other] = self._now.pop(path)
        parent.unsure.append(Change("rename", name=name, new=new, node=node))

    def _node(self, call: Call, path: str) -> Node:
        number = self._by_inode.get(call.inode)
        if number is None:  # it was there before the recording began
            number = self._by_inode[call.inode] = self._now[path]
        return self._nodes[number]

    def unsure(self) -> bool:
        return any(node.unsure for node in self._nodes.values())

    def after_power_loss(self, fate: Fate, chance: random.Random) -> Found:
        """Return what is there when the power is back; `some` depends on `chance`."""
        found = Found({}, {})

        @cache  # a file has one fate under all its names
        def end(number: int) -> Node:
            return self._nodes[number].after(fate, chance)

        self._look(0, "", end, found)
        return found

    def _look(self, number: int, at: str, end: Callable[[int], Node], found: Found) -> None:
        for name, child in end(number).names.items():
            node, path = end(child), f"{at}{name}"
            if node.is_directory:
                found.directories[path] = node.mode
                self._look(child, f"{path}/", end, found)
            else:
                found.files[path] = (node.mode, node.data)


@dataclass(frozen=True)
class Crash:
    """The power failed after `after` calls."""

    after: int
    fate: Fate
    found: Found


def crashes(
    calls: list[Call],
    disk: Disk,
    *,
    seed: int,
    samples: int,
    forgotten: Collection[str] = (),
    see: Callable[[Call], None] = lambda _: None,
) -> Iterator[Crash]:
    """Yield distinct crash states, in the order of the run: first the plain fates, then random ones.

    An fsync whose place is in `forgotten` does nothing; before the first of them nothing differs, and
    nothing is yielded. `see` gets each call before its crashes.
    """
    seen: set[int] = set()
    differs = not forgotten
    counts = defaultdict[str, int](int)
    for after, call in enumerate(calls, start=1):
        disk.apply(call, synced=call.runtime not in forgotten)
        see(call)
        counts[call.op] += 1
        differs = differs or call.runtime in forgotten
        if not differs:
            continue
        some: list[Fate] = ["some"] * samples
        fates: list[Fate] = [*FATES, *some] if disk.unsure() else ["lost"]
        for nth, fate in enumerate(fates):
            found = disk.after_power_loss(fate, random.Random(f"{seed}/{after}/{nth}"))
            # What was promised by then is part of the state: see `Promises`.
            names = (frozenset(found.directories.items()), frozenset(found.files.items()))
            key = hash((*names, counts["create"], counts["unlink"]))
            if key not in seen:
                seen.add(key)
                yield Crash(after, fate, found)
