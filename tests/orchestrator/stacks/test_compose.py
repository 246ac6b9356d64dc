"""Reading compose files: YAML as Go reads it, mistakes named where they are, what is ignored said."""

from __future__ import annotations

import pytest

from orchestrator.errors import ConfigError
from orchestrator.stacks import compose
from orchestrator.stacks.render import render
from orchestrator.stacks.units import cpus_ns, duration_ns, port_range, size_bytes


def reading(service: str, rest: str = "") -> tuple[compose.Compose, list[str]]:
    return compose.read("services:\n  web:\n" + "".join(f"    {line}\n" for line in service.splitlines()) + rest, {})


def rendered(service: str, rest: str = "") -> list[str]:
    """Warnings."""
    file, warnings = reading(service, rest)
    return [*warnings, *render("s", file, {}, {})[2]]


def test_scalars_are_those_of_yaml_1_2() -> None:
    file, _ = reading("image: x\nports: [22:22, 8080]\nenvironment: {A: yes, B: on, C: 2026-01-01, D: 1.50, E: true, F: 0x10, G: ~}")
    web = file.services["web"]
    assert web.ports == ["22:22", 8080]
    assert web.environment == {"A": "yes", "B": "on", "C": "2026-01-01", "D": 1.5, "E": True, "F": 16, "G": None}


def test_anchors_merge_and_extensions_are_left_alone() -> None:
    file, warnings = compose.read(
        "x-common: &common {image: x, environment: {A: '1'}}\nservices:\n  web: {<<: *common, command: a b}\n  db: *common\n", {}
    )
    assert file.services["web"].image == file.services["db"].image == "x"
    assert warnings == []


@pytest.mark.parametrize(
    ("service", "words"),
    [
        ("imag: x", "services.web: there is no field 'imag': is it 'image'"),
        ("image: x\ndeploy: {replica: 3}", "services.web.deploy: there is no field 'replica': is it 'replicas'"),
        ("image: [x]", "services.web.image: expected `str`"),
        ("image: x\ndeploy: {replicas: many}", "services.web.deploy.replicas: expected `int"),
        ("command: x", "services.web: image is missing"),
        ("image: x\ndeploy: {mode: globl}", "deploy.mode 'globl'"),
        ("image: x\ndeploy: {mode: global, replicas: 2}", "replicas can't be given for mode global"),
        ("image: x\nports: ['a:80']", "'a' is neither a port nor a range"),
        ("image: x\nports: ['80-82:80']", "3 published ports for 1"),
        ("image: x\nports: ['99999:80']", "ports go from 1 to 65535"),
        ("image: x\nnetworks: [back]", "undefined network 'back'"),
        ("image: x\nsecrets: [key]", "undefined secret 'key'"),
        ("image: x\nvolumes: ['data:/data']", "undefined volume 'data'"),
        ("image: x\nvolumes: ['./data:/data']", "is not a path that every node could know"),
        ("image: x\nvolumes: ['a:b:c:d']", "expected \\[source:\\]target"),
        ("image: x\nrestart: sometimes", "restart 'sometimes'"),
        ("image: x\nstop_grace_period: soon", "expected a duration such as 1m30s"),
        ("image: x\ndeploy: {resources: {limits: {memory: much}}}", "expected a size such as 64M"),
        ("image: x\ndeploy: {resources: {limits: {cpus: all}}}", "expected a number of CPUs"),
        ("image: x\nnetwork_mode: bridge", "services have networks, or network_mode: host"),
        ("image: x\nenv_file: a.env", "env_file a.env was not sent along"),
        ("image: x\ncommand: 'a \"b'", "can't be split into words"),
        ("image: ${X?set X}", "services.web.image: required variable X is missing a value: set X"),
    ],
)
def test_mistakes_are_named_where_they_are(service: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rendered(service)


@pytest.mark.parametrize(
    "text",
    ["", "- a", "services: [", "services: {}", "services: {web: 1}", "services: [a]", "{1: 2}", "services: {web: {image: x}}\na: 1"],
)
def test_what_is_no_compose_file_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        compose.read(text, {})


def test_a_file_that_unfolds_without_end_is_refused() -> None:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]", *(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))]
    with pytest.raises(ConfigError, match="more than"):
        compose.read("\n".join(lines), {})
    with pytest.raises(ConfigError):
        compose.read("a: " + "[" * 5000, {})


