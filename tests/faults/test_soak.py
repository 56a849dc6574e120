from tests.faults.soak import soak


def test_a_run_killed_at_random_moments_ends_as_one_left_alone():
    assert soak(kills=4, seed=1, report=False)
