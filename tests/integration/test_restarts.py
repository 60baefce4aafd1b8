"""What is left, and what goes on, when dockerd or the plugin ended without a word."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from lab import Cluster, StartPlugin, mounts_below, views_below
from plugin_client import PluginProcess, Refused, kill_process, make_tar, process_state, wait_until

NewId = Callable[[], str]


class Container:
    """Plays a running container: a mount namespace of its own in which a layer is mounted, as runc leaves it."""

    def __init__(self, root: str, place: str) -> None:
        os.makedirs(place, exist_ok=True)
        script = 'mount --bind "$1" "$2" && cd "$2" && echo running && exec sleep 600'
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "-", root, place],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == b"running\n"
        self.root = f"/proc/{self.process.pid}/cwd"

    def write(self, name: str, content: str) -> None:
        """The container writes a file."""
        with open(os.path.join(self.root, name), "w", encoding="ascii") as target:
            target.write(content)

    def read(self, name: str) -> str:
        """The container reads a file."""
        with open(os.path.join(self.root, name), encoding="ascii") as source:
            return source.read()

    def end(self) -> None:
        """The container's process exits."""
        kill_process(self.process)
        if self.process.stdout:
            self.process.stdout.close()


RunContainer = Callable[[str], Container]


@pytest.fixture
def run_container(session_directory: str, start_plugin: StartPlugin) -> Iterator[RunContainer]:
    """Start a container on a root; it is ended at the end of the test, before the plugin."""
    running: list[Container] = []

    def run(root: str) -> Container:
        running.append(Container(root, os.path.join(session_directory, f"container-{len(running)}")))
        return running[-1]

    yield run
    for container in running:
        container.end()


def new_container(plugin: PluginProcess, layer: str) -> str:
    """What docker create does; the image layer has one file."""
    client = plugin.client
    image = client.create(layer[::-1])
    client.apply_diff(image, make_tar({"of the image": "x"}))
    client.create(layer + "-init", image, writable=True)
    client.create(layer, layer + "-init", writable=True)
    return layer


def images_of(layer: str) -> list[str]:
    """The images that are mapped while the layer of `new_container` is mounted."""
    return sorted((f"docker_image_{layer}", f"docker_image_{layer[::-1]}"))


def unmount_all(plugin: PluginProcess, cluster: Cluster) -> None:
    """The end of the plugin's mount namespace; the directories are left."""
    for point in reversed(mounts_below(plugin.home)):
        cluster.run(["umount", point])


def holds_device(cluster: Cluster, layer: str) -> bool:
    """Whether a layer's image is mapped once."""
    return cluster.mapped().count(f"docker_image_{layer}") == 1


