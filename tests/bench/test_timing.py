"""The timing loop under a clock that the test moves by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from btr_kernels.bench.timing import MIN_ROUNDS, POOL_CACHES, SAMPLE_SECONDS, Clock, Pool, Timing, alternate, pool_size


class FakeTime:
    """A clock that only contenders move; CPU time runs at half the speed of wall time."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def clock(self) -> Clock:
        return Clock(wall=lambda: self.now, cpu=lambda: self.now / 2, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.calls.append(("sleep", seconds))

    def contender(self, name: str, *seconds: float):
        """Takes each of `seconds` in turn, the last one for ever."""
        durations = iter(seconds)
        state = SimpleNamespace(last=seconds[0])

        def run(inputs) -> None:
            state.last = next(durations, state.last)
            self.now += state.last
            self.calls.append((name, inputs))

        return run


def test_medians_of_wall_and_cpu_time():
    fake = FakeTime()
    contenders = {"ours": fake.contender("ours", 1.0), "baseline": fake.contender("baseline", 3.0)}
    timings = alternate(contenders, Pool([0]), 40.0, fake.clock())
    assert timings["ours"].median("wall") == pytest.approx(1.0)
    assert timings["ours"].median("cpu") == pytest.approx(0.5)
    assert timings["baseline"].median("wall") == pytest.approx(3.0)


def test_a_single_slow_call_moves_the_mean_but_not_the_median():
    fake = FakeTime()
    slow_third_sample = fake.contender("ours", 1.0, 1.0, 1.0, 50.0, 1.0)
    timing = alternate({"ours": slow_third_sample}, Pool([0]), 1.0, fake.clock(), min_rounds=9)["ours"]
    assert max(timing.wall) == pytest.approx(50.0)
    assert timing.median("wall") == pytest.approx(1.0)


def test_contenders_take_turns_in_rotating_order():
    fake = FakeTime()
    contenders = {name: fake.contender(name, 1.0) for name in "abc"}
    alternate(contenders, Pool([0]), 0.0, fake.clock(), min_rounds=3)
    # One call tells that these are long.
    warm_up = len(contenders)
    assert [name for name, _ in fake.calls[warm_up:]] == [*"abc", *"bca", *"cab"]


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, MIN_ROUNDS), (21.0, 20), (1e9, 30)])
def test_number_of_rounds(seconds, rounds):
    fake = FakeTime()
    timings = alternate({"ours": fake.contender("ours", 1.0)}, Pool([0]), seconds, fake.clock(), max_rounds=30)
    assert len(timings["ours"].wall) == len(timings["ours"].cpu) == rounds


def test_short_calls_are_repeated_within_a_sample_and_divided_out():
    fake = FakeTime()
    seconds = SAMPLE_SECONDS / 10
    timing = alternate({"ours": fake.contender("ours", seconds)}, Pool([0]), 0.0, fake.clock(), min_rounds=1)["ours"]
    assert len(fake.calls) - 2 in (10, 11)
    assert timing.wall == [pytest.approx(seconds)]


def test_a_sample_never_reuses_a_set_of_a_rotated_pool():
    fake = FakeTime()
    pool = Pool(range(3))
    alternate({"ours": fake.contender("ours", SAMPLE_SECONDS / 100)}, pool, 0.0, fake.clock(), min_rounds=1)
    sample = [inputs for _, inputs in fake.calls[2:]]
    assert sorted(sample) == [0, 1, 2]


def test_warm_calls_are_not_timed():
    fake = FakeTime()
    # Warm-up once, then before every sample two untimed calls, one of them slower.
    run = fake.contender("ours", 1.0, 9.0, 5.0, 1.0, 9.0, 5.0, 1.0)
    timing = alternate({"ours": run}, Pool([0]), 0.0, fake.clock(), warm=2, min_rounds=2)["ours"]
    assert timing.wall == [pytest.approx(1.0)] * 2


def test_threads_come_to_rest_before_a_sample_and_wake_up_outside_of_it():
    fake = FakeTime()
    contenders = {"ours": fake.contender("ours", 1.0), "baseline": fake.contender("baseline", 1.0)}
    timings = alternate(contenders, Pool([0]), 0.0, fake.clock(), warm=1, settle=0.5, min_rounds=1)
    sample = [("sleep", 0.5), ("ours", 0), ("ours", 0), ("sleep", 0.5), ("baseline", 0), ("baseline", 0)]
    assert fake.calls[len(contenders) :] == sample
    assert timings["baseline"].wall == [pytest.approx(1.0)]


def test_spread_is_the_interquartile_range():
    assert Timing(wall=[1.0, 2.0, 3.0, 4.0, 5.0]).spread("wall") == pytest.approx(100 * (4 - 2) / 3)
    assert Timing(wall=[2.0]).spread("wall") == 0.0


def test_pool_is_larger_than_the_cache_unless_the_case_stays_in_it():
    cache = 1000
    assert pool_size(300, cache, in_cache=True) == 1
    assert pool_size(10 * cache, cache, in_cache=False) == 1
    for set_bytes in (1, 7, 300, 999):
        count = pool_size(set_bytes, cache, in_cache=False)
        assert (count - 1) * set_bytes < POOL_CACHES * cache <= count * set_bytes


def test_pool_hands_out_all_sets_in_turn():
    pool = Pool("abc")
    assert "".join(pool.next() for _ in range(7)) == "abcabca"
