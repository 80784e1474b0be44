"""The reference, from the code that it describes: each function gives one page as Markdown."""

from __future__ import annotations

import importlib
import typing
from collections.abc import Iterator
from typing import Any

import typer
from prometheus_client.metrics import MetricWrapperBase

from generate.tables import annotation, cell, fields, kind, paragraph, schemas, table

_METHODS = ("get", "put", "post", "delete")
_GENERATED = "*Made from the code when this documentation was built.*\n\n"


def rest() -> str:
    from spikeserve.app import Server
    from spikeserve.settings import load_settings

    described = Server(load_settings(http_port=0, grpc_port=0)).openapi()
    text = (
        f"# REST\n\n{_GENERATED}A running server shows the same at `/docs`, to be tried out, and as OpenAPI at "
        "`/openapi.json`.\n\n"
    )
    for path, methods in described["paths"].items():
        for method in _METHODS:
            if method in methods:
                text += _operation(f"{method.upper()} {path}", methods[method])
    return text + "## Schemas\n\n" + schemas(described["components"]["schemas"])


def _operation(name: str, operation: dict[str, Any]) -> str:
    text = f"## {name}\n\n"
    if "description" in operation:
        text += paragraph(operation["description"]) + "\n\n"
    if operation.get("parameters"):
        rows = [
            [f"`{each['name']}`", each["in"], kind(each["schema"]), _described(each)]
            for each in operation["parameters"]
        ]
        text += table(["parameter", "in", "type", "what it is"], rows)
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]
        text += "Body: " + ", ".join(f"`{media}`" for media in content) + ".\n\n"
    rows = []
    for status, answer in operation["responses"].items():
        forms = [
            kind(each["schema"])
            for each in answer.get("content", {}).values()
            if each.get("schema")
        ]
        rows.append([status, answer.get("description", ""), ", ".join(dict.fromkeys(forms))])
    return text + table(["status", "what it means", "body"], rows)


def _described(parameter: dict[str, Any]) -> str:
    schema = parameter["schema"]
    text = str(parameter.get("description") or schema.get("description", ""))
    default = schema.get("default")
    return text if default is None else f"{text} Default: `{default}`."


def settings() -> str:
    from spikeserve.settings import PREFIX, Settings

    text = (
        f"# Settings\n\n{_GENERATED}Each is a flag of `spikeserve serve`, an environment variable, and a line in the TOML "
        f"file that `{PREFIX}CONFIG` names; flags go before the environment, and that before the file.\n\n"
    )
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default is None else f"`{default}`"
        if name == "models":
            shown = "the bundled ones"
        rows.append(
            [
                f"`{PREFIX}{name.upper()}`",
                annotation(field.annotation),
                shown,
                field.description or "",
            ]
        )
    return text + table(["variable", "takes", "default", "what it is"], rows)


def metrics() -> str:
    from spikeserve.metrics import Metrics

    text = (
        f"# Metrics\n\n{_GENERATED}`GET /metrics` has these in Prometheus's text format. Labels come from short fixed sets, "
        "so that no client can make new time series. [Alarms and dashboards](../monitoring.md) are made of them.\n\n"
    )
    rows = []
    for collector in Metrics().registry._collector_to_names:
        if isinstance(collector, MetricWrapperBase):
            found = [
                (collector._name, collector._type, collector._labelnames, collector._documentation)
            ]
        else:
            described: Any = collector.describe() if hasattr(collector, "describe") else ()
            found = [
                (each.name, each.type, getattr(each, "_labelnames", ()), each.documentation)
                for each in described
            ]
        for name, what, labels, help_text in found:
            if name.startswith("spikeserve_"):
                ending = "_total" if what == "counter" else ""
                rows.append([f"`{name}{ending}`", what, ", ".join(labels), help_text])
    return text + table(["metric", "type", "labels", "what it is"], sorted(rows))


def checkpoint() -> str:
    from spiketrain.manifest import FORMAT_VERSION, Manifest

    schema = Manifest.model_json_schema()
    text = (
        f"# Checkpoints\n\n{_GENERATED}A model is one `.safetensors` file. Its header's metadata has two entries: "
        "`manifest`, JSON with the fields below, and `seal`, the sha256 of the whole file with the seal's own 64 digits "
        "replaced by zeros. So any changed byte is noticed. Loading never runs code. "
        f"This is version {FORMAT_VERSION} of the format; `spiketrain inspect FILE` shows all of it.\n\n"
        "## Manifest\n\n"
    )
    return text + fields(schema) + "## Parts of it\n\n" + schemas(schema["$defs"])


def cli() -> str:
    text = f"# Commands\n\n{_GENERATED}"
    for name in ("spikeserve", "spiketrain"):
        module = importlib.import_module(f"{name}.cli")
        text += "".join(_commands(name, typer.main.get_command(module.app)))
    return text


def _commands(name: str, command: Any) -> Iterator[str]:
    # Typer has its own copy of Click.
    if hasattr(command, "commands"):
        for child, each in command.commands.items():
            yield from _commands(f"{name} {child}", each)
        return
    yield f"## {name}\n\n{paragraph(command.help or '')}\n\n"
    rows = []
    for each in command.params:
        names = [*each.opts, *each.secondary_opts]
        shown = f"`{'`, `'.join(names)}`"
        if each.param_type_name == "argument":
            shown = f"`{each.name}`"
        elif not getattr(each, "is_flag", False):
            shown += f" {cell(_value(each.type_descriptor.annotation))}"
        rows.append([shown, str(getattr(each, "help", None) or ""), _default(each)])
    yield table(["option", "what it is", "default"], rows)


def _value(found: Any) -> str:
    """`found` is the annotation of the option."""
    if typing.get_origin(found) is list:
        found = typing.get_args(found)[0]
    if typing.get_origin(found) is typing.Literal:
        return "|".join(map(str, typing.get_args(found)))
    return str(getattr(found, "__name__", "value")).upper()


def _default(parameter: Any) -> str:
    default = parameter.default
    if default in (None, False, "", ()) or callable(default) or parameter.required:
        return "required" if parameter.required else ""
    return f"`{default}`"


PAGES = {
    "rest": rest,
    "settings": settings,
    "metrics": metrics,
    "checkpoint": checkpoint,
    "cli": cli,
}
