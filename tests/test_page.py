"""Does the HTML report work in a browser: no network, no error, tables that sort, runs that open, text as text?"""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from results import page as pages
from results.apart import apart
from results.gather import gather, manifest_of
from results.record import RunRecord, run_folder
from results.report import write_report
from results.section import Gathered, Section
from results.summary import summarise
from studies.tasks.image_files import FASHION_MNIST_MD5

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright drives the browser")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic",
]  # fmt: skip
HOSTILE = "</script><img src=x onerror=alert(1)> & \"quoted\" 'label' {{ 7 * 7 }}"
STUDY = f"""
'''Does <b>mixing</b> help?'''
from ldn import LDNConfig
from studies.spec import Budget, RunSpec, with_field
from studies.study import Study
from studies.tasks.digits import CuedDigits
from studies.tasks.images import FashionMNIST

ldn = RunSpec(
    model=LDNConfig(width=8, depth=1, heads=2),
    task=CuedDigits(train=64, valid=32, test=32),
    batch=16,
    budget=Budget(steps=4, evaluations=2),
)
STUDY = Study(
    question="Does <b>mixing</b> help?",
    reference="ldn",
    arms={{
        "ldn": ldn,
        {HOSTILE!r}: with_field(ldn, "model.steps", 0),
        "too fast": with_field(ldn, "optim.lr", 1e30),
        "no data": with_field(ldn, "task", FashionMNIST()),
        "not yet": with_field(ldn, "model.steps", 3),
    }},
    seeds=(0, 1),
)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was run: two arms are done, one diverged, the data of one is damaged, one was not run."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "mine.py").write_text(STUDY)
    for name in FASHION_MNIST_MD5:  # were they missing, nothing would be begun
        (folder / "data" / "fashion-mnist").mkdir(parents=True, exist_ok=True)
        (folder / "data" / "fashion-mnist" / name).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("runs", "data", "reports"):
            patch.setenv(f"LDN_{name.upper()}", str(folder / name))
        patch.setattr(sys, "argv", ["studies", "run", "mine.py", "--on", "inline"])
        with pytest.raises(SystemExit):
            runpy.run_module("studies", run_name="__main__", alter_sys=True)
    frame = gather(folder / "runs", "mine")
    for run_id in frame["run_id"][frame["arm"] == "not yet"]:
        shutil.rmtree(run_folder(folder / "runs", run_id))
    return folder / "runs"


@pytest.fixture(scope="module")
def report(runs: Path) -> Path:
    return write_report(runs, "mine", runs.parent / "reports").folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser ({', '.join(BROWSERS)}) is there: `apt-get install chromium` installs one")
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=path, args=QUIET)
        yield started
        started.close()


@pytest.fixture
def page(browser: sync_api.Browser, report: Path) -> Iterator[sync_api.Page]:
    """The report, open; afterwards it must have complained about nothing and asked for nothing."""
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda request: request.url.startswith("data:image/") or asked.append(request.url))
    asked: list[str] = []
    opened.goto(report.as_uri())
    yield opened
    opened.close()
    assert wrong == [] and asked == [report.as_uri()]


ARMS = "section[aria-labelledby=arms-title] table"  # other sections have sortable tables too


def column(page: sync_api.Page, table: str, place: int) -> list[str]:
    return page.locator(f"{table} tbody tr td:nth-child({place})").all_inner_texts()


def open_run(page: sync_api.Page, arm: str) -> sync_api.Locator:
    page.get_by_role("searchbox").fill(arm)
    page.locator("#all tbody button").first.click()
    return page.locator(".sheet").first


def test_the_report_shows_question_arms_and_why_runs_are_missing(page: sync_api.Page) -> None:
    assert page.title() == "mine: Does <b>mixing</b> help?"
    assert page.locator("h1").inner_text() == "Does <b>mixing</b> help?"
    assert "4 of 10 runs are done" in page.locator("header").inner_text()
    rows = column(page, "table.sortable", 1)
    assert rows[:5] == ["ldn (reference)", HOSTILE, "too fast", "no data", "not yet"] and "chance" in rows[5:]
    why = page.locator("section").first.locator("li").all_inner_texts()
    assert any("not yet: 2 not run yet." in line for line in why), why
    assert any("no data: 2 failed: ValueError" in line for line in why), why
    assert page.locator("table.sortable strong").count() >= 1


def test_what_a_label_says_stays_text(page: sync_api.Page) -> None:
    assert page.locator("img[src=x]").count() == 0
    assert HOSTILE in page.locator("#all").inner_text()
    sheet = open_run(page, "onerror")
    assert "model.steps" in sheet.inner_text() and page.locator("b").count() == 0


def test_a_click_on_a_header_sorts_by_value_with_missing_last(page: sync_api.Page) -> None:
    header = page.locator("table.sortable").first.locator("th").nth(1)
    before = column(page, "table.sortable", 1)
    orders = []
    for expected in ("ascending", "descending", "none"):
        header.get_by_role("button").click()
        assert header.get_attribute("aria-sort") == expected
        orders.append(column(page, "table.sortable", 2))
    orders = [order[:5] for order in orders]  # below them what is no arm
    means = [[float(text.strip("\u2007 ").split()[0]) for text in order if text != "–"] for order in orders]
    assert len(means[0]) == 2 and means[0] == sorted(means[0]) and means[1] == sorted(means[1], reverse=True)
    assert all(order[2:] == ["–"] * 3 for order in orders[:2])
    assert column(page, "table.sortable", 1) == before


def test_headers_sort_from_the_keyboard(page: sync_api.Page) -> None:
    page.locator("#all th button").nth(1).focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert column(page, "#all", 2) == ["1"] * 5 + ["0"] * 5


def test_runs_are_found_by_text_and_status(page: sync_api.Page) -> None:
    page.get_by_role("searchbox").fill("too FAST")
    assert column(page, "#all", 3) == ["diverged"] * 2
    assert page.locator("#count").inner_text() == "2 of 10 runs"
    page.get_by_role("searchbox").fill("")
    page.get_by_label("Status").select_option("missing")
    assert column(page, "#all", 1) == ["not yet"] * 2


def test_a_run_costs_in_the_table_of_runs_what_its_arm_costs(page: sync_api.Page) -> None:
    heads = [page.locator(f"{table} th").all_inner_texts() for table in (ARMS, "#all")]
    arms, runs = (
        column(page, table, 1 + head.index("kMAC")) for table, head in zip((ARMS, "#all"), heads, strict=True)
    )
    assert runs == [cell for cell in arms if cell for seed in range(2)]  # what is no arm costs nothing


def test_an_opened_run_shows_its_whole_record(page: sync_api.Page, runs: Path) -> None:
    sheet = open_run(page, "ldn")
    run_id = page.locator("#all tbody tr").first.locator("td").last.inner_text()
    record = json.loads((run_folder(runs, run_id) / "record.json").read_text())
    assert json.loads(sheet.locator(".spec").inner_text()) == record["config"]
    text = sheet.inner_text()
    assert record["weights_hash"] in text and f"{record['metrics']['test']['loss']:.6g}" in text
    assert sheet.locator(".log").text_content() == (run_folder(runs, run_id) / "curve.csv").read_text().strip()
    assert sheet.locator("svg").count() >= 3
    links = sheet.locator(".files a").evaluate_all("links => links.map(link => link.href)")
    assert (run_folder(runs, run_id) / "record.json").as_uri() in links
    page.locator("#all tbody button").first.click()
    assert page.locator(".sheet").count() == 0


def test_a_failed_run_shows_its_traceback_and_a_diverged_one_its_reason(page: sync_api.Page) -> None:
    failed = open_run(page, "failed")
    assert failed.locator(".traceback").inner_text().startswith("Traceback (most recent call last):")
    assert "does not begin like an idx file" in failed.locator(".traceback").inner_text()
    page.get_by_role("searchbox").fill("diverged")
    page.locator("#all tbody button").first.click()
    text = page.locator(".sheet").first.inner_text()
    assert "diverged: the loss is no longer finite" in text and re.search(r"optim.lr\s+1e\+30", text)


def test_a_run_has_an_address_of_its_own(page: sync_api.Page, runs: Path) -> None:
    run_id = gather(runs, "mine")["run_id"].iloc[-1]
    page.evaluate("id => { location.hash = `run-${id}` }", run_id)
    page.locator(f"[id=run-{run_id}]").wait_for()
    assert "None yet" in page.locator(".sheet").inner_text()


def test_nothing_is_wider_than_a_phone(page: sync_api.Page) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    open_run(page, "failed")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_figures_are_in_the_file_and_the_file_is_the_same_each_time(
    page: sync_api.Page, runs: Path, report: Path
) -> None:
    loaded = page.locator("figure img").evaluate_all("images => images.map(image => image.naturalWidth > 0)")
    assert loaded == [True] * 3
    again = write_report(runs, "mine", runs.parent / "again").folder / "report.html"
    assert again.read_bytes() == report.read_bytes()


def test_many_runs_are_shown_a_page_at_a_time_and_sections_have_their_tables(
    browser: sync_api.Browser, runs: Path, tmp_path: Path
) -> None:
    records: dict[str, RunRecord] = {}
    frame, manifest = gather(runs, "mine", records), manifest_of(runs, "mine")
    many = frame.loc[frame.index.repeat(25)].reset_index(drop=True)
    summary = summarise(frame, manifest.metric, manifest.direction)
    table = summary[["arm", "mean"]].assign(p=[0.5, 0.04, float("nan"), 1e-9, 2.0])
    others, sections = apart(frame, manifest.metric), [Section("Tests", ["<i>Why</i>"], {"p": table})]
    html = pages.page(
        Gathered(runs, manifest, many, summary, records), tmp_path, others, [], [], Section(""), {}, sections
    )
    (tmp_path / "many.html").write_text(html)
    opened = browser.new_page()
    opened.goto((tmp_path / "many.html").as_uri())
    assert opened.locator("#all tbody tr").count() == 100 and opened.locator("#where").inner_text() == "1 to 100"
    for _ in range(2):
        opened.get_by_role("button", name="Next").click()
    assert opened.locator("#where").inner_text() == "201 to 250" and opened.locator("#after").is_disabled()
    tests = opened.locator("table.sortable").nth(1)
    tests.get_by_role("button", name="p", exact=True).click()
    assert tests.locator("td:last-child").all_inner_texts() == ["1e-09", "0.04", "0.5", "2", ""]
    assert opened.get_by_text("<i>Why</i>").count() == 1
    opened.close()
