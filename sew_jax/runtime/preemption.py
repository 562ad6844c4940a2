"""When to stop: SIGTERM, Ctrl-C, and what a cluster sends before it takes a machine; at one update for all."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from sew_jax.console import say


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], str]]:
    """Yields a function of the updates done: why to stop here, or nothing. Ask it once before each update.

    The first signal is a request, a second one is answered that saving goes on, and a third acts as usual. Of several
    processes any one may get the signal: JAX passes it on and names an update that none has passed
    (`multihost_utils.reached_preemption_sync_point`). There SIGTERM is JAX's own, and a third one changes nothing
    either.
    """
    received: list[str] = []
    usual = {}
    alone = jax.process_count() == 1
    if not alone and global_state.preemption_sync_manager is None:  # before, a signal ends what has nothing to save
        jax.config.update("jax_enable_preemption_service", True)
        global_state.initialize_preemption_sync_manager()

    def note(number, _frame):
        received.append(signal.Signals(number).name)
        if len(received) == 1 and not alone:
            signal.raise_signal(signal.SIGTERM)  # JAX listens to this one
        elif len(received) == 1:
            say(f"{received[0]}: finishing this update, then saving")
        else:
            say(f"{received[-1]} again: still saving; a third one gives up what was done since the last checkpoint")
            for each, handler in usual.items():
                signal.signal(each, handler)

    def reached(step: int) -> str:
        if alone:
            return received[0] if received else ""
        return "a signal to one of the processes" if multihost_utils.reached_preemption_sync_point(step) else ""

    with contextlib.suppress(ValueError):  # signals belong to the main thread; elsewhere there are none to catch
        for number in (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,):
            usual[number] = signal.signal(number, note)
    try:
        yield reached
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
