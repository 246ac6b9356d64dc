"""Autolock on a real cluster: what lies on a manager's disk opens with the unlock key only, and nothing stops while it is locked."""

from __future__ import annotations

import base64
import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.lab.lab import Lab, Node, wait_until
from orchestrator.security import keyring
from tests.lab.cli import Cli, task_containers

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SECRET = "the cat's name is Marmalade"
LOCKED = 'Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.'
_PRIVATE_KEY = re.compile(rb"-----BEGIN (EC |RSA )?PRIVATE KEY-----")


@pytest.fixture
def autolock(lab: Lab, cli: Cli) -> Iterator[str]:
    """On; the unlock key. Off again afterwards."""
    printed = cli.ok("swarm", "update", "--autolock=true")
    key = cli.ok("swarm", "unlock-key", "-q")
    assert key in printed and "docker swarm unlock" in printed
    try:
        yield key
    finally:
        if state(cli) == "locked":
            cli.run("swarm", "unlock", input=key)
        cli.ok("swarm", "update", "--autolock=false")


def state(cli: Cli) -> str:
    return cli.run("info", "--format", "{{.Swarm.LocalNodeState}}").stdout.strip()


def restart(cli: Cli, expected: str) -> None:
    """SIGKILL meshd; the node's init starts it again."""
    cli.node.kill("meshd")
    wait_until(lambda: state(cli) == expected, 60, f"{cli.node.name} is {expected}")


def on_disk(node: Node) -> Iterator[tuple[Path, bytes]]:
    for directory, _, names in os.walk(node.layout.meshd_dir):
        for name in names:
            path = Path(directory) / name
            if path.is_file() and not path.is_symlink():
                with contextlib.suppress(FileNotFoundError):
                    yield path, path.read_bytes()


def readable(node: Node, *texts: bytes) -> list[str]:
    """Which of the texts, and which private keys, the disk shows."""
    forms = [form for text in texts for form in (text, base64.b64encode(text), base64.b64encode(text)[:-4])]
    return [str(path) for path, content in on_disk(node) if _PRIVATE_KEY.search(content) or any(form in content for form in forms)]


def test_a_locked_managers_disk_shows_no_secret_and_its_tasks_run_on(lab: Lab, cli: Cli, autolock: str) -> None:
    node = cli.node
    cli.ok("secret", "create", "cat", "-", input=SECRET)
    cli.create("witness", "--secret", "cat", "--env", f"CAT={SECRET}", "--constraint", f"node.hostname=={node.name}", replicas="1/1")
    [container] = task_containers(node, "witness")
    restart(cli, "locked")
    assert [LOCKED in cli.fails(*command) for command in (("node", "ls"), ("service", "ls"), ("swarm", "unlock-key"))] == [True] * 3
    assert "Swarm: locked" in cli.ok("info")
    keys = keyring.load(node.layout.meshd_dir, keyring.parsed(autolock))
    assert keys is not None and keys.store_key
    assert readable(node, SECRET.encode(), keys.passphrase, keys.store_key, keyring.parsed(autolock)) == []
    assert task_containers(node, "witness") == [container]
    assert "Please unlock it first or use `--force`" in cli.fails("swarm", "leave")
    wrong = keyring.shown(keyring.new_unlock_key())
    assert "swarm could not be unlocked: invalid key provided" in cli.fails("swarm", "unlock", input=wrong)
    assert "invalid key string" in cli.fails("swarm", "unlock", input="marmalade")
    assert state(cli) == "locked"
    cli.ok("swarm", "unlock", input=autolock)
    assert state(cli) == "active"
    assert "swarm is not locked" in cli.fails("swarm", "unlock", input=autolock)
    cli.ok("service", "scale", "-d", "witness=2")
    cli.wait_replicas("witness", "2/2", 60)
    assert container in task_containers(node, "witness")


def test_a_rotated_key_opens_and_the_old_one_no_longer(lab: Lab, cli: Cli, autolock: str) -> None:
    newer = cli.ok("swarm", "unlock-key", "--rotate", "-q")
    assert newer != autolock
    restart(cli, "locked")
    try:
        assert "invalid key provided" in cli.fails("swarm", "unlock", input=autolock)
    finally:
        cli.ok("swarm", "unlock", input=newer)
    assert cli.ok("swarm", "unlock-key", "-q") == newer
    cli.ok("swarm", "update", "--autolock=false")
    assert "no unlock key is set" in cli.fails("swarm", "unlock-key")
    restart(cli, "active")
    wait_until(lambda: cli.run("node", "ls").returncode == 0, 60, "the manager serves by itself")
