"""One user of Docker: does what comes to his mind, and knows what must be there then.

An operation that fails while something is wrong with the host is done again until it succeeds: each can be repeated.
One that fails without such a reason is a failure of the driver's.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable

import model
from machine import DockerError, Host

MOST_CONTAINERS, MOST_IMAGES, MOST_FILES = 5, 6, 5
# dockerd repeats a call whose answer was lost for 15 s (moby, pkg/plugins/client.go): what was begun before a fault may
# fail a while after it.
AFTERMATH_SECONDS = 45.0
PATIENCE_SECONDS = 300.0
PAUSE_SECONDS = 1.0
SLEEP = ("sh", "-c", "while sleep 1000; do :; done")


class Lost(Exception):
    """Something is not as it must be: one line that says what."""


class Worker:
    """The operations on what one worker has made; its names begin with `name`. `base` is the image to begin with."""

    def __init__(self, host: Host, name: str, base: str, chance: random.Random) -> None:
        self._host = host
        self._name = name
        self._base = base
        self._chance = chance
        self._model = model.Model()
        self._number = 0
        self.done: Counter[str] = Counter()
        self.again = 0
        self.verified = 0

    def step(self) -> None:
        """Do one thing. Raises Lost."""
        choices: list[tuple[Callable[[], None], int]] = [(self._run, 4)]
        if self._model.containers:
            choices += [(self._write, 6), (self._copy_in, 3), (self._delete, 2), (self._verify, 5), (self._commit, 3)]
            choices += [(self._kill, 2), (self._look, 1), (self._remove, 3)]
        if self._model.images:
            choices += [(self._build, 2), (self._save, 1), (self._remove_image, 2), (self._verify_image, 2)]
        operations, weights = zip(*choices)
        operation = self._chance.choices(operations, weights)[0]
        operation()
        self.done[operation.__name__.strip("_").replace("_", " ")] += 1

    def finish(self) -> None:
        """Verify everything, then remove it. Raises Lost."""
        for name in list(self._model.containers):
            self._verify_container(name)
        for image in list(self._model.images):
            self._verify_files_of_image(image)
        for name in list(self._model.containers):
            self._remove_container(name)
        for image in list(self._model.images):
            self._rmi(image)

    # -- containers --------------------------------------------------------------------------

    def _run(self) -> None:
        if len(self._model.containers) >= MOST_CONTAINERS:
            self._remove()
        image = self._chance.choice([self._base, *self._model.images])
        name = self._new_name()

        def run() -> None:
            self._docker("rm", "--force", name, missing="No such container")
            self._docker("run", "--detach", "--name", name, "--network", "none", "--stop-signal", "KILL", image, *SLEEP)

        self._until_done(run)
        files = dict(self._model.images.get(image, {}))
        self._model.containers[name] = model.Container(name, image, files)

    def _write(self) -> None:
        """From within, synced or not."""
        container = self._any_container()
        files = model.new_files(self._chance, MOST_FILES)
        # Its own file system, not all of the machine's: one that hangs would keep the container from its end.
        end = self._chance.choice(("", " && sync -f /"))

        def write() -> None:
            self._start(container.name)
            script = f"tar -x -C / -f -{end}"
            self._docker("exec", "--interactive", container.name, "sh", "-c", script, data=model.pack(files))

        self._until_done(write)
        container.files |= model.sums(files)

    def _copy_in(self) -> None:
        """docker cp, into a container that runs or does not."""
        container = self._any_container()
        files = model.new_files(self._chance, MOST_FILES)
        archive = model.pack(files)
        self._until_done(lambda: self._docker("cp", "-", f"{container.name}:/", data=archive))
        container.files |= model.sums(files)

    def _delete(self) -> None:
        container = self._any_container()
        gone = self._chance.sample(sorted(container.files), min(2, len(container.files)))

        def delete() -> None:
            self._start(container.name)
            self._docker("exec", container.name, "rm", "-f", *(f"/{model.DATA}/{path}" for path in gone))

        self._until_done(delete)
        for path in gone:
            del container.files[path]

    def _kill(self) -> None:
        """docker kill, stop or restart."""
        name, verb = self._any_container().name, self._chance.choice(("kill", "stop", "restart"))
        self._until_done(lambda: self._docker(verb, name, missing="is not running"))

    def _look(self) -> None:
        """docker diff and docker inspect."""
        name = self._any_container().name
        self._until_done(lambda: self._docker("diff", name))
        self._until_done(lambda: self._docker("inspect", "--size", name))

    def _remove(self) -> None:
        self._remove_container(self._any_container().name)

    def _remove_container(self, name: str) -> None:
        self._until_done(lambda: self._docker("rm", "--force", name, missing="No such container"))
        del self._model.containers[name]

    def _verify(self) -> None:
        self._verify_container(self._any_container().name)

    def _verify_container(self, name: str) -> None:
        """docker cp, out of it."""
        expected = self._model.containers[name].files
        self._compare(f"container {name}", expected, self._files_of(name))

    # -- images ------------------------------------------------------------------------------

    def _commit(self) -> None:
        container, image = self._any_container(), self._new_image()
        self._until_done(lambda: self._docker("commit", container.name, image))
        self._model.images[image] = dict(container.files)

    def _build(self) -> None:
        # In this order: to make room for the new image another one may go.
        image = self._new_image()
        parent = self._any_image()
        files, buildkit = model.new_files(self._chance, MOST_FILES), self._chance.random() < 0.5
        with tempfile.TemporaryDirectory(dir=self._host.directory) as context:
            subprocess.run(["tar", "-x", "-C", context, "-f", "-"], input=model.pack(files), check=True)
            with open(os.path.join(context, "Dockerfile"), "w", encoding="ascii") as target:
                target.write(f"FROM {parent}\nCOPY {model.DATA} /{model.DATA}\nRUN echo {image} >/built\n")
            words = ("build", "--network", "none", "--tag", image, context)
            self._until_done(lambda: self._docker(*words, buildkit=buildkit))
        self._model.images[image] = {**self._model.images[parent], **model.sums(files)}

    def _save(self) -> None:
        """dockerd checks each file of each layer while it puts them together."""
        image = self._any_image()
        self._until_done(lambda: self._docker("save", "--output", f"{self._host.directory}/{self._name}.tar", image))

    def _remove_image(self) -> None:
        if unused := self._model.unused_images():
            self._rmi(self._chance.choice(unused))

    def _rmi(self, image: str) -> None:
        self._until_done(lambda: self._docker("rmi", image, missing="No such image"))
        del self._model.images[image]

    def _verify_image(self) -> None:
        self._verify_files_of_image(self._any_image())

    def _verify_files_of_image(self, image: str) -> None:
        name = f"{self._name}-look"

        def create() -> None:
            self._docker("rm", "--force", name, missing="No such container")
            self._docker("create", "--name", name, "--network", "none", image, "true")

        self._until_done(create)
        found = self._files_of(name)
        self._until_done(lambda: self._docker("rm", "--force", name, missing="No such container"))
        self._compare(f"image {image}", self._model.images[image], found)

    # -- within ------------------------------------------------------------------------------

    def _files_of(self, container: str) -> model.Files:
        archives: list[bytes] = []

        def copy() -> None:
            archives.append(self._docker("cp", f"{container}:/{model.DATA}", "-"))

        self._until_done(copy)
        return model.unpack(archives[-1])

    def _compare(self, what: str, expected: model.Files, found: model.Files) -> None:
        wrong = model.differences(expected, found)
        if wrong:
            raise Lost(f"{what}: {'; '.join(wrong[:5])} ({len(wrong)} of {len(expected)} files)")
        self.verified += len(expected)

    def _start(self, name: str) -> None:
        """A restart of dockerd, or a kill, may have ended it; starting what runs does nothing."""
        self._docker("start", name)

    def _docker(self, *words: str, data: bytes = b"", missing: str = "", buildkit: bool = False) -> bytes:
        """One docker command; `missing` is what it says where there is nothing to do."""
        try:
            return self._host.docker(*words, data=data, buildkit=buildkit)
        except DockerError as error:
            if missing and missing in str(error):
                return b""
            raise

    def _until_done(self, operation: Callable[[], object]) -> None:
        """Do it, again as long as something is wrong with the host. Raises Lost for a failure without such a reason."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            began = time.monotonic()
            try:
                operation()
                return
            except DockerError as error:
                blameless = self._host.disturbed_at > began - AFTERMATH_SECONDS or not self._host.wait_ready(0)
                if not blameless or time.monotonic() > deadline:
                    raise Lost(str(error)) from None
            self.again += 1
            self._host.wait_ready(PATIENCE_SECONDS)
            time.sleep(PAUSE_SECONDS)

    def _any_container(self) -> model.Container:
        return self._model.containers[self._chance.choice(sorted(self._model.containers))]

    def _any_image(self) -> str:
        return self._chance.choice(sorted(self._model.images))

    def _new_image(self) -> str:
        while len(self._model.images) >= MOST_IMAGES and (unused := self._model.unused_images()):
            self._rmi(self._chance.choice(unused))
        return f"soak/{self._new_name()}"

    def _new_name(self) -> str:
        self._number += 1
        return f"{self._name}-{self._number}"
