"""The control loops in the order in which the leader runs them.

Pure: no I/O. Each loop sees what those before it have decided. The order matters: `drain` comes before everything
that stops tasks, so that it judges only what is stored; `restart` before those that look for a slot's live tasks, so that a task that
has just failed counts as its replacement; `reaper` last, so that no loop misses a task's history.
"""

from __future__ import annotations

from orchestrator.control.allocator import allocate
from orchestrator.control.attachments import attachments
from orchestrator.control.cron import cron
from orchestrator.control.drain import drain
from orchestrator.control.encryption import encryption
from orchestrator.control.enforcement import enforcement
from orchestrator.control.global_ import global_
from orchestrator.control.jobs import jobs
from orchestrator.control.managers import managers
from orchestrator.control.nodes import evacuation, lost_tasks, node_states
from orchestrator.control.reaper import reaper
from orchestrator.control.rebalance import rebalance
from orchestrator.control.removal import removal
from orchestrator.control.replicated import replicated
from orchestrator.control.restart import restart
from orchestrator.control.scheduler import schedule
from orchestrator.control.stateful import homes
from orchestrator.control.steps import Loop
from orchestrator.control.succession import succession
from orchestrator.control.update import update

# everything that decides about services and tasks but not about where and with which addresses
LIFECYCLE: tuple[Loop, ...] = (
    node_states,
    managers,
    lost_tasks,
    removal,
    drain,
    homes,
    restart,
    evacuation,
    enforcement,
    replicated,
    global_,
    cron,
    jobs,
    update,
    rebalance,
    succession,
)

LOOPS: tuple[Loop, ...] = (*LIFECYCLE, allocate, attachments, schedule, encryption, reaper)
