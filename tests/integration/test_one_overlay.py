"""There is one overlay of a container's directories, whatever was killed: the one that the container has.

A second one on the same upper directory shows another content, and spoils both. The driver and its mounts are gone, as
those of a managed plugin are that was ended by force, while a container runs on in a mount namespace of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator

import pytest
from lab import Cluster, StartPlugin, mounts_below, views_below
from lab_fixtures import NewId
from plugin_client import PYTHON, PluginProcess, Refused, kill_process, make_tar, wait_until

# What a container does with a view, `root`, before it runs; `place` is a directory of its own.
ALL_OF_IT = """
mount("--bind", root, place)
os.chdir(place)
"""
AS_ITS_ROOT = """
mount("--bind", root, place)
os.chdir(place)
assert c.pivot_root(b".", b".") == 0 and c.umount2(b".", 2) == 0, os.strerror(ctypes.get_errno())
"""
A_PART_OF_IT = """
os.mkdir(f"{root}/part")
mount("--bind", f"{root}/part", place)
os.chdir(place)
"""
NOTHING_BUT_A_WORKING_DIRECTORY = """
os.mkdir(f"{root}/part")
os.chdir(f"{root}/part")
"""
# Of the mounts that it has a copy of, a container keeps none but its own.
CONTAINER = """
import ctypes, os, subprocess, sys
root, place = sys.argv[1:]
c = ctypes.CDLL(None, use_errno=True)
def mount(*words):
    subprocess.run(["mount", *words], check=True)
{script}
if os.path.exists("/proc/self"):
    points = [line.split()[4] for line in open("/proc/self/mountinfo")]
    for point in reversed([point for point in points if point.startswith(f"{{os.path.dirname(root)[:-64]}}")]):
        subprocess.run(["umount", "--lazy", point], check=True)
