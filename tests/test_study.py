"06_study: records that survive, tables, and statistics against a second way to compute them."

import itertools
import json

import pytest
from scipy.stats import norm

from vidcourse.study import (
    collect,
    compare,
    comparison_table,
    conclude,
    dots,
    holm,
    least_p,
    permutation_p,
    read_records,
    seeds_needed,
    shipped_study,
    side,
    spread,
    study_table,
    values,
)


def run(recipe, seed):
    return {"x": seed + (100 if recipe == "b" else 0)}


def test_records_are_added_and_not_repeated(tmp_path):
    calls, file = [], tmp_path / "r.json"

    def counted(recipe, seed):
        calls.append((recipe, seed))
        return run(recipe, seed)

    first = collect(counted, ["a"], steps=3, seeds=(0, 1), results=file)
    again = collect(counted, ["a", "b"], steps=3, seeds=(1, 2), results=file)
    assert calls == [("a", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert again[:2] == first and again == read_records(file)
    assert collect(counted, ["a"], steps=4, results=file)[-1]["steps"] == 4
    assert {"seconds", "hardware"} <= set(first[0]) and list(tmp_path.iterdir()) == [file]


def test_a_run_that_fails_leaves_what_was_done(tmp_path):
    def failing(recipe, seed):
        if seed == 2:
            raise FloatingPointError("gone")
        return run(recipe, seed)

    with pytest.raises(FloatingPointError):
        collect(failing, ["a"], steps=5, seeds=(0, 1, 2), results=tmp_path / "r.json")
    assert [r["seed"] for r in read_records(tmp_path / "r.json")] == [0, 1]


@pytest.mark.parametrize("text", ["{", "3", '{"a": 1}', '[{"recipe": "a"}]', "[1]"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match="r.json"):
        collect(run, ["a"], steps=1, results=tmp_path / "r.json")
    assert (tmp_path / "r.json").read_text() == text


RECORDS = collect(run, ["all of it", "b", "c"], steps=3, seeds=(0, 1, 2))


def test_tables():
    text = study_table(RECORDS + [dict(RECORDS[0], steps=9)], {"x": "a long title of x"})
    assert "101.00 (100.00 to 102.00)" in text and "all of it, 9 iterations" in text
    assert max(map(len, text.splitlines())) < 80
    markdown = study_table(RECORDS, ["x"], style="markdown", digits=0).splitlines()
    assert (
        markdown[0] == "| recipe | runs | x |" and markdown[3] == "| b | 3 | 101 (100 to 102) |"
    )
    with pytest.raises(ValueError, match="text, markdown"):
        study_table(RECORDS, ["x"], style="html")


def test_missing_values_are_left_out_and_counted():
    records = [
        dict(recipe="a", seed=s, steps=1, x=x) for s, x in enumerate((1.0, float("nan")))
    ]
    records.append(dict(recipe="a", seed=2, steps=1))
    assert values(records, "a", "x") == [1.0] and values(records, "a", "y") == []
    assert spread([1.0, 2.0], runs=True) == "1.50 (1.00 to 2.00; 2 runs)"
    assert spread([]) == "-" and spread([1.0], runs=True) == "1.00 (1 run)"


def test_a_single_run_is_compared_by_its_place():
    assert permutation_p([4.0], [1.0, 2.0, 3.0]) == permutation_p([1, 2, 3], [4]) == 0.5
    assert permutation_p([0.0], range(1, 20)) == pytest.approx(0.1)
    assert permutation_p([2.0], [1.0, 2.0, 3.0]) == 1
    runs = [{"recipe": "all of it", "steps": 1, "x": x} for x in (1.0, 2.0, 3.0)]
    found = compare([*runs, {"recipe": "other", "steps": 1, "x": 4.0}], ["x"])
    assert [(c.side, c.p, c.runs) for c in found] == [("above", 0.5, (3, 1))]


@pytest.mark.parametrize("scale", [1.0, 40.0, 3000.0])
def test_labels_of_a_logarithmic_axis_stand_apart(scale):
    runs = [{"recipe": "a", "steps": 1, "x": x, "y": x} for x in (0.12, 0.2, 0.3 * scale)]
    figure = dots(runs, ["x", "y"], base="a", log=["x", "y"])
    figure.canvas.draw()
    axis = figure.axes[0]
    low, high = axis.get_xlim()
    boxes = [
        label.get_window_extent()
        for x, label in zip(axis.get_xticks(), axis.get_xticklabels())
        if low <= x <= high
    ]
    assert len(boxes) >= 2
    assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:])), [b.bounds for b in boxes]


