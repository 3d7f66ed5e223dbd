"""Is every run that is offered taken once, by whoever is free, and offered again when its taker is gone?"""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from results.record import RunRecord, write_record
from studies import offers
from studies.offers import Offers, Taker
from studies.packed import pack
from studies.spec import RunSpec, canonical, with_field
from tests.test_drive import LINEAR
from tests.test_slurm import Scripted

SPECS = [with_field(LINEAR, "seed", seed) for seed in range(8)]
IDS = [spec.run_id for spec in SPECS]


def offered(folder: Path, specs: list[RunSpec] = SPECS) -> Offers:
    found = Offers(folder)
    for spec in specs:
        found.offer(spec)
        time.sleep(0.002)  # an order needs times that differ
    return found


def take(taker: Taker, number: int) -> list[str]:
    return [spec.run_id for _ in range(number) if (spec := taker.next()) is not None]


def test_runs_are_taken_in_order_and_ends_are_told_once(tmp_path: Path) -> None:
    driver, one, other = offered(tmp_path), Taker(tmp_path, "a.0"), Taker(tmp_path, "a.1")
    assert take(one, 2) + take(other, 2) == IDS[:4]
    assert driver.waiting() == 4 and driver.held() == {"a.0": sorted(IDS[:2]), "a.1": sorted(IDS[2:4])}
    one.ended(IDS[0])
    other.ended(IDS[3])
    assert sorted(driver.ended()) == sorted([IDS[0], IDS[3]]) and driver.ended() == []
    assert one.next() == SPECS[4]  # the very spec


def test_of_many_takers_one_gets_a_run(tmp_path: Path) -> None:
    offered(tmp_path)
    taken: list[str] = []
    takers = [Taker(tmp_path, f"a.{i}") for i in range(8)]
    threads = [threading.Thread(target=lambda t=t: taken.extend(take(t, 8))) for t in takers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(taken) == Counter(IDS)


def test_a_worker_in_its_next_life_goes_on_with_what_it_held(tmp_path: Path) -> None:
    driver = offered(tmp_path)
    first = take(Taker(tmp_path, "a.0"), 3)
    assert take(Taker(tmp_path, "a.0"), 4) == [*first, IDS[3]]
    assert not driver.give_back("a.0") and driver.held() == {}
    assert take(Taker(tmp_path, "a.1"), 8) == IDS  # what was given back comes first


def test_what_was_given_to_another_is_no_concern_of_the_former(tmp_path: Path) -> None:
    driver, slow = offered(tmp_path, SPECS[:2]), Taker(tmp_path, "a.0")
    assert take(slow, 1) == IDS[:1]
    revived = Taker(tmp_path, "a.0")
    driver.give_back("a.0")
    assert take(Taker(tmp_path, "a.1"), 1) == IDS[:1]
    assert take(revived, 1) == IDS[1:2]
    slow.ended(IDS[0])
    assert driver.ended() == []  # the one that has it now will say so


def test_a_new_driver_offers_anew_and_leaves_what_is_held(tmp_path: Path) -> None:
    offered(tmp_path).close()
    taker = Taker(tmp_path, "a.0")
    assert not taker.expects() and take(taker, 1) == IDS[:1]
    again = Offers(tmp_path)
    assert again.waiting() == 0 and again.held() == {"a.0": IDS[:1]} and taker.expects()


def test_a_worker_waits_for_runs_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, taker = Offers(tmp_path), Taker(tmp_path, "a.0")
    monkeypatch.setattr(offers, "IDLE_SECONDS", 0.3)
    assert taker.expects()
    time.sleep(0.35)
    assert not taker.expects()
    taker.leave()
    assert driver.give_back("a.0") and driver.held() == {}
    assert not driver.give_back("a.0")  # it was no worker's any more


def test_it_is_told_where_runs_are_and_which_workers_were_good(tmp_path: Path) -> None:
    driver, one, other = offered(tmp_path, SPECS[:4]), Taker(tmp_path, "a.0"), Taker(tmp_path, "a.1")
    take(one, 1), take(other, 1)
    one.ended(IDS[0])
    assert driver.placed() == set(IDS[:4])
    assert driver.ended() == IDS[:1] and driver.placed() == set(IDS[1:4])
    assert driver.give_back("a.0") and not driver.give_back("a.1")
    driver.withdraw()
    assert driver.placed() == set() and take(other, 1) == []


def test_workers_end_all_that_is_offered_while_they_run(tmp_path: Path) -> None:
    """Two workers, four slots; some runs are offered late, one dies at first, one has a record already."""
    driver = offered(tmp_path / "offered", SPECS[:5])
    write_record(tmp_path, RunRecord(run_id=IDS[1], spec=canonical(SPECS[1]), status="done"))
    executors = [Scripted(tmp_path, 2, {}, Counter({i: 1 for i in IDS[:1]})) for _ in range(2)]
    left: list[list[str]] = []

    def work(number: int) -> None:
        left.append(pack(Taker(tmp_path / "offered", f"a.{number}"), executors[number], tmp_path))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    ended: list[str] = []
    until = time.monotonic() + 30
    while len(ended) < 5 and time.monotonic() < until:
        ended += driver.ended()
    for spec in SPECS[5:]:
        driver.offer(spec)
    while len(ended) < 8 and time.monotonic() < until:
        ended += driver.ended()
    driver.close()
    for thread in threads:
        thread.join(10)
    assert Counter(ended) == Counter(IDS) and left == [[], []]
    submitted = Counter(executors[0].submitted + executors[1].submitted)
    assert submitted[IDS[1]] == 0 and all(submitted[i] >= 1 for i in IDS if i != IDS[1])


def test_a_worker_that_is_stopped_keeps_what_it_had_begun(tmp_path: Path) -> None:
    driver = offered(tmp_path / "offered")
    executor = Scripted(tmp_path, 2, dict.fromkeys(IDS, 99))
    taker = Taker(tmp_path / "offered", "a.0")
    left = pack(taker, executor, tmp_path, lambda: len(executor.submitted) == 2)
    assert sorted(left) == sorted(IDS[:2]) and driver.waiting() == 6
    assert driver.held() == {"a.0": sorted(IDS[:2])} and driver.ended() == []