print("running", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Container:
    """A process that holds a view in a mount namespace of its own, and does what it is told by lines of Python."""

    def __init__(self, root: str, place: str, script: str) -> None:
        os.makedirs(place, exist_ok=True)
        words = [PYTHON, "-c", CONTAINER.format(script=script), root, place]
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._expect(b"running\n")

    def _expect(self, line: bytes) -> None:
        assert self.process.stdout
        said = self.process.stdout.readline()
        assert said == line, said

    def do(self, line: str) -> None:
        """Let it do something where it is."""
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()
        self._expect(b"done\n")

    def writes(self, name: str, text: str) -> None:
        """Let it write a file."""
        self.do(f"open({name!r}, 'w').write({text!r})")

    def reads(self, name: str) -> str:
        """What a file holds, as the container sees it."""
        with open(f"/proc/{self.process.pid}/cwd/{name}", encoding="ascii") as source:
            return source.read()

    def lists(self) -> list[str]:
        """The names in its working directory."""
        return sorted(os.listdir(f"/proc/{self.process.pid}/cwd"))

    def end(self) -> None:
        """Its process exits."""
        kill_process(self.process)
        self.process.communicate()


RunContainer = Callable[[str, str], Container]


@pytest.fixture
def run_container(session_directory: str, start_plugin: StartPlugin) -> Iterator[RunContainer]:
    """Start a container on a root; it is ended at the end of the test, before the plugin."""
    running: list[Container] = []

    def run(root: str, script: str) -> Container:
        running.append(Container(root, os.path.join(session_directory, f"root-{len(running)}"), script))
        return running[-1]

    yield run
    for container in running:
        container.end()


def new_container(plugin: PluginProcess, new_id: NewId) -> str:
    """What docker create does."""
    client = plugin.client
    image, layer = client.create(new_id()), new_id()
    client.apply_diff(image, make_tar({"of the image": "x"}))
    client.create(f"{layer}-init", image, writable=True)
    client.write(f"{layer}-init", "hosts", "")
    return client.create(layer, f"{layer}-init", writable=True)


def end_by_force(plugin: PluginProcess, cluster: Cluster) -> None:
    """The driver is killed, and its mount namespace goes with it."""
    plugin.kill()
    for point in reversed(mounts_below(plugin.home)):
        cluster.run(["umount", point])


def check_one(plugin: PluginProcess, layer: str, container: Container) -> None:
    """Each sees at once what the other one writes, takes away and puts in its place."""
    root = plugin.client.get(layer)
    # What one has looked for in vain it would go on not to see, if the other one made it in an overlay of its own.
    for name in ("ours", "theirs"):
        if name in container.lists():
            container.do(f"os.unlink({name!r})")
    assert not os.path.exists(os.path.join(root, "theirs"))
    container.do("assert not os.path.exists('ours')")
    container.writes("theirs", "theirs")
    container.writes("both", "1")
    with open(os.path.join(root, "theirs"), encoding="ascii") as source:
        assert source.read() == "theirs"
    with open(os.path.join(root, "ours"), "w", encoding="ascii") as target:
        target.write("ours")
    os.unlink(os.path.join(root, "both"))
    assert container.reads("ours") == "ours"
    assert container.lists() == sorted(os.listdir(root))
    assert "both" not in container.lists()
    plugin.client.put(layer)


@pytest.mark.parametrize("script", [ALL_OF_IT, AS_ITS_ROOT], ids=["in it", "as its root"])
@pytest.mark.parametrize("docker", ["goes on", "starts anew"])
def test_a_container_that_outlived_the_driver(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId, run_container: RunContainer, script: str, docker: str
) -> None:
    """Its own overlay is shown again; Put and Remove do what they do for each running container."""
    client = plugin.client
    layer = new_container(plugin, new_id)
    root = client.get(layer)
    container = run_container(root, script)
    container.writes("before", "before")
    end_by_force(plugin, cluster)
    plugin.start()
    if docker == "starts anew":
        plugin.init()
    assert views_below(plugin.home) == [root]
    assert client.read(layer, "before") == b"before"
    check_one(plugin, layer, container)
    assert {"/before": 1, "/ours": 1, "/theirs": 1}.items() <= client.changes(layer, f"{layer}-init").items()
    # Docker puts what it takes for stopped; it is not while its process lives.
    client.put(layer)
    check_one(plugin, layer, container)
    with pytest.raises(Refused) as caught:
        client.remove(layer)
    pid = container.process.pid
    assert re.search(rf"layer {layer}: .* cannot be un.*: process {pid} \(.*\) has it mounted at ", caught.value.text)
    assert "\n" not in caught.value.text
    assert container.reads("before") == "before"
    container.end()
    client.put(layer)
    assert views_below(plugin.home) == []
    assert client.read(layer, "ours") == b"ours"
    client.remove(layer)
    wait_until(lambda: f"docker_image_{layer}" not in cluster.images(), "its image is gone")


@pytest.mark.parametrize("script", [A_PART_OF_IT, NOTHING_BUT_A_WORKING_DIRECTORY], ids=["a part", "no mount at all"])
@pytest.mark.parametrize("docker", ["goes on", "starts anew"])
def test_what_cannot_be_shown_again_is_not_mounted_a_second_time(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId, run_container: RunContainer, script: str, docker: str
) -> None:
    """Get is refused in a line that names who has it, as far as that is seen. Once he has gone, all is well."""
    client = plugin.client
    layer, other = new_container(plugin, new_id), new_container(plugin, new_id)
    container = run_container(client.get(layer), script)
    end_by_force(plugin, cluster)
    plugin.start()
    if docker == "starts anew":
        plugin.init()
    holder = rf"process {container.process.pid} \(.*\)" if script == A_PART_OF_IT else "a process"
    calls: list[Callable[[], object]] = [
        lambda: client.get(layer),
        lambda: client.changes(layer, f"{layer}-init"),
        lambda: client.create(new_id(), layer),
    ]
    if script == A_PART_OF_IT:
        # With a device that nobody is seen to have, the kernel may be at work: Docker need not wait for that.
        calls.append(lambda: client.remove(layer))
    for call in calls:
        with pytest.raises(Refused) as caught:
            call()
        assert re.search(f"layer {layer}: .*: {holder} has ", caught.value.text), caught.value.text
        assert "\n" not in caught.value.text
    assert [point for point in mounts_below(plugin.home) if f"/{layer}/" in point] == []
    assert client.listing(other) == ["hosts", "of the image"]
    client.put(layer)
    container.writes("late", "late")
    container.end()
    assert client.read(layer, "part/late") == b"late"
    assert client.changes(layer, f"{layer}-init") == {"/part": 1, "/part/late": 1}


@pytest.mark.parametrize("script", [ALL_OF_IT, A_PART_OF_IT], ids=["all", "a part"])
def test_a_put_under_a_running_container(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId, run_container: RunContainer, script: str
) -> None:
    """Whoever ended it without its processes, such as one who killed its shim, may start it again."""
    client = plugin.client
    layer = new_container(plugin, new_id)
    container = run_container(client.get(layer), script)
    client.put(layer)
    container.writes("before", "before")
    place = "part/before" if script == A_PART_OF_IT else "before"
    try:
        root = client.get(layer)
    except Refused as error:
        assert re.search(rf"layer {layer}: .*process {container.process.pid} \(.*\) has it", error.text), error.text
        assert views_below(plugin.home) == []
    else:
        assert script == ALL_OF_IT, "of a part the whole cannot be had"
        assert sorted(os.listdir(root)) == container.lists()
        check_one(plugin, layer, container)
        client.put(layer)
    container.end()
    assert client.read(layer, place) == b"before"


def test_two_that_outlived_the_driver_on_one_image(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId, run_container: RunContainer
) -> None:
    """What they share is mapped as before, and is there for a third one."""
    client = plugin.client
    first = new_container(plugin, new_id)
    image = client.created[0]
    second, third = new_id(), new_id()
    for layer in (second, third):
        client.create(f"{layer}-init", image, writable=True)
        client.create(layer, f"{layer}-init", writable=True)
    containers = {layer: run_container(client.get(layer), ALL_OF_IT) for layer in (first, second)}
    mapped = sorted(f"docker_image_{layer}" for layer in (first, second, image))
    end_by_force(plugin, cluster)
    plugin.start()
    assert client.read(third, "of the image") == b"x"
    wait_until(lambda: cluster.mapped() == mapped, "only what the two need is mapped")
    for layer, container in containers.items():
        check_one(plugin, layer, container)
        container.end()
        client.put(layer)
    assert client.read(third, "of the image") == b"x"
    cluster.wait_unmapped()
    assert mounts_below(plugin.home) == []
