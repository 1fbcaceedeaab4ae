"""The benchmarks run, everyone computes the same thing, and README's tables are what was measured. Never a time."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from benchmarks import cli, errors, limits, machine, memory, readme, runner, tables, timing, versions, views
from benchmarks.case import Case, Contender, Inputs, Settings, Shape
from benchmarks.contenders import SUITES
from benchmarks.stats import summary
from mast_ops import FactorizedViews

ROOT = Path(__file__).parent.parent
MARKED = {
    page: "\n".join(f"<!-- benchmarks:{name} -->\nstale table\n<!-- /benchmarks:{name} -->" for name in parts)
    for page, parts in readme.PAGES.items()
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What one short run prints, and the file it writes."""
    path = tmp_path_factory.mktemp("results") / "cpu" / "short.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--seconds", "0.05", "--no-compile", "--device", "cpu"]
    suites = ["--suite", "pairs-mean", "info-nce", "moments", "scaling"]
    done = subprocess.run(
        [*command, *suites, "--json", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, path


@pytest.fixture
def document(run: tuple[str, Path]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(run[1].read_text())
    return loaded


def test_a_run_records_where_its_figures_come_from(document: dict[str, Any]):
    assert document["schema"] == cli.SCHEMA
    assert {"cpu", "cores", "threads", "memory_bytes", "gpu", "os"} <= document["machine"].keys()
    assert document["versions"]["torch"] == torch.__version__
    assert document["command"].startswith("python -m benchmarks --quick")
    assert document["arguments"]["seconds"] == 0.05
    assert document["ceilings"]["bandwidth"] > 0
    assert document["ceilings"]["flops"] == max(document["ceilings"]["products"].values())
    if sys.platform.startswith("linux"):
        assert document["environment"]["MALLOC_MMAP_THRESHOLD_"] == "1073741824"


def test_a_run_measures_every_contender_in_turn(run: tuple[str, Path], document: dict[str, Any]):
    printed, _ = run
    assert document["operators"].keys() == {"pairs-mean", "info-nce", "moments"}
    for name, operator in document["operators"].items():
        rows = operator["rows"]
        assert len({row["repeats"] for row in rows}) == 1
        assert {"ours", "loop"} <= {row["role"] for row in rows}
        assert operator["limit"]["total_ms"] > operator["limit"]["forward_ms"] > 0
        assert tables.heading(name, operator) in printed
        assert "loop over K, compiled" in operator["skipped"] or name == "moments"
        for row in rows:
            assert row["name"] in printed
            assert row["total_ms"]["q1"] <= row["total_ms"]["median"] <= row["total_ms"]["q3"]
            assert row["bytes"].keys() == {"peak", "held", "saved"}


def test_no_contender_is_wrong(document: dict[str, Any]):
    errors_ = {row["name"]: row["error"] for op in document["operators"].values() for row in op["rows"]}
    assert all(error < 1e-4 for error in errors_.values()), errors_


def test_a_run_sweeps_sizes_and_draws_them(run: tuple[str, Path], document: dict[str, Any]):
    assert {(p["operator"], p["axis"]) for p in document["scaling"]} == {
        (operator, axis) for operator in ("pairs-mean", "info-nce") for axis in "knd"
    }
    assert all({row["role"] for row in point["rows"]} == {"ours", "loop"} for point in document["scaling"])
    assert run[1].with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("suite", sorted(SUITES.keys() - {"pairs-mean", "info-nce", "moments"}))
def test_other_suites_compute_the_same_thing(suite: str):
    settings = Settings(quick=True, compile=False, seconds=1e-3)
    for make in SUITES[suite]:
        result = runner.run_case(make(settings), settings, limits.Ceilings(1e9, 1e9))
        assert {"ours", "loop"} <= {row["role"] for row in result["rows"]}
        assert not [reason for reason in result["skipped"].values() if reason.startswith("failed")]
        for row in result["rows"]:
            assert row["error"] < 1e-4, row["name"]


def test_readme_tables_are_written_and_checked(run: tuple[str, Path], document: dict[str, Any], tmp_path: Path):
    for page, text in MARKED.items():
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page).write_text(text)
    results = run[1].parent.parent
    where = ["--root", str(tmp_path), "--results", str(results)]
    with pytest.raises(SystemExit, match=r"README\.md: got .*, wanted"):
        readme.main([*where, "--check"])
    assert (tmp_path / "README.md").read_text() == MARKED["README.md"]
    readme.main(where)
    full = (results / "README.md").read_text()
    for row in document["operators"]["info-nce"]["rows"]:
        assert row["name"] in full
    readme.main([*where, "--check"])
    assert "stale table" not in "".join((tmp_path / page).read_text() for page in MARKED)
    costs = (tmp_path / "benchmarks" / "README.md").read_text()
    assert "Not measured." in costs  # no GPU
    assert document["command"] in costs
    assert "**info-nce**" in costs
    (results / "README.md").unlink()
    with pytest.raises(SystemExit, match=r"README\.md: got"):
        readme.main([*where, "--check"])


@pytest.mark.parametrize("page", MARKED)
def test_a_stale_page_fails_the_check(page: str, tmp_path: Path):
    results = tmp_path / "benchmarks" / "results"
    shutil.copytree(ROOT / "benchmarks" / "results", results)
    for name in MARKED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / name).read_text()
        (tmp_path / name).write_text(text.replace(" -->\n", " -->\nstale ", 1) if name == page else text)
    with pytest.raises(SystemExit, match=f"{re.escape(str(tmp_path / page))}: got"):
        readme.main(["--root", str(tmp_path), "--results", str(results), "--check"])


def test_readme_keeps_the_newest_of_each_operator(document: dict[str, Any], tmp_path: Path):
    older = document | {"date": "2000-01-01T00:00:00+00:00", "command": "python -m benchmarks # old"}
    folder = tmp_path / "cpu"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(document))
    (folder / "b.json").write_text(json.dumps(older))
    text = readme.block(folder, tmp_path)
    assert text.count("**info-nce**") == 1
    assert "# old" not in text


