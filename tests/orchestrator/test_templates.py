"""Templates: every placeholder in every place, what is left alone, and what is refused with a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import TaskError
from orchestrator.model import (
    ContainerSpec,
    Driver,
    Mount,
    Node,
    NodeDescription,
    Platform,
    Service,
    ServiceSpec,
    Task,
    TaskSpec,
    VolumeOptions,
)
from orchestrator.templates import is_template, render, task_name

SERVICE = Service(id="s1", spec=ServiceSpec(name="web", labels={"tier": "front", "a.b": "dotted"}))
NODE = Node(id="n1", description=NodeDescription(hostname="alpha", platform=Platform(architecture="x86_64", os="linux")))
TASK = Task(id="t1", service_id="s1", slot=3, node_id="n1", mesh_service_name="web")


def expanded(text: str, task: Task = TASK, service: Service | None = SERVICE) -> str:
    spec = TaskSpec(container_spec=ContainerSpec(env=[text]))
    container = render(spec, task, service, NODE).container_spec
    assert container is not None and container.env is not None
    return container.env[0]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("{{.Service.ID}}", "s1"),
        ("{{.Service.Name}}", "web"),
        ("{{.Service.Labels}}", "map[a.b:dotted tier:front]"),
        ("{{.Service.Labels.tier}}", "front"),
        ("{{.Service.Labels.none}}", "<no value>"),
        ('{{index .Service.Labels "a.b"}}', "dotted"),
        ("{{index .Service.Labels `a.b`}}", "dotted"),
        ('{{index .Service.Labels "none"}}', ""),
        ("{{.Node.ID}}", "n1"),
        ("{{.Node.Hostname}}", "alpha"),
        ("{{.Node.Platform}}", "{x86_64 linux}"),
        ("{{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}", "linux/x86_64"),
        ("{{.Task.ID}}", "t1"),
        ("{{.Task.Name}}", "web.3.t1"),
        ("{{.Task.Slot}}", "3"),
        ("{{ .Task.Slot }}", "3"),
        ("A=<{{.Task.Slot}}>{{.Task.ID}}!", "A=<3>t1!"),
        ("a  {{- .Task.Slot -}}  b", "a3b"),
        ("a  {{- .Task.Slot}} b", "a3 b"),
        ("a {{.Task.Slot -}}  b", "a 3b"),
        ("a {{.Task.Slot}} {{.Task.Slot}} b", "a 3 3 b"),
        ("{{/* nothing */}}x", "x"),
        ('{{"{{"}}', "{{"),
        ('{{"}}"}}', "}}"),
        ('{{join "-" .Service.Name .Task.Slot}}', "web-3"),
        ('{{.Service.Name | printf "%s:%q:%d%%" "a" "b"}}', 'a:"b":web%'),
        ('{{print (join "," "x" "y") 7 true}}', "x,y7true"),
        ('{{if eq .Task.Slot "1"}}first{{else if eq .Task.Slot "2" "3"}}next{{else}}last{{end}}', "next"),
        ('{{if and .Service.Labels (not (ne .Service.Labels.tier "front"))}}y{{end}}', "y"),
        ('{{if or nil false 0 "" .Service.Labels.none}}y{{else}}n{{if true}}o{{end}}{{end}}', "no"),
        ("{{len .Service.Name}}{{len .Service.Labels}}", "32"),
        ("{{(index .Service.Labels `tier`)}}", "front"),
        ("{{.Task.Slot}}\n  {{- /* trimmed */ -}}\n x", "3x"),
        ("no braces } } {", "no braces } } {"),
        ("", ""),
    ],
)
def test_placeholders(text: str, result: str) -> None:
    assert expanded(text) == result


def test_a_global_task_has_its_node_for_a_slot() -> None:
    task = Task(id="t1", service_id="s1", node_id="n1", mesh_service_name="web")
    assert expanded("{{.Task.Slot}}", task) == "n1"
    assert task_name(task) == "web.n1.t1"


def test_a_removed_service_still_has_its_name() -> None:
    assert expanded("{{.Service.Name}}{{.Service.Labels}}", service=None) == "webmap[]"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{{.Nope}}", "unknown placeholder '{{.Nope}}'"),
        ("{{.Service.Nope}}", "unknown placeholder '{{.Service.Nope}}'"),
        ("{{.Node.Labels}}", "unknown placeholder"),
        ("{{env `HOME`}}", "unknown function 'env'"),
        ("{{}}", "missing value"),
        ("{{.Task.ID", "unclosed action"),
        ('{{index .Task.ID "x"}}', "only maps can be indexed"),
        ("{{.Task.ID.x}}", ".Task.ID has no field x"),
        ("{{range .Service.Labels}}{{end}}", "{{range}} is not supported"),
        ("{{if .Task.ID}}", "{{if}} without {{end}}"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{if .Task.ID}}{{else}}{{else}}{{end}}", "two {{else}}"),
        ("{{(.Task.ID}}", "unclosed parenthesis"),
        ("{{.Task.ID | .Task.ID}}", "a pipe leads to a function"),
        ("{{.Task.ID 3}}", "can't give arguments"),
        ("{{.Task.ID ; }}", "can't give arguments"),
        ("{{eq 1}}", "eq can't take these 1 values"),
        ('{{printf "%x" 1}}', "it knows %s"),
        ("{{$x := 1}}", "unexpected '$'"),
    ],
)
def test_what_does_not_exist_is_refused(text: str, part: str) -> None:
    with pytest.raises(TaskError) as caught:
        expanded(text)
    assert part in str(caught.value)
    assert caught.value.rejected


def test_every_templated_place_and_no_other() -> None:
    slot = "{{.Task.Slot}}"
    spec = TaskSpec(
        container_spec=ContainerSpec(
            image=slot,
            args=[slot],
            hostname=f"web-{slot}",
            env=[f"A={slot}"],
            mounts=[
                Mount(
                    source=f"vol-{slot}",
                    target=f"/{slot}",
                    volume_options=VolumeOptions(labels={slot: slot}, driver_config=Driver(name=slot, options={"o": slot})),
                )
            ],
        )
    )
    assert is_template(spec)
    assert render(spec, TASK, SERVICE, NODE).container_spec == ContainerSpec(
        image=slot,
        args=[slot],
        hostname="web-3",
        env=["A=3"],
        mounts=[
            Mount(
                source="vol-3",
                target="/3",
                volume_options=VolumeOptions(labels={"3": "3"}, driver_config=Driver(name=slot, options={"o": "3"})),
            )
        ],
    )


def test_a_spec_without_placeholders_is_the_same_object() -> None:
    for spec in (TaskSpec(), TaskSpec(container_spec=ContainerSpec(image="{{x}}", env=["A=b"]))):
        assert not is_template(spec)
        assert render(spec, TASK, SERVICE, NODE) is spec


_FRAGMENTS = ["{{", "}}", "-", " ", ".Service", ".Labels", ".Task.Slot", "|", "(", ")", "if", "else", "end", "eq", "index"]
_FRAGMENTS += ['"a.b"', "`x`", "/*", "*/", "\n", "7", "print", "text", '"', "\\"]


@given(st.lists(st.sampled_from(_FRAGMENTS), max_size=12).map("".join))
def test_whatever_is_written_is_rendered_or_refused_with_a_sentence(text: str) -> None:
    try:
        result = expanded(text)
    except TaskError as error:
        assert error.rejected and str(error).startswith("template: ")
    else:
        assert "{{" in text or result == text