def test_permutation_p_against_all_orders_by_hand():
    a, b = [1.0, 4.0, 2.5], [3.0, 5.0, 6.0, 1.5]
    gap = abs(sum(a) / 3 - sum(b) / 4)
    lows = highs = total = 0
    for chosen in itertools.combinations(range(7), 3):
        pool = a + b
        x = [pool[i] for i in chosen]
        y = [pool[i] for i in range(7) if i not in chosen]
        found = sum(x) / 3 - sum(y) / 4
        lows, highs, total = (
            lows + (found <= -gap + 1e-9),
            highs + (found >= gap - 1e-9),
            total + 1,
        )
    assert permutation_p(a, b) == pytest.approx(2 * min(lows, total) / total)
    assert permutation_p(b, a) == pytest.approx(permutation_p(a, b))


def test_least_p_and_how_many_seeds():
    assert least_p(3, 3) == pytest.approx(0.1) and permutation_p([1, 2, 3], [4, 5, 6]) == 0.1
    assert permutation_p([], [1.0]) == 1 == permutation_p([1.0], [2.0])
    for comparisons in (1, 15, 45):
        n = seeds_needed(comparisons)
        assert least_p(n, n) * comparisons <= 0.05 < least_p(n - 1, n - 1) * comparisons


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_sides():
    assert side([3, 4], [1, 2]) == "above" and side([0], [1, 2]) == "below"
    assert side([2, 4], [1, 2]) == "" == side([], [1])


def test_three_runs_show_nothing_and_seven_do():
    few = compare(RECORDS, ["x"])
    assert [(c.recipe, c.side, c.difference) for c in few] == [
        ("b", "above", 100),
        ("c", "", 0),
    ]
    assert few[0].adjusted == pytest.approx(0.2) and "None could be" in conclude(few)
    assert "+100.00 above" in comparison_table(few, ["x"])
    seven = collect(run, ["all of it", "b", "c"], steps=3, seeds=range(7))
    many = compare(seven, ["x"])
    assert [c.adjusted < 0.05 for c in many] == [True, False]
    assert "below 0.05 in 1: b, x" in conclude(many)
    assert "+100.00 above*" in comparison_table(many, ["x"])


def test_other_lengths_are_not_compared():
    longer = collect(run, ["b", "d"], steps=9, seeds=(0, 1, 2))
    assert [c.recipe for c in compare(RECORDS + longer, ["x"])] == ["b", "c"]
    with pytest.raises(ValueError, match="all of it"):
        compare(RECORDS, ["x"], base="nothing")


def test_a_study_of_nothing_is_seldom_fooled():
    fooled = 0
    for k in range(40):
        quantile = norm.ppf([((k * 7919 + i * 104729) % 9973 + 0.5) / 9973 for i in range(28)])
        records = [
            dict(recipe="all of it" if i < 7 else f"r{i // 7}", seed=i, steps=1, x=x)
            for i, x in enumerate(quantile)
        ]
        fooled += any(c.adjusted < 0.05 for c in compare(records, ["x"]))
    assert fooled <= 6


def test_dots_has_a_panel_for_each_column_and_a_dot_for_each_run():
    figure = dots(RECORDS, {"x": "the x (up)"}, log=["x"])
    (axis,) = figure.axes
    drawn = [len(line.get_xdata()) for line in axis.lines]
    assert axis.get_title() == "the x (up)" and drawn == [3, 3, 3]
    assert axis.get_xscale() == "log"


@pytest.mark.parametrize("system", ["mocogan", "v3gan", "navs", "layered"])
def test_shipped_records(system):
    records = shipped_study(system)
    assert records and json.dumps(records) and {"seconds", "hardware"} <= set(records[0])
    with pytest.raises(FileNotFoundError, match="no_such"):
        shipped_study("no_such")