def test_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match="got 0 markers <!-- benchmarks:cpu -->, wanted one"):
        readme.replace("nothing", "cpu", "table")


def test_our_readme_is_up_to_date():
    readme.main(["--check"])


def test_summary_is_the_median_and_its_quartiles():
    assert summary([0.001, 0.002, 0.003, 0.004, 0.1]) == pytest.approx(
        {"median": 3.0, "q1": 2.0, "q3": 4.0, "min": 1.0}
    )
    assert summary([0.002]) == {"median": 2.0, "q1": 2.0, "q3": 2.0, "min": 2.0}
    with pytest.raises(ValueError, match="got none, wanted at least one"):
        summary([])


H100 = limits.Ceilings(bandwidth=3.0e12, flops=798e12)


def test_limit_of_pairs_is_their_bytes():
    limit = limits.pairs(4096, 8192, 15, 2).limit(H100)
    assert limit["forward_ms"] == pytest.approx(0.045, rel=0.01)
    assert limit["total_ms"] == pytest.approx(0.135, rel=0.01)
    arithmetic = limits.pairs(4096, 8192, 15, 2).limit(limits.Ceilings(3.0e12, 1e12))
    assert arithmetic["total_ms"] == pytest.approx(6 * 4096 * 8192 * 15 / 1e9)


def test_limit_of_contrast_computes_scores_again_or_keeps_them_as_is_faster():
    again = limits.info_nce(32768, 256, 15, 2).limit(H100)
    assert again["forward_ms"] == pytest.approx(10.3, rel=0.01)
    assert again["total_ms"] == pytest.approx(41.3, rel=0.01)
    kept = limits.info_nce(32768, 1024, 15, 2).limit(H100)
    unit = 2 * 32768**2 * 1024 * 15 / 798e9
    assert kept["total_ms"] == pytest.approx(3 * unit + 2 * 32768**2 * 15 * 2 / 3e9)
    assert limits.info_nce(64, 32, 0.5, 4).total[0].flops == limits.info_nce(64, 32, 1, 4).total[0].flops / 2


def test_symmetry_halves_the_least_work():
    full = limits.info_nce(2 * 64, 32, 3, 4).total[0].flops
    assert limits.nt_xent(64, 32, 3, 4).total[0].flops == full / 2
    assert limits.moments(64, 32, 1, 4).forward.flops == 64 * 32**2 + 32**2


def test_contenders_take_turns_on_changing_inputs():
    calls: list[tuple[str, int]] = []

    def repeat(name: str) -> timing.Repeat:
        return lambda number: (calls.append((name, number)), timing.Sample(1.0, 2.0))[1]

    samples = timing.interleave({name: repeat(name) for name in "abc"}, 1e-9, 2, lambda: None)
    assert calls == [("a", 0), ("b", 1), ("c", 2), ("b", 3), ("c", 4), ("a", 5)]
    assert {name: len(values) for name, values in samples.items()} == {"a": 2, "b": 2, "c": 2}


