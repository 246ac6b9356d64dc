"""What a node does when it leaves its cluster: every container of that cluster's services is stopped and removed.

Edge: calls the runtime. The agent must not run any more; the data plane is flushed afterwards, so that stopping has its network.
"""

from __future__ import annotations

import asyncio

from orchestrator.agent.runtime import Container, Runtime

AT_ONCE = 8


async def remove_all(runtime: Runtime, grace_s: float = 10.0) -> int:
    """Returns how many there were. EngineUnavailable, TaskError: in an ExceptionGroup, after the others were tried."""
    containers = await runtime.containers()
    turns = asyncio.Semaphore(AT_ONCE)

    async def end(container: Container) -> None:
        async with turns:
            if container.attachment:
                # not ours to remove; it is without its networks from here on
                await runtime.forget_attachment(container.task_id)
                return
            await runtime.stop(container.task_id, grace_s, "")
            await runtime.remove(container.task_id)

    outcomes = await asyncio.gather(*(end(container) for container in containers), return_exceptions=True)
    failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if failures:
        raise ExceptionGroup("not every container could be removed", failures)
    return len(containers)
