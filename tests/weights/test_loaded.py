"""Networks stay loaded, and are loaded one at a time."""

import time
from concurrent.futures import ThreadPoolExecutor

from reconx_core.weights.loaded import keep_loaded


def test_threads_load_one_network_at_a_time_and_each_once():
    under_way, most, loads = 0, 0, []

    def slowly(name):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        time.sleep(0.05)
        loads.append(name)
        under_way -= 1
        return object()

    loaders = [keep_loaded("one")(slowly), keep_loaded("other")(slowly)]
    with ThreadPoolExecutor(4) as pool:
        first, again, other, _ = [pool.submit(loaders[number], "a") for number in (0, 0, 1, 1)]
    assert first.result() is again.result()
    assert first.result() is not other.result()
    assert (most, loads) == (1, ["a", "a"])