def test_memory_counts_what_is_kept_and_the_peak():
    x = torch.rand(1000, 1000, requires_grad=True)
    counted = memory.measure(lambda x: (2 * x).square().sum(), Inputs((x,)))
    assert counted["saved"] == pytest.approx(x.nbytes, rel=0.01)
    assert counted["held"] == pytest.approx(x.nbytes, rel=0.01)
    assert x.nbytes <= counted["peak"] <= 4.01 * x.nbytes


def test_memory_sees_what_a_checkpoint_keeps():
    x = torch.rand(1000, 1000, requires_grad=True)
    counted = memory.measure(lambda x: checkpoint(torch.square, 2 * x, use_reentrant=False).sum(), Inputs((x,)))
    assert counted["held"] >= x.nbytes


def test_errors_are_relative_to_the_largest_entry():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    wanted = errors.reference(lambda x: x.square().sum(), Inputs((x,)))
    assert errors.worst(errors.outcome(lambda x: x.square().sum(), Inputs((x,))), wanted) == 0
    assert errors.worst(errors.outcome(lambda x: 1.5 * x.square().sum(), Inputs((x,))), wanted) == pytest.approx(0.5)
    assert errors.worst(errors.outcome(lambda x: (x * math.nan).sum(), Inputs((x,))), wanted) == math.inf


def case_of(*contenders: Contender) -> Case:
    work = limits.pairs(2, 2, 1, 4)

    def draw(generator: torch.Generator) -> Inputs:
        return Inputs((torch.rand(4, generator=generator, requires_grad=True),))

    return Case("case", "title", Shape(2, 2, 1), draw, contenders, lambda x: x.square().sum(), work)


def test_what_is_left_out_says_why():
    right = Contender("right", lambda x: x.square().sum(), "loop")
    large, broken = Contender("large", right.loss, needs=1e12), Contender("broken", lambda x: 1 / 0)
    contenders = (right, right.compiled(), large, broken)
    settings = Settings(quick=True, compile=False, seconds=1e-3)
    result = runner.run_case(case_of(*contenders), settings, H100)
    assert [row["name"] for row in result["rows"]] == ["right"]
    assert result["skipped"] == {
        "right, compiled": "torch.compile was left out of this run",
        "large": "needs 1000 GB, more than 4 GB",
        "broken": "failed: ZeroDivisionError: division by zero",
    }
    assert result["rows"][0]["loop_over_it"] == 1
    assert result["rows"][0]["it_over_ours"] is None
    ours = Contender("mast_ops", lambda x: 1 / 0, "ours")
    with pytest.raises(ZeroDivisionError):
        runner.run_case(case_of(ours), settings, H100)


def test_a_wrong_contender_is_marked():
    settings = Settings(quick=True, compile=False, seconds=1e-3)
    contenders = (Contender("wrong", lambda x: x.sum()), Contender("lost", lambda x: x.sum() * math.nan))
    result = runner.run_case(case_of(*contenders), settings, H100)
    printed = tables.text("case", result)
    assert "wrong (WRONG)" in printed
    assert "not finite" in printed


def test_tables_have_as_many_cells_in_every_row(document: dict[str, Any]):
    operator = document["operators"]["moments"]
    lines = [line for line in tables.markdown("moments", operator).splitlines() if line.startswith("|")]
    assert len(lines) == len(operator["rows"]) + 3  # header, rule, limit
    assert {line.count("|") for line in lines} == {len(tables.HEADER) + 1}