def test_dockerd_stops_and_starts(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    client = plugin.client
    layer = new_container(plugin, new_id())
    client.write(layer, "f", "x")
    client.call("Cleanup")
    cluster.wait_unmapped()
    plugin.init()
    assert client.read(layer, "f") == b"x"
    assert client.changes(layer, layer + "-init") == {"/f": 1}


def test_live_restore_keeps_what_a_container_uses_and_releases_the_rest(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId, run_container: RunContainer
) -> None:
    """dockerd starts anew: Init without a Cleanup, Get and Put at once for the running one, one Put when it stops."""
    client = plugin.client
    running, stopped = new_container(plugin, new_id()), new_container(plugin, new_id())
    root = client.get(running)
    client.get(stopped)
    container = run_container(root)
    container.write("before", "1")

    plugin.init()
    assert views_below(plugin.home) == [root]
    wait_until(lambda: cluster.mapped() == images_of(running), "the rest is unmapped")
    assert holds_device(cluster, running)
    assert client.get(running) == root
    client.put(running)
    assert views_below(plugin.home) == [root]
    container.write("after", "2")
    assert container.read("before") == "1"
    with open(os.path.join(root, "after"), encoding="ascii") as source:
        assert source.read() == "2"

    container.end()
    client.put(running)
    assert views_below(plugin.home) == []
    cluster.wait_unmapped()
    assert mounts_below(plugin.home) == []
    assert client.read(running, "after") == b"2"
    client.put(stopped)
    assert client.read(stopped, "of the image") == b"x"


def test_dockerd_killed_9_then_put_without_get(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """Without live-restore its containers died with it: Init, then a Put for each that was running."""
    client = plugin.client
    layers = [new_container(plugin, new_id()) for _ in range(2)]
    for layer in layers:
        client.get(layer)
        client.get(layer)
    plugin.init()
    cluster.wait_unmapped()
    for layer in layers:
        client.put(layer)
    root = client.get(layers[0])
    client.put(layers[0])
    assert not os.path.exists(root)
    for layer in layers:
        client.remove(layer)
        client.remove(layer + "-init")


def test_plugin_killed_9_under_a_running_container(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId, run_container: RunContainer
) -> None:
    """Init does not come again: the plugin remembers it, and finds its mounts in the kernel's table."""
    client = plugin.client
    layer, other = new_container(plugin, new_id()), new_container(plugin, new_id())
    root = client.get(layer)
    container = run_container(root)
    container.write("before", "1")
    plugin.kill()
    container.write("meanwhile", "2")
    plugin.start()

    assert views_below(plugin.home) == [root]
    assert holds_device(cluster, layer)
    assert client.metadata(layer)["MountPoint"] == root
    # docker exec and cp, then stop.
    assert client.get(layer) == root
    client.put(layer)
    assert container.read("before") == "1"
    assert views_below(plugin.home) == [root]
    container.end()
    client.put(layer)
    assert views_below(plugin.home) == []
    cluster.wait_unmapped()
    assert mounts_below(plugin.home) == []
    assert client.read(layer, "meanwhile") == b"2"
    assert client.read(other, "of the image") == b"x"
    client.write(other, "g", "new")


def test_a_put_that_is_repeated_leaves_a_running_container_its_mount(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId, run_container: RunContainer
) -> None:
    """docker cp got and put; the answer of Put was lost with the plugin, and dockerd sends it once more."""
    client = plugin.client
    layer = new_container(plugin, new_id())
    root = client.get(layer)
    container = run_container(root)
    client.get(layer)
    client.put(layer)
    plugin.kill()
    plugin.start()
    client.put(layer)
    assert views_below(plugin.home) == [root]
    container.write("f", "1")
    assert client.read(layer, "f") == b"1"
    assert client.changes(layer, layer + "-init") == {"/f": 1}
    container.end()
    client.put(layer)
    assert views_below(plugin.home) == []
    cluster.wait_unmapped()
    assert mounts_below(plugin.home) == []


def test_a_container_of_which_nothing_but_the_device_is_left(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId, run_container: RunContainer
) -> None:
    """The plugin was killed in that very Put: no mount of ours, no mount point, and yet the container runs."""
    client = plugin.client
    layer = new_container(plugin, new_id())
    root = client.get(layer)
    container = run_container(root)
    plugin.kill()
    for point in reversed(mounts_below(plugin.home)):
        cluster.run(["umount", point])
        os.rmdir(point)
    plugin.start()
    container.write("f", "1")
    assert client.read(layer, "f") == b"1"
    assert views_below(plugin.home) == [root]
    container.end()
    client.put(layer)
    cluster.wait_unmapped()


@pytest.mark.parametrize("verb", ["Init", "Put", "Remove"])
def test_what_docker_cp_has_mounted_in_a_layer_goes_with_it(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId, session_directory: str, verb: str
) -> None:
    """dockerd mounts resolv.conf, volumes and so on over the files of a layer while it copies; it was killed then."""
    client = plugin.client
    layer = new_container(plugin, new_id())
    root = client.get(layer)
    volume = os.path.join(session_directory, layer)
    os.makedirs(os.path.join(volume, "inner"))
    os.mkdir(os.path.join(root, "volume"))
    cluster.run(["mount", "--bind", volume, os.path.join(root, "volume")])
    cluster.run(["mount", "--bind", volume, os.path.join(root, "volume", "inner")])
    assert len(views_below(plugin.home)) == 3
    if verb == "Init":
        plugin.init()
    else:
        client.call(verb, ID=layer)
    assert views_below(plugin.home) == []
    cluster.wait_unmapped()
    assert mounts_below(plugin.home) == []
    assert os.listdir(volume) == ["inner"]


@pytest.mark.parametrize("place", ["tmp-old/buildkit-mount123", "buildkit/executor/z1/rootfs"])
def test_what_a_killed_builder_has_mounted_elsewhere_is_unmounted(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId, session_directory: str, place: str
) -> None:
    """BuildKit mounts layers once more below Docker's data root, to look at them (a new dockerd calls that directory
    tmp-old) and for a RUN.
    """
    layer = new_container(plugin, new_id())
    point = os.path.join(session_directory, place)
    os.makedirs(point)
    cluster.run(["mount", "--bind", plugin.client.get(layer), point])
    plugin.init()
    assert mounts_below(os.path.dirname(point)) == []
    assert views_below(plugin.home) == []
    cluster.wait_unmapped()
    assert mounts_below(plugin.home) == []


def test_what_was_removed_is_gone_for_docker_and_goes_from_the_pool(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId
) -> None:
    """Also if the plugin is killed as soon as it has answered; and whatever is asked for meanwhile."""
    client = plugin.client
    layer = new_container(plugin, new_id())
    client.get(layer)
    client.remove(layer)
    plugin.kill()
    assert f"docker_image_{layer}" in cluster.images()
    osd = cluster.daemon("osd.0")
    os.kill(osd, signal.SIGSTOP)
    try:
        plugin.start()
        # All of it is answered while what is done in the background cannot get on, and so waits for nothing of that.
        assert client.call("Exists", ID=layer)["Exists"] is False
        for call in (client.get, client.metadata, lambda layer: client.create(new_id(), layer)):
            with pytest.raises(Refused, match=f"{layer} does not exist"):
                call(layer)
        client.put(layer)
        client.remove(layer)
    finally:
        os.kill(osd, signal.SIGCONT)
    wait_until(lambda: f"docker_image_{layer}" not in cluster.images(), "its image is gone")
    cluster.wait_unmapped()
    wait_until(lambda: os.listdir(os.path.join(plugin.home, "mnt")) == [], "its directory is gone")


def test_what_a_home_that_is_gone_has_mapped_can_be_removed(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId
) -> None:
    """A managed plugin was killed and removed, and its home with it; one of that name was made anew."""
    layer = new_container(plugin, new_id())
    root = plugin.client.get(layer)
    plugin.kill()
    unmount_all(plugin, cluster)
    shutil.rmtree(os.path.dirname(root))
    plugin.start()
    assert holds_device(cluster, layer)
    plugin.client.remove(layer)
    plugin.client.call("Cleanup")
    assert f"docker_image_{layer}" not in cluster.images()
    cluster.wait_unmapped()


def test_an_id_that_was_removed_can_be_made_again(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    client = plugin.client
    layer = client.create(new_id())
    for number in range(3):
        client.write(layer, f"f{number}", "x")
        client.remove(layer)
        client.create(layer)
        assert client.listing(layer) == []
    client.call("Cleanup")
    assert cluster.images() == [f"docker_image_{layer}"]


def test_plugin_killed_9_then_remove_of_what_was_mounted(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId
) -> None:
    layer = new_container(plugin, new_id())
    plugin.client.get(layer)
    plugin.kill()
    plugin.start()
    plugin.client.remove(layer)
    assert views_below(plugin.home) == []
    cluster.wait_unmapped()
    assert mounts_below(plugin.home) == []


def test_plugin_and_dockerd_killed_9(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    client = plugin.client
    layer = new_container(plugin, new_id())
    client.get(layer)
    plugin.kill()
    plugin.start()
    plugin.init()
    cluster.wait_unmapped()
    client.put(layer)
    assert client.listing(layer) == ["of the image"]


def test_plugin_restarted_twice(plugin: PluginProcess, new_id: NewId) -> None:
    """Nothing is mounted twice, and the count is one user however often that happens."""
    layer = new_container(plugin, new_id())
    root = plugin.client.get(layer)
    for _ in range(2):
        plugin.kill()
        plugin.start()
    assert len(views_below(plugin.home)) == 1
    assert plugin.client.get(layer) == root
    plugin.client.put(layer)
    assert len(views_below(plugin.home)) == 1
    plugin.client.put(layer)
    assert views_below(plugin.home) == []


def test_sigterm_leaves_the_mounts_of_containers(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId, run_container: RunContainer
) -> None:
    client = plugin.client
    layer = new_container(plugin, new_id())
    root = client.get(layer)
    container = run_container(root)
    assert plugin.terminate() == 0
    assert not os.path.exists(plugin.socket)
    assert views_below(plugin.home) == [root]
    container.write("f", "still here")
    plugin.start()
    assert client.get(layer) == root
    client.put(layer)
    container.end()
    client.put(layer)
    assert client.read(layer, "f") == b"still here"


def test_a_mapping_without_a_mount_is_taken_back(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """The plugin was killed between map and mount."""
    layer = new_container(plugin, new_id())
    plugin.client.get(layer)
    plugin.kill()
    unmount_all(plugin, cluster)
    assert holds_device(cluster, layer)
    plugin.start()
    cluster.wait_unmapped()
    assert plugin.client.listing(layer) == ["of the image"]


def test_a_map_that_outlives_the_plugin_is_undone(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """The plugin was killed while it mapped, and is back before that has come to its end: nobody knows of it then."""
    client = plugin.client
    layer = client.create(new_id())
    osd = cluster.daemon("osd.0")
    os.kill(osd, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as threads:
            got = threads.submit(client.get, layer)
            wait_until(lambda: maps_of(layer), "it is being mapped")
            mapping = maps_of(layer)
            plugin.kill()
            assert isinstance(got.exception(), OSError)
        plugin.start()
    finally:
        os.kill(osd, signal.SIGCONT)
    wait_until(lambda: all(process_state(pid) in ("", "Z") for pid in mapping), "the command has ended")
    cluster.wait_unmapped()
    assert client.listing(layer) == []


def maps_of(layer: str) -> list[int]:
    """The processes that map a layer's image."""
    found = []
    for directory in glob.glob("/proc/[0-9]*"):
        with contextlib.suppress(OSError), open(f"{directory}/cmdline", "rb") as source:
            words = source.read().decode(errors="replace").split("\0")
            if "map" in words and f"docker_image_{layer}" in words:
                found.append(int(os.path.basename(directory)))
    return found


def test_one_busy_leftover_does_not_stop_the_plugin(
    plugin: PluginProcess, cluster: Cluster, new_id: NewId, run_container: RunContainer
) -> None:
    """A device that somebody else still holds, and no mount of ours: other layers must be served all the same."""
    client = plugin.client
    busy, other = new_container(plugin, new_id()), new_container(plugin, new_id())
    container = run_container(client.get(busy))
    plugin.kill()
    unmount_all(plugin, cluster)
    plugin.start()
    assert client.listing(other) == ["of the image"]
    plugin.init()
    assert client.listing(other) == ["of the image"]
    container.end()
    wait_until(lambda: client.listing(busy) == ["of the image"], "the layer is free again")


def test_copies_of_the_mount_table_do_not_hold_a_layer(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """A service with PrivateTmp, or a container being started, copies our mounts for ever or for moments."""
    layer = new_container(plugin, new_id())
    plugin.client.get(layer)
    copy = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo up; exec sleep 600"],
        stdout=subprocess.PIPE,
    )
    try:
        assert copy.stdout
        assert copy.stdout.readline() == b"up\n"
        plugin.client.put(layer)
        cluster.wait_unmapped()
    finally:
        copy.kill()
        copy.communicate()


def test_put_of_a_layer_in_which_somebody_sits(plugin: PluginProcess, cluster: Cluster, new_id: NewId) -> None:
    """The error names who holds it; once he is gone the layer can be put or removed, and nothing is lost."""
    layer = new_container(plugin, new_id())
    root = plugin.client.get(layer)
    sitter = subprocess.Popen(["sleep", "600"], cwd=root)
    try:
        with pytest.raises(Refused, match="busy"):
            plugin.client.put(layer)
        assert plugin.client.get(layer) == root
    finally:
        sitter.kill()
        sitter.wait()
    plugin.client.put(layer)
    assert views_below(plugin.home) == []
    cluster.wait_unmapped()
    assert mounts_below(plugin.home) == []


def test_a_state_file_that_is_no_state(plugin: PluginProcess, new_id: NewId) -> None:
    """One line that names it; the plugin serves, for the next Init puts it right."""
    assert plugin.terminate() == 0
    state = plugin.socket + ".state"
    with open(state, encoding="utf-8") as source:
        good = source.read()
    for bad in ("", "{", "[]", '{"Home": 1}', '{"Home": "relative"}', '{"Home": "/h", "Opts": ["ceph.bogus=1"]}'):
        with open(state, "w", encoding="utf-8") as target:
            target.write(bad)
        plugin.start()
        with pytest.raises(Refused, match="restart dockerd"):
            plugin.client.create(new_id())
        assert f"{state} is of no use" in plugin.log_tail(10)
        assert plugin.terminate() == 0
    plugin.start()
    plugin.init()
    with open(state, encoding="utf-8") as source:
        assert source.read() == good
    plugin.client.create(new_id())


@pytest.mark.parametrize("is_used", [False, True])
def test_a_layer_whose_put_was_lost_gets_children_unless_a_container_uses_it(
    plugin: PluginProcess, run_container: RunContainer, new_id: NewId, is_used: bool
) -> None:
    """A builder puts a layer while the driver ends: dockerd repeats the call without a body, and gives up."""
    layer = plugin.client.create(new_id())
    root = plugin.client.get(layer)
    with open(os.path.join(root, "built"), "w", encoding="ascii") as target:
        target.write("by the builder")
    container = run_container(root) if is_used else None
    assert plugin.terminate() == 0
    plugin.start()
    if container:
        with pytest.raises(Refused, match="is mounted writable; put it first"):
            plugin.client.create(new_id(), layer)
        container.write("more", "by the container")
        container.end()
        plugin.client.put(layer)
    else:
        child = plugin.client.create(new_id(), layer)
        assert plugin.client.read(child, "built") == b"by the builder"


def test_a_base_image_that_lost_its_snapshot(start_plugin: StartPlugin, cluster: Cluster, new_id: NewId) -> None:
    """An operator's `rbd snap purge`, while the driver runs and before it starts: layers are made as before."""
    plugin = start_plugin(imageprefix="purged")
    client = plugin.client
    client.write(client.create(new_id()), "f", "before")
    cluster.rbd("snap", "purge", "rbd/purged_base_image", "--no-progress")
    assert client.listing(client.create(new_id())) == []
    cluster.rbd("snap", "purge", "rbd/purged_base_image", "--no-progress")
    assert plugin.terminate() == 0
    plugin.start()
    plugin.init()
    assert "purged_base_image has lost its snapshot empty; it was taken anew" in plugin.log_text()
    assert client.listing(client.create(new_id())) == []
    assert client.read(client.created[0], "f") == b"before"


# -- the SELinux label of a container --------------------------------------------------------------

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


def labels(log: str, layer: str) -> list[bool]:
    """Of each mount of a layer's view that a log tells of: whether it has the label.

    A kernel without SELinux takes the option and forgets it (mount(8)); so there is the command line to see.
    """
    lines = [line for line in log.splitlines() if "mount -t overlay " in line and f"/{layer}/" in line]
    return [f'context="{LABEL}"' in line for line in lines]


def test_the_label_of_a_mount_survives_a_restart(plugin: PluginProcess, new_id: NewId) -> None:
    """What layer it is is learned from the layer itself; one view has one label, whoever mounts it first."""
    layer = new_container(plugin, new_id())
    plugin.kill()
    plugin.start()
    before = len(plugin.log_text())
    plugin.client.call("Get", ID=layer, MountLabel=LABEL)
    told = labels(plugin.log_text()[before:], layer)
    assert told
    assert all(told)
    plugin.client.put(layer)


def test_a_layer_that_is_read_without_its_label_is_not_got_without_it(plugin: PluginProcess, new_id: NewId) -> None:
    """A container would be refused its own files. Once nobody reads the layer, it is mounted with its label."""
    client = plugin.client
    layer = new_container(plugin, new_id())
    client.write(layer, "big", os.urandom(8 << 20))
    wait_until(lambda: client.metadata(layer)["Device"] == "", "Docker has put it")
    connection, answer = client.open_diff(layer)
    answer.read(1 << 16)
    with pytest.raises(Refused, match=f"layer {layer}: .*try again"):
        client.call("Get", ID=layer, MountLabel=LABEL)
    answer.close()
    connection.close()
    wait_until(lambda: views_below(plugin.home) == [], "nobody reads it")
    before = len(plugin.log_text())
    client.call("Get", ID=layer, MountLabel=LABEL)
    assert labels(plugin.log_text()[before:], layer) == [True]
    client.put(layer)
