"""A few rounds of the fault loop, elsewhere at each run."""

import random

from tests.fault_loop import fault_loop


def test_runs_that_are_ended_at_random_lose_nothing(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    try:
        assert fault_loop(2, seed, tmp_path, updates=16).total() == 2
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error