def test_numbers_have_three_digits_and_no_exponent():
    values = (None, 0.0123, 0.5, 1.234, 12.34, 123.4, 12345.6)
    assert [tables.number(x) for x in values] == ["-", "0.012", "0.500", "1.23", "12.3", "123", "12,346"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--seconds", "0"], "--seconds: got 0.0, wanted > 0"),
        (["--only", "("], "--only: got '(', wanted a regular expression"),
        (["--suite", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_bad_arguments_are_named(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.parse(argv)
    assert words in capsys.readouterr().err


def test_an_expression_that_finds_nobody_is_refused():
    settings = Settings(quick=True, compile=False, only="nobody")
    with pytest.raises(SystemExit, match=r"only: got 'nobody', wanted .* mast_ops"):
        cli.measure(["pairs"], settings)


def test_a_run_that_is_cut_off_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Every case is in the file as soon as it is measured, and is not measured again."""
    result = json.loads((ROOT / "benchmarks" / "results" / "cpu" / "all.json").read_text())["operators"]["moments"]
    path, measured = tmp_path / "out.json", []
    argv = ["--quick", "--no-compile", "--device", "cpu", "--suite", "pairs-mean", "info-nce", "--json", str(path)]

    def run_case(case: Case, *_: object) -> dict[str, Any]:
        if cut and measured:
            raise KeyboardInterrupt
        measured.append(case.name)
        return result

    monkeypatch.setattr(cli, "run_case", run_case)
    monkeypatch.setattr(limits, "measure", lambda *_: H100)
    cut = True
    with pytest.raises(KeyboardInterrupt):
        cli.main(argv)
    assert list(json.loads(path.read_text())["operators"]) == ["pairs-mean"]
    cut = False
    cli.main([*argv, "--resume"])
    assert measured == ["pairs-mean", "info-nce"]
    written = json.loads(path.read_text())
    assert list(written["operators"]) == measured
    assert "--resume" not in written["command"]
    with pytest.raises(SystemExit, match=r"--resume: got .* with arguments .*, wanted"):
        cli.main([*argv, "--seconds", "1", "--resume"])


class WithoutGpu:
    """The calls that :func:`timing.on_cuda` makes, where there is no device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mode: int | str = 0
        self.captured: list[object] = []
        monkeypatch.setattr(timing, "_failed_capture", "")
        monkeypatch.setattr(timing, "_launched", lambda loss, sets: lambda number: timing.Sample(1e-4, 1e-4))
        monkeypatch.setattr(timing, "_capture", self.capture)
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: self.mode)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(self, "mode", mode))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def capture(self, loss: Any, *_: object) -> None:
        self.captured.append(loss)
        loss(torch.ones(1, requires_grad=True), capturing=True)


def test_what_makes_the_host_wait_is_not_captured(monkeypatch: pytest.MonkeyPatch):
    gpu = WithoutGpu(monkeypatch)

    def waits(x: torch.Tensor, capturing: bool = False) -> torch.Tensor:
        if gpu.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return x.sum()

    sets = [Inputs((torch.ones(1, requires_grad=True),))]
    assert timing.on_cuda(waits, sets)[1] == "launched: no graph, the host waits for the device"
    assert (gpu.captured, gpu.mode) == ([], 0)
    assert timing.on_cuda(lambda x, capturing=False: x.sum(), sets)[1] == "graph"


def test_after_a_capture_that_failed_nothing_is_captured(monkeypatch: pytest.MonkeyPatch):
    gpu = WithoutGpu(monkeypatch)

    def breaks(x: torch.Tensor, capturing: bool = False) -> torch.Tensor:
        return 1 / 0 if capturing else x.sum()

    sets = [Inputs((torch.ones(1, requires_grad=True),))]
    assert timing.on_cuda(breaks, sets)[1] == "launched: no graph, ZeroDivisionError"
    how = timing.on_cuda(lambda x, capturing=False: x.sum(), sets)[1]
    assert how == "launched: no graph after a failed capture, ZeroDivisionError"
    assert gpu.captured == [breaks]


def test_versions_count_what_passed_and_name_what_failed():
    report = """<testsuites><testsuite><testcase classname="a" name="x"/>
        <testcase classname="a" name="y"><failure/></testcase><testcase classname="a" name="z"><skipped/></testcase>
        </testsuite></testsuites>"""
    part = versions.read(report)
    assert part == {"passed": 1, "skipped": 1, "failed": ["a::y"]}
    entry = {"torch": "2.11", "triton": "3.6", "python": "3.12", "date": "2026-01-01T00", "parts": {"losses": part}}
    table = versions.markdown({"environments": {"oldest": entry, "other": {"left_out": "no Python", "date": ""}}})
    assert "| 2.11 | 3.6 | 3.12 | not run | 1, 1 failed |" in table


def test_the_oldest_torch_that_is_tried_is_the_oldest_that_installs():
    oldest = versions.ENVIRONMENTS["oldest"].torch.removesuffix(".0")
    assert f'"torch>={oldest}"' in (ROOT / "pyproject.toml").read_text()
    assert f"torch {oldest}, or newer" in (ROOT / "README.md").read_text()


def test_views_are_measured_against_plain_views_by_the_same_transforms():
    calls = {name: lambda x: x + torch.rand(len(x), 1, 1, 1) for name in "ab"}
    found = views.measure(FactorizedViews(calls, batched=True, finalize=torch.sigmoid), torch.rand(8, 1, 2, 2), 1, 0.0)
    assert found["rounds"] == 5
    assert all(found[name]["q1"] <= found[name]["median"] <= found[name]["q3"] for name in ("plain", "ours", "ratio"))
    document = machine.record("cpu") | {"command": "python", "cases": {"a": found | {"title": "two"}}}
    assert views.markdown(document).splitlines()[-1].startswith("| two | ")
