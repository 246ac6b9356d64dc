"""`meshd audit`: who changed what.

Edge: terminal in, terminal out.
"""

from __future__ import annotations

import re
import sys
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import msgspec

from orchestrator import audit_log
from orchestrator.audit_log import Record
from orchestrator.errors import ConfigError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@click.command()
@click.option("--log", "path", default="/var/lib/meshd/audit.log", show_default=True, type=click.Path(path_type=Path), help="This node's.")
@click.option("--since", default="", metavar="TIME", help="From then on: 90m, 2h, 3d, or 2026-01-31T12:00.")
@click.option("--who", default="", help="Only of this user, or this name in a client's certificate.")
@click.option("--what", default="", metavar="TEXT", help="Only with this in action, kind, name, id or path.")
@click.option("--failed", is_flag=True, help="Only what was refused, failed, or whose client went away.")
@click.option("--last", default=50, show_default=True, type=click.IntRange(min=1), help="At most so many, the newest.")
@click.option("--json", "as_json", is_flag=True, help="One object a line, for programs.")
def audit(path: Path, since: str, who: str, what: str, failed: bool, last: int, as_json: bool) -> None:
    """Who changed what through this node's API, when, and with which result.

    Every node keeps its own log of the requests it was asked (`meshd daemon --audit-log`): users with pid and program, or the name in
    their certificate. Attempts that were refused are in it; contents (environments, secrets, tokens) never are.
    """
    begin = moment(since, datetime.now(UTC)) if since else None
    wanted = (
        record
        for record in audit_log.read(path)
        if (begin is None or record.time >= begin)
        and (not who or record.who == who)
        and (not failed or record.failed)
        and any(what in text for text in (record.action, record.kind, record.name, record.id, record.path))
    )
    records = deque(wanted, maxlen=last)
    if as_json:
        for record in records:
            click.echo(msgspec.json.encode(record))
        return
    _table(list(records))


def moment(text: str, now: datetime) -> datetime:
    """ConfigError: neither a duration nor a time."""
    if match := re.fullmatch(r"(\d+)([smhd])", text):
        return now - timedelta(**{_UNITS[match[2]]: int(match[1])})
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--since {text}: give a duration such as 90m, 2h, 3d, or a time such as 2026-01-31T12:00") from None
    return parsed if parsed.tzinfo is not None else parsed.astimezone()


def _table(records: list[Record]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("time", "who", "from", "action", "object", "version", "result", box=None)
    for record in records:
        versions = f"{record.from_version or '-'} -> {record.to_version or '-'}" if record.from_version or record.to_version else ""
        table.add_row(
            record.time.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
            record.who or record.transport,
            record.address or record.detail,
            record.action,
            f"{record.kind} {record.name or record.id}".rstrip(),
            versions,
            str(record.status) if record.status else "client gone",
        )
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table, markup=False) if records else click.echo("nothing")
