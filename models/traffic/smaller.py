"""A trace like another one: whole sessions of it, with everything that could be recognised numbered anew."""

from __future__ import annotations

import numpy as np

from hwprobe.errors import InputError
from models.traffic.trace import NO_SESSION, Nodes, Trace


def thinned(trace: Trace, requests: int, seed: int = 0) -> Trace:
    """Return about so many requests, in whole sessions drawn at random from all over the trace.

    Lengths, sessions and what is shared within them stay as they are; the rate falls with the number of requests.
    """
    if requests < 1:
        raise InputError(f"--requests is {requests}; it must be at least 1")
    if requests >= len(trace):
        return trace
    rng = np.random.default_rng(seed)
    _, member = np.unique(_alone(trace.session), return_inverse=True)
    sizes = np.bincount(member)
    order = rng.permutation(len(sizes))
    enough = int(np.searchsorted(np.cumsum(sizes[order]), requests)) + 1
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[:enough]] = True
    return trace.taken(np.flatnonzero(chosen[member]))


def _alone(session: Nodes) -> Nodes:
    """Give every request without a session one of its own."""
    named = session.astype(np.int64)
    without = np.flatnonzero(session == NO_SESSION)
    named[without] = -2 - np.arange(len(without))
    return named.astype(np.int32)


def first_seen(values: Nodes) -> Nodes:
    """Number values from 0 in the order they first appear: nothing of the old numbers is left."""
    if not len(values):
        return values
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int32)
    number[np.argsort(first, kind="stable")] = np.arange(len(first))
    return number[inverse]