def test_what_is_ignored_is_said_and_why() -> None:
    said = "\n".join(rendered("image: x\nbuild: .\ndepends_on: [db]\ncontainer_name: c\nports: ['127.0.0.1:80:80']\nlinks: [db]"))
    for field in ("build", "depends_on", "container_name", "links"):
        assert f"services.web.{field} is ignored: " in said
    assert "127.0.0.1 is ignored" in said


def test_every_ignored_field_is_no_field_that_is_read() -> None:
    assert not compose._IGNORED.keys() & set(compose.Service.__struct_fields__)


def test_what_docker_run_can_is_carried_by_labels() -> None:
    devices = "devices: ['/dev/fuse:/dev/fuse:rwm']"
    file, _ = reading(f"image: x\nprivileged: true\nshm_size: 64m\npid: host\n{devices}\nsecurity_opt: [seccomp=unconfined]")

    container = render("s", file, {}, {})[0].services[0].task_template.container_spec
    assert container is not None and container.labels is not None
    assert {key.rpartition(".")[2]: value for key, value in container.labels.items() if key.startswith("com.meshd.run.")} == {
        "privileged": "true", "shm-size": "64m", "pid": "host", "devices": "/dev/fuse:/dev/fuse:rwm", "security-opt": "seccomp=unconfined",
    }  # fmt: skip


def test_files_that_have_to_be_sent_are_named() -> None:
    text = (
        "services: {a: {image: x, env_file: [one.env, {path: two.env}]}, b: {image: x, env_file: three.env}}\n"
        "secrets: {k: {file: ./key}, e: {external: true}}\nconfigs: {c: {content: hi}, f: {file: f.conf}}\n"
    )
    needs = compose.needs_of(text)
    assert (needs.env_files, needs.contents) == (["one.env", "two.env", "three.env"], ["./key", "f.conf"])


def test_variables_that_have_to_be_sent_are_named() -> None:
    text = (
        "services: {a: {image: 'x:${TAG:-1}', environment: [TOKEN, A=b]}, b: {image: x, environment: {KEY: , OTHER: $VALUE}}}\n"
        "secrets: {k: {environment: PASSWORD}}\n"
    )
    assert compose.needs_of(text).variables == {"TAG", "TOKEN", "KEY", "VALUE", "PASSWORD"}


def test_env_files_and_names_without_a_value() -> None:
    file, _ = reading("image: x\nenv_file: [a.env, {path: none.env, required: false}]\nenvironment: [B=2, FROM_OUTSIDE, NOWHERE]")
    content = b"# said\nexport A='1'\nB=1\n\nC=\"x y\"\n"
    parts, _, _ = render("s", file, {"FROM_OUTSIDE": "in"}, {"a.env": content})
    container = parts.services[0].task_template.container_spec
    assert container is not None and container.env == ["A=1", "B=2", "C=x y", "FROM_OUTSIDE=in"]
    with pytest.raises(ConfigError, match="line 1: expected NAME=value"):
        render("s", file, {}, {"a.env": b"a b=c"})


def test_new_content_is_a_new_object_under_the_same_target() -> None:
    file, _ = reading("image: x\nsecrets: [key]", "secrets: {key: {file: k}}\n")
    (one, contents_one, _), (two, contents_two, _) = (render("s", file, {}, {"k": content}) for content in (b"1", b"2"))
    assert contents_one != contents_two
    assert one.secrets[0].name.startswith("s_key-") and one.secrets[0].name != two.secrets[0].name
    template, _ = reading("image: x\nsecrets: [key]", "secrets: {key: {file: k, template_driver: golang}}\n")
    assert render("s", template, {}, {"k": b"1"})[0].secrets[0].name not in (one.secrets[0].name, two.secrets[0].name)
    for parts in (one, two):
        container = parts.services[0].task_template.container_spec
        assert container is not None and container.secrets is not None and container.secrets[0].file is not None
        assert container.secrets[0].file.name == "key" and container.secrets[0].secret_name == parts.secrets[0].name


def test_units() -> None:
    assert duration_ns("x", "1h2m3.5s") == 3723_500_000_000
    assert duration_ns("x", "100ms") == 100_000_000
    assert [size_bytes("x", text) for text in ("50M", "1g", "1024", "1.5k", "2GiB")] == [52428800, 1 << 30, 1024, 1536, 1 << 31]
    assert [cpus_ns("x", text) for text in ("0.5", 2, "")] == [500_000_000, 2_000_000_000, 0]
    assert list(port_range("8000-8002")) == [8000, 8001, 8002]
    for bad in ("nan", "inf", "-1", "1e9"):
        with pytest.raises(ConfigError):
            cpus_ns("x", bad)
