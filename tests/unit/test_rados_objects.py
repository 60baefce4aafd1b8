"""What `rados` says and does not say: its exit status is 1 whatever went wrong. Its words were seen on 16.2.15."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from unit.fakes import FakePool, failed

import rbdcli
from cluster import rados_objects
from host import command

NO_OBJECT = failed(rbdcli.RbdError, 1, "error stat-ing pool/x: (2) No such file or directory")
NO_RIGHT = failed(rbdcli.RbdError, 1, "error removing pool>x: (1) Operation not permitted")
NO_OVERWRITE = failed(rbdcli.RbdError, 1, "error truncating pool/x: (95) Operation not supported")
SICK = failed(rbdcli.RbdError, 1, "error: (5) Input/output error")
SILENT = command.CommandTimeout(("rados",), None, "no answer within 4 s")


class Pool(FakePool):
    """A pool in which each command says what the test wants."""

    def __init__(self, says: Callable[..., str]) -> None:
        super().__init__()
        self.says = says

    def rados(self, *words: str) -> str:
        return self.says(*words)

    def rados_of_pool(self, *words: str) -> str:
        return self.says(*words)

    def rados_of_cluster(self, *words: str) -> str:
        return self.says(*words)


def saying(said: str | Exception) -> rbdcli.Pool:
    """A pool in which every command says this, or ends with this."""

    def says(*words: str) -> str:
        if isinstance(said, Exception):
            raise said
        return said

    return Pool(says).as_pool()


@pytest.mark.parametrize(("said", "may"), [("", True), (NO_OBJECT, True), (NO_RIGHT, False)])
def test_who_may_write(said: str | Exception, may: bool) -> None:
    assert rados_objects.may_write(saying(said)) is may


def test_who_may_write_to_a_sick_pool_is_not_known() -> None:
    with pytest.raises(rbdcli.RbdError, match="Input/output error"):
        rados_objects.may_write(saying(SICK))


@pytest.mark.parametrize(("said", "can"), [("", True), (NO_OBJECT, True), (NO_OVERWRITE, False), (SILENT, True)])
def test_where_objects_can_be_changed(said: str | Exception, can: bool) -> None:
    """A full pool lets it wait, which says nothing."""
    assert rados_objects.can_overwrite(saying(said)) is can


@pytest.mark.parametrize(("said", "made"), [("", True), (NO_OBJECT, False)])
def test_a_pool_that_was_made_for_images(said: str | Exception, made: bool) -> None:
    assert rados_objects.is_made_for_images(saying(said)) is made


def test_a_pool_that_cannot_be_used_is_not_called_unmade() -> None:
    with pytest.raises(rbdcli.RbdError, match="Input/output error"):
        rados_objects.is_made_for_images(saying(SICK))


def test_of_an_object_that_is_not_there() -> None:
    pool = saying(NO_OBJECT)
    assert rados_objects.signed(pool, "x") == []
    assert rados_objects.watching(pool, "x") == []
    assert rados_objects.holders(pool, "x", "lock") == []
    assert rados_objects.metadata(pool, "id", "key") is None
    rados_objects.unsign(pool, "x", "key")


@pytest.mark.parametrize("ask", [rados_objects.signed, rados_objects.watching])
def test_what_a_sick_pool_does_not_tell_is_not_nothing(ask: Callable[[rbdcli.Pool, str], object]) -> None:
    with pytest.raises(rbdcli.RbdError, match="Input/output error"):
        ask(saying(SICK), "x")


def test_who_watches() -> None:
    said = "watcher=10.0.0.1:0/5 client.4 cookie=1\nwatcher=10.0.0.2:0/6 client.5 cookie=2\n"
    assert rados_objects.watching(saying(said), "x") == ["10.0.0.1:0/5", "10.0.0.2:0/6"]


def test_how_much_a_pool_stores() -> None:
    said = '{"pools": [{"name": "a", "size_bytes": 1}, {"name": "b", "size_bytes": "22"}]}'
    assert rados_objects.used(saying(said), "b") == 22
    with pytest.raises(LookupError):
        rados_objects.used(saying(said), "c")


def test_a_value_whose_rows_repeat() -> None:
    """A row that says the same as the one before it is left out, with a "*" in the place of all such."""
    rows = [
        "metadata_key",
        "value (70 bytes) :",
        "00000000  61 61 61 61 61 61 61 61  61 61 61 61 61 61 61 61  |aaaaaaaaaaaaaaaa|",
        "*",
        "00000040  62 62 62 62 62 62                                 |bbbbbb|",
        "00000046",
        "",
    ]
    assert rados_objects.metadata(saying("\n".join(rows)), "id", "key") == 64 * "a" + 6 * "b"


def test_objects_that_are_not_there_keep_none_from_being_deleted() -> None:
    left = {"a", "c", "d"}

    def rm(*words: str) -> str:
        for name in words[2:]:
            if name not in left:
                raise failed(rbdcli.RbdError, 1, f"error removing pool>{name}: (2) No such file or directory")
            left.discard(name)
        return ""

    rados_objects.delete(Pool(rm).as_pool(), ["a", "b", "c", "gone", "d"] * 3)
    assert left == set()
    with pytest.raises(rbdcli.RbdError, match="Input/output error"):
        rados_objects.delete(saying(SICK), ["a"])


def test_a_lock_is_one_holder_s_and_that_of_a_former_life_of_it_is_broken() -> None:
    pool = FakePool().as_pool()
    assert rados_objects.lock(pool, "x", "name", "me", 5)
    assert not rados_objects.lock(pool, "x", "name", "another", 5)
    assert rados_objects.holders(pool, "x", "name") == ["me"]
    assert not rados_objects.lock(pool, "x", "name", "me", 5), "it takes the next try"
    assert rados_objects.lock(pool, "x", "name", "me", 5)
    rados_objects.unlock(pool, "x", "name")
    assert rados_objects.holders(pool, "x", "name") == []


def test_a_lock_for_good_is_taken_from_whoever_has_it() -> None:
    pool = FakePool().as_pool()
    rados_objects.hold(pool, "x", "name", "first")
    rados_objects.hold(pool, "x", "name", "second")
    rados_objects.hold(pool, "x", "name", "second")
    assert rados_objects.holders(pool, "x", "name") == ["second"]


# What 16.2.15 prints of the header of an image, but for keys that do not matter here.
HEADER = """create_timestamp
value (8 bytes) :
00000000  96 02 d2 49 00 65 cd 1d                           |...I.e..|
00000008

features
value (8 bytes) :
00000000  3d 00 00 00 00 00 00 00                           |=.......|
00000008

metadata_docker_graph_driver.layer
value (19 bytes) :
00000000  7b 22 6f 77 6e 65 72 22  3a 20 22 61 20 2f 68 22  |{"owner": "a /h"|
00000010  2c 20 7d                                          |, }|
00000013

"""


def test_what_stands_in_a_header() -> None:
    header = rados_objects.header(saying(HEADER), "id1")
    assert header
    assert dict(header.metadata) == {"docker_graph_driver.layer": '{"owner": "a /h", }'}
    assert header.created == pytest.approx(0x49D20296 + 0.5)


def test_an_image_that_has_gone_has_no_header_and_nobody_has_it_open() -> None:
    assert rados_objects.header(saying(NO_OBJECT), "id1") is None
    assert rados_objects.opened(saying(NO_OBJECT), "id1") == []


def test_a_header_that_tells_no_time() -> None:
    header = rados_objects.header(saying(HEADER.replace("create_timestamp", "access_timestamp")), "id1")
    assert header
    assert header.created is None
