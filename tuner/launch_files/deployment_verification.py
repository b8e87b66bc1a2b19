"""Verify a deployment's bundle: every server's own command and the router started, its points measured again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hwprobe.errors import InputError, SgtuneError
from hwprobe.files import decode_json, read_bytes
from models.config import ServerConfig
from planner.fleets.deployment import Role
from planner.sglang.arguments import read_arguments
from planner.sglang.dialects import from_values
from tuner.launch_files.deployment_export import DEPLOYMENT_FILE, WrittenDeployment
from tuner.launch_files.verification import Claim, Verified, measured_again, read_claim
from tuner.seam import LaunchFailed, Server


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentClaim:
    """What a bundle says of a deployment: its pools, and the claim of one server of each; figures are the whole's."""

    folder: Path
    written: WrittenDeployment
    claims: dict[Role, Claim]

    @property
    def first(self) -> Claim:
        """The claim of the first pool: all have the same figures."""
        return self.claims[self.written.pools[0].role]


def is_deployment(path: Path) -> bool:
    """Say whether a folder is the bundle of a deployment that was measured."""
    return (path / DEPLOYMENT_FILE).is_file()


def read_deployment(folder: Path) -> DeploymentClaim:
    """Read a bundle. Raises InputError for what is missing, SgtuneError where its files record different figures."""
    file = folder / DEPLOYMENT_FILE
    written = decode_json(read_bytes(file, "deployment"), WrittenDeployment, str(file))
    if not written.pools:
        raise InputError(f"'{file}' has no pools")
    claims = {}
    for pool in written.pools:
        claim = read_claim(folder / f"{pool.role}.sh")
        if claim.record != written.record:
            raise SgtuneError(f"'{claim.file}' and '{file}' record different figures: one was changed by hand")
        claims[pool.role] = claim
    return DeploymentClaim(folder=folder, written=written, claims=claims)


def typed_config(claim: Claim) -> ServerConfig:
    """Return the configuration that a server's command types, nothing resolved."""
    return from_values(read_arguments(claim.line.words, claim.version).values, claim.version)


def verify_deployment(
    claim: DeploymentClaim, launch: Callable[[], Server], shown: Callable[[str], None], *, simulated: bool
) -> Verified:
    """Launch the deployment and measure its points. Raises SgtuneError when it does not start or loses a server."""
    try:
        fleet = launch()
        try:
            verified = measured_again(claim.first, fleet, shown, simulated=simulated)
            return replace(verified, deployment=claim.written.name)
        finally:
            fleet.stop()
    except LaunchFailed as failure:
        raise SgtuneError(f"'{claim.folder}' did not run ({failure.kind}): {failure.evidence}") from failure
