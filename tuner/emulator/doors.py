"""The door of a server of one phase, with the endpoint or the connections it needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from planner.fleets.deployment import Role
from tuner.emulator.driver import Driver
from tuner.emulator.handover import DecodeDoor, PrefillDoor
from tuner.emulator.role_metrics import RoleMetrics
from tuner.emulator.roles import RolePlayed

Close = Callable[[], Awaitable[None]]


async def open_door(driver: Driver, played: RolePlayed | None, role: RoleMetrics | None, host: str) -> Close:
    """Give the driver the door of its role, and return what closes it. Raises OSError where its port is taken."""
    if played is None or role is None:
        return _nothing
    if played.role is Role.DECODE:
        decode = DecodeDoor(driver, played, role)
        driver.door = decode
        return decode.close
    prefill = PrefillDoor(driver, played, role)
    driver.door = prefill
    runner = web.AppRunner(prefill.bootstrap_application(), access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, host, played.bootstrap_port, backlog=4096).start()
    return runner.cleanup


async def _nothing() -> None:
    """A server of both phases has nothing to close."""
