"""Claims about report.html and the comparison page."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compress.errors import BadInput
from compress.scripts import report as report_script
from compress.scripts.lib import report_data
from compress.scripts.lib.html_report import write_html
from compress.scripts.lib.report_compare import write_comparison
from tests.scripts.fixture_runs import synthetic_report, write_run

HOSTILE = (
    "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}</svg></pre><!-- $\\frac"
)


class Page(HTMLParser):
    """Elements, ids, references and whether every element that opens also closes."""

    VOID = ("meta", "link", "img", "br", "hr", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> str:
    return write_html(write_run(tmp_path_factory.mktemp("run"))).read_text(encoding="utf-8")


def test_the_parts_come_in_the_order_a_reader_needs(finished):
    titles = re.findall(r"<h2>(.*?)</h2>", finished)
    assert titles == [
        "Notes", "What was asked", "What came out", "Loss curves", "Layers",
        "Which path the router chose", "What the teacher cost", "Routing", "Sparsity",
        "Calibration", "Exports and their verification", "Measured speed", "What they write",
        "Environment and command",
    ]  # fmt: skip


def test_the_headline_says_quality_size_verification_and_time(finished):
    tiles = re.findall(r'class="tile".*?<b[^>]*>(.*?)</b>', finished, flags=re.DOTALL)
    assert tiles == ["99.1 %", "4.41x", "yes", "6 min 3 s"]


def test_every_model_of_a_comparison_has_its_row(finished):
    text = Page(finished).text
    for name in ("Teacher", "Student, dense, before training", "Compressed, labels only"):
        assert name in text
    assert "3.4210" in text and "4.81 MB" in text


def test_the_page_is_small_self_contained_and_well_formed(finished):
    assert len(finished.encode()) < 1_000_000
    page = Page(finished)
    assert page.unbalanced == [] and page.open == []
    assert "script" not in page.tags and "link" not in page.tags
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,")), (name, value)
    assert not re.search(r"url\((?!#)", finished)


def test_ids_are_unique_and_every_reference_has_its_target(finished):
    attributes = Page(finished).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for name, value in attributes if name.endswith("href")}
    used |= set(re.findall(r"url\(#([^)]*)\)", finished))
    assert used and used <= set(ids)


def test_every_plot_has_words_for_those_who_cannot_see_it(finished):
    plots = re.findall(r"<svg[^>]*>", finished)
    assert len(plots) >= 6
    assert all('role="img"' in plot and len(plot.split('aria-label="')[1]) > 20 for plot in plots)
    assert re.findall(r"<th(?![a-z])(?![^>]*scope=)", finished) == []


def test_plots_take_their_colours_from_the_theme(finished):
    assert "prefers-color-scheme: dark" in finished
    styles = re.findall(r'style="[^"]*(?:fill|stroke): (?!none)([^;"]+)', finished)
    themed = [style for style in styles if style.startswith("var(--")]
    assert len(themed) > 50
    assert not re.findall(r"#0[12]0[012][0-9a-f]{2}", finished)


def test_ticks_are_numbers_a_person_reads(finished):
    assert "mathdefault" not in finished and "\\times" not in finished


def test_nothing_of_the_run_becomes_markup(tmp_path):
    report = synthetic_report(
        recipe=HOSTILE, command=HOSTILE, notes=[HOSTILE], status="failed", error=HOSTILE,
        environment={HOSTILE: HOSTILE}, asked={HOSTILE: {HOSTILE: HOSTILE}, "callbacks": {HOSTILE: 1}},  # noqa: E501
        samples=[{"prompt": HOSTILE, "teacher": HOSTILE, "compressed": HOSTILE}],
        layers=[{"name": f"model.layers.{i}.{HOSTILE}", "bits": i, "density": i / 4, "error": 0.1}
                for i in range(4)],
        exports=[{HOSTILE: HOSTILE, "scheme": HOSTILE, "verified": HOSTILE}],
        routing={"paths": {HOSTILE: 0.5}}, seconds={HOSTILE: 1.0},
        quality={**synthetic_report()["quality"], "metric": HOSTILE, "unit": HOSTILE},
    )  # fmt: skip
    folder = write_run(tmp_path, report)
    with (folder / "metrics.jsonl").open("a") as stream:
        for step in range(3):
            line = {"step": step, "phase": HOSTILE, "val/loss": 1.0 + step}
            stream.write(json.dumps(line | {f"train/{HOSTILE}": 2.0}) + "\n")
            stream.write(
                json.dumps({"step": step, "phase": "train", f"train/{HOSTILE}": 2.0}) + "\n"
            )
    page = Page(write_html(folder).read_text(encoding="utf-8"))
    assert "script" not in page.tags and "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.unbalanced == [] and page.open == []
    assert "alert(1)" in page.text and "{{ 7*7 }}" in page.text


@pytest.mark.parametrize("report", [
    {},
    {"schema": 1, "status": "failed", "error": "BadInput: no such path", "seconds": {"data": 1.0}},
    {"status": "interrupted", "error": {"type": "KeyboardInterrupt", "phase": "train"}},
    {"status": "finished", "quality": None, "size": [], "exports": None, "layers": [{}], "speed": 3,
     "samples": [None], "notes": None, "asked": "x", "routing": {"paths": None}, "seconds": None},
    {"status": "finished", "quality": {"metric": "accuracy", "compressed": "high", "teacher": True},
     "size": {"ratio": float("nan"), "teacher_bytes": 0}, "seconds": {"train": None},
     "layers": [{"name": "lm_head", "bits": None}], "teacher_cost": {"flops": 1, "x": None}},
])  # fmt: skip
def test_missing_values_show_as_dashes(tmp_path, report):
    html = write_html(write_run(tmp_path, report, steps=0)).read_text(encoding="utf-8")
    assert report_data.MISSING in html
    assert "None" not in Page(html).text


def test_a_failed_run_says_why(tmp_path):
    reason = "UnsupportedScheme: group_size=96 does not divide 2 of 42 layers"
    report = {"recipe": "qat", "status": "failed", "error": reason, "seconds": {"data": 2.0}}
    text = Page(write_html(write_run(tmp_path, report, steps=0)).read_text()).text
    assert reason in text and "did not finish: failed" in text and "timed: data" in text


def test_an_unverified_export_is_shown_as_such(tmp_path):
    report = synthetic_report(exports=[{"target": "vllm", "verified": False}])
    assert '<b class="bad">no</b>' in write_html(write_run(tmp_path, report)).read_text()


def test_a_thousand_layers_and_a_hundred_thousand_steps_stay_under_a_megabyte(tmp_path):
    parts = ("self_attn.q_proj", "self_attn.k_proj", "mlp.experts.{}.up_proj")
    layers = [
        {"name": f"model.layers.{i}.{part.format(e)}", "bits": 4 + 4 * (e % 2), "density": 1 / (1 + e),  # noqa: E501
         "error": i / 100}
        for i in range(80) for part in parts for e in range(20)
    ]  # fmt: skip
    folder = write_run(tmp_path, synthetic_report(layers=layers), steps=100_000)
    assert write_html(folder).stat().st_size < 1_000_000


def test_a_torn_line_and_values_that_are_no_numbers_are_counted_not_hidden(tmp_path):
    folder = write_run(tmp_path)
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 300, "phase": "train", "train/labels": NaN}\n{"step": 305, "pha')
    assert report_data.read_metrics(folder).left_out == 2
    assert "2 values were no finite numbers" in write_html(folder).read_text()


def test_a_repeated_step_counts_once_with_its_last_value(tmp_path):
    lines = [{"step": 1, "phase": "train", "val/loss": v} for v in (5.0, 4.0)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert report_data.read_metrics(tmp_path).curves == {"train": {"val/loss": [(1.0, 4.0)]}}


def test_the_same_run_gives_the_same_page(tmp_path):
    first = write_html(write_run(tmp_path)).read_bytes()
    assert write_html(tmp_path).read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "metrics.jsonl", "report.html", "report.json",
    ]  # fmt: skip


def test_a_comparison_shows_results_and_what_differs(tmp_path):
    a = write_run(tmp_path / "a")
    other = synthetic_report(command="python scripts/train.py seed=1")
    other["asked"] = {**other["asked"], "seed": 1}
    b = write_run(tmp_path / "b", other, seed=1)
    html = write_comparison([a, b], tmp_path / "both.html").read_text(encoding="utf-8")
    differs = html.split("Where the settings differ")[1]
    assert ">seed</th>" in differs and "trainer.max_steps" not in differs
    assert html.count("<svg") == 2 and Page(html).unbalanced == []


def test_a_comparison_of_different_data_warns(tmp_path):
    a = write_run(tmp_path / "a")
    other = synthetic_report()
    other["asked"] = {**other["asked"], "data": {"path": "mine.txt"}}
    b = write_run(tmp_path / "b", other)
    assert "different data" in write_comparison([a, b], tmp_path / "both.html").read_text()


def test_a_comparison_names_every_folder_that_is_no_run(tmp_path):
    with pytest.raises(BadInput) as error:
        write_comparison([tmp_path / "x", tmp_path / "y"], tmp_path / "both.html")
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("words, said", [
    ([], "give one of"),
    (["run_dir"], "no key=value"),
    (["rundir=x"], "Did you mean 'run_dir'?"),
    (["run_dir=nowhere"], "report.json cannot be read"),
    (["compare=a"], "two run folders"),
    (["run_dir=a", "out=b"], "out= belongs"),
])  # fmt: skip
def test_bad_input_is_one_line_and_status_2(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report_script.main(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err and len(captured.err.splitlines()) == 1 and captured.out == ""


def test_the_script_renders_again_and_compares(tmp_path, capsys):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    assert report_script.main([f"run_dir={a}"]) == 0 and (a / "report.html").exists()
    out = tmp_path / "both.html"
    assert report_script.main([f"compare={a},{b}", f"out={out}"]) == 0 and out.exists()
    assert str(out) in capsys.readouterr().out


def test_half_a_report_is_refused_by_name(tmp_path):
    (tmp_path / "report.json").write_text('{"schema": 1,')
    with pytest.raises(BadInput, match=r"report\.json is no JSON"):
        write_html(tmp_path)


def test_every_key_of_a_full_report_is_documented():
    documented = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    report = synthetic_report()
    keys = [
        *report,
        *(k for part in ("quality", "size", "routing", "teacher_cost") for k in report[part]),
    ]
    keys += [*report["quality"]["compare"], *report["layers"][0], *report["exports"][0]]
    assert [key for key in keys if f"`{key}`" not in documented] == []


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_chromium_finds_nothing_to_complain_about(tmp_path):
    page = write_html(write_run(tmp_path / "run"))
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom",
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "Environment and command" in done.stdout
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []


UPDATES = [
    {"step": step, "density": 1 - step / 20, "churn": 0.01 * step, "dead_neurons": 0,
     "layers": {"model.layers.0.mlp.up_proj": {"density": 0.5, "weights": 64}}}
    for step in (0, 5, 10)
]  # fmt: skip


def test_updates_of_masks_are_drawn_and_not_told_as_a_wall_of_figures(tmp_path):
    report = synthetic_report(sparsity={"pattern": "2:4", "layers": {}, "history": UPDATES})
    page = write_html(write_run(tmp_path, report)).read_text(encoding="utf-8")
    assert "Masks at each update" in page and "pattern" in page
    assert "dead_neurons" not in page and "&#39;step&#39;" not in page


def test_the_second_mask_of_a_run_has_a_part_of_its_own(tmp_path):
    report = synthetic_report(sparsity_heads={"pattern": "4:8"})
    page = write_html(write_run(tmp_path, report)).read_text(encoding="utf-8")
    assert "Sparsity heads" in page


def test_widths_that_shrank_are_drawn_and_the_depth_is_told(tmp_path):
    moves = [{"step": 0, "layers": 6, "ffn": 768}, {"step": 4, "layers": 4, "ffn": 384}]
    report = synthetic_report(pruning={"importance": "l1", "layers": 4, "history": moves})
    page = write_html(write_run(tmp_path, report)).read_text(encoding="utf-8")
    assert "Widths that are kept" in page and '<th scope="row">layers</th>' in page


def test_bytes_of_a_model_that_was_not_cut_are_not_those_of_the_pruned_one():
    rows = {row.key: row for row in report_data.model_rows(synthetic_report(pruning={"layers": 4}))}
    assert rows["start_ptq"].bytes is None and rows["compressed"].bytes


def test_a_callback_that_one_run_lacks_is_one_line_of_the_comparison(tmp_path):
    qat = {
        "_target_": "compress.callbacks.QuantizationAwareTraining",
        "scheme": "W8A8",
        "init": "mse",
    }
    for name, callbacks in (("a", {"qat": qat}), ("b", {})):
        write_run(tmp_path / name, synthetic_report(asked={"seed": 0, "callbacks": callbacks}))
    page = write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html")
    text = page.read_text(encoding="utf-8")
    assert "scheme=W8A8, init=mse" in text and "callbacks.qat.scheme" not in text


def test_paper_leaves_out_the_list_of_every_setting(tmp_path):
    page = write_html(write_run(tmp_path)).read_text(encoding="utf-8")
    assert '<details class="every">' in page
    assert re.search(r"@media print \{.*\.every \{ display:none", page, re.S)
