"""The figures in the prose of docs/paper.md, written again from the runs that are published beside it.

Each function of :data:`SECTIONS` returns the sentences, or parts of them, that its section must have. A figure that is
in none of them must be in :data:`OTHERS`, which says where it is from.
"""

import re
from functools import cache

import pytest

from tests.prose import WORDS, change_each_digit, find_problems, find_prose
from tests.published import DOCS, PAPER, Runs, find_means, find_range, find_reach, find_sections, find_tied

PAGE = (DOCS / "paper.md").read_text()
CHANCE = 0.1
ZNORM, MATRICES = "znorm", "znorm(min_ndim=2)"


def brief(number):
    """Return two digits."""
    return f"{float(f'{number:.2g}'):g}"


def enumerate_values(values):
    *first, last = values
    return f"{', '.join(first)} and {last}"


def points(values):
    """Return a mean difference in points, with its interval."""
    return (
        f"{100 * values.mean():.1f}",
        f"{100 * (values.mean() - find_reach(values)):.1f}".replace("-", "−"),
        (f"{100 * (values.mean() + find_reach(values)):.1f}"),
    )


def write_cifar_adam():
    runs = Runs("cifar10-resnet20-adam")
    part = {6: "a sixth"}[round(1 / runs.frame.epochs.max())]
    assert min(runs.p.values()) > 0.05
    assert f"{runs.differences[ZNORM].mean():.2f}" == "0.01"
    return [
        f"{runs.steps} steps of 64 images, {part} of an epoch",
        f"a difference of one point would take about {runs.seeds_needed(ZNORM)} seeds to see",
    ]


def write_cifar_sgd():
    runs = Runs("cifar10-resnet20-sgd")
    ahead = [runs.differences[method].mean() * 100 for method in ("gc", ZNORM, MATRICES)]
    plain = runs.selected["none"].validation
    needed = [runs.seeds_needed(method) for method in ("gc", ZNORM, MATRICES)]
    (times,) = {
        round(runs.rate(method) / runs.rate(of)) for of in (ZNORM, MATRICES) for method in ("none", "clip", "gc")
    }
    assert min(runs.p.values()) > 0.05
    assert not {0.003, 0.01} & set(runs.rates)
    return [
        f"{WORDS[len(runs.rates)]} rates from {runs.rates[0]:g} to {runs.rates[-1]:g}",
        f"ZNorm and gradient centralization are {min(ahead):.1f} to {max(ahead):.1f} points ahead of plain SGD, whose"
        f" {WORDS[runs.seeds]} seeds lie far apart at its best rate (validation: {plain.min():.3f} to"
        f" {plain.max():.3f}); {min(needed)} to {max(needed)} seeds would tell.",
        f"ZNorm's best rate is {times} times smaller than that of the others",
        f"plain SGD has {runs.test('none', 0.001)} at 0.001 and ZNorm {runs.test(ZNORM, 0.001)}; at 0.03 it is"
        f" {runs.test('none', 0.03)} against {runs.test(ZNORM, 0.03)}, or {runs.test(MATRICES, 0.03)} with"
        " `znorm(min_ndim=2)`. The rates 0.003 and 0.01 between these were not swept.",
    ]


def write_pcam_adam():
    runs = Runs("pcam-resnet18-adam")
    low = [method for method in runs.methods if runs.rate(method) == 0.0003]
    assert low == ["none", ZNORM]
    assert {runs.rate(method) for method in runs.methods} == {0.0003, 0.001, 0.003}
    tests = {method: 100 * of.test.mean() for method, of in runs.selected.items()}
    ahead = [value - tests[of] for method, value in tests.items() if method not in low for of in low]
    assert all(abs(values.mean()) < find_reach(values) for values in runs.differences.values())
    tied = find_tied(find_means(runs.frame, ZNORM))
    assert all(len(find_tied(find_means(runs.frame, method))) == 1 for method in runs.methods if method != ZNORM)
    at = [f"`{method}` {'has ' * (method == 'none')}{runs.test(method, 0.001)}" for method in runs.methods]
    return [
        f"{runs.steps} steps of 32 of the 8,000 training patches",
        f"The methods for which validation selects 0.001 or 0.003 are {min(ahead):.1f} to {max(ahead):.1f} points"
        " ahead of those with 0.0003, plain Adam and ZNorm",
        f"For `znorm`, {enumerate_values([f'{rate:g}' for rate in tied])} have the same validation accuracy,"
        f" {runs.validation(ZNORM, tied[0])}; of two such neighbors",
        f"At 0.001 for all, {enumerate_values(at)}.",
    ]


def write_pcam_sgd():
    runs = Runs("pcam-resnet18-sgd")
    tests = [of.test.mean() for of in runs.selected.values()]
    assert max(tests) - min(tests) < 0.01
    assert runs.rate("clip") == runs.rates[-1]
    assert runs.rate(MATRICES) == runs.rates[0]
    return [
        f"{WORDS[len(runs.rates)]} rates from {runs.rates[0]:g} to {runs.rates[-1]:g}",
        f"all {WORDS[len(runs.methods)]} are within a point.",
        f"next to it, at {runs.rates[1]:g}, its validation accuracy is {runs.validation(MATRICES, runs.rates[1])}"
        f" instead of {runs.validation(MATRICES, runs.rates[0])}.",
    ]


def write_lgg_adam():
    runs = Runs("lgg-resnet34-adam")
    values = runs.differences[MATRICES]
    assert values.mean() + find_reach(values) < 0
    assert runs.p[MATRICES] > 0.05
    return [
        f"{runs.steps} steps of 8 slices",
        f"ZNorm is {-100 * runs.differences[ZNORM].mean():.1f} points behind plain Adam here, at"
        f" {runs.rate(ZNORM) / runs.rate('none'):.2g} times its learning rate.",
        f"Holm's correction for {WORDS[len(runs.p)]} comparisons",
    ]


def write_lgg_sgd():
    runs = Runs("lgg-resnet34-sgd")
    curve = [float(runs.validation(ZNORM, rate)) for rate in runs.rates]
    low, *others = runs.rates
    flat = [enumerate_values([of("none", rate) for rate in others]) for of in (runs.validation, runs.test)]
    falls = [runs.test(ZNORM, rate) for rate in others]
    assert falls == sorted(falls, reverse=True)
    assert runs.rate("clip") == runs.rates[-1]
    seeds = enumerate_values([f"{value:.3f}" for value in runs.at("none", low).validation])
    return [
        f"the rates {enumerate_values([f'{rate:g}' for rate in runs.rates])}",
        f"From {low:g} to {runs.rates[-1]:g} the validation Dice of ZNorm stays between {min(curve):.3f} and"
        f" {max(curve):.3f}, and at {low:g} plain SGD has {runs.validation('none', low)}, the mean of {seeds}.",
        f"But from {others[0]:g} to {others[-1]:g} plain SGD is as flat: {flat[0]}, and {flat[1]} on the test split,"
        f" where ZNorm falls from {falls[0]} over {falls[1]} to {falls[2]}.",
        f"`znorm(min_ndim=2)` falls to {runs.validation(MATRICES, others[-1])} at {others[-1]:g}, on validation, with"
        f" {runs.at(MATRICES, others[-1]).validation.min():.3f} in one seed.",
        f"neither the low end of ZNorm's working range, below {low:g}, nor the high end of plain SGD's, above"
        f" {runs.rates[-1]:g}, was swept",
    ]


def write_rates():
    plain20, plain56, resnet20, resnet56 = (
        Runs(f"depth-{name}-sgd") for name in ("plain20", "plain56", "resnet20", "resnet56")
    )
    learning = (plain20, resnet20, resnet56)
    every = (*learning, plain56)
    (rates,) = {tuple(runs.rates) for runs in every}
    (steps,) = {runs.steps for runs in every}
    (rate,) = {runs.rate(method) for runs in learning for method in (ZNORM, MATRICES)}
    assert [runs.seeds for runs in every] == [3, 3, 2, 3]
    assert {status for runs in every for status in runs.frame.status} == {"finished"}
    assert rates.index(rate) == 1
    assert all(runs.factor(method)[1:] == (True, False) for runs in learning for method in (ZNORM, MATRICES))
    assert all(runs.factor("none")[1:] == (False, False) for runs in learning)
    wider = {of: [brief(runs.factor(of)[0] / runs.factor("none")[0]) for runs in learning] for of in (ZNORM, MATRICES)}
    factors = {of: [brief(runs.factor(of)[0]) for runs in learning] for of in ("gc", ZNORM)}
    assert [runs.factor("gc")[1:] for runs in learning] == [(False, True), (False, False), (False, False)]
    single = {
        of: [
            brief(high / low)
            for _, seed in plain20.frame.groupby("seed")
            for low, high, _ in [find_range(seed, of, CHANCE)]
        ]
        for of in ("none", ZNORM)
    }
    smaller = enumerate_values([f"{runs.rate('none') / rate:.0f}" for runs in learning])
    peaks = {method: max(find_means(plain56.frame, method)) for method in plain56.methods}
    ahead, low, high = points(resnet20.differences[MATRICES])
    return [
        f"{steps} steps of 32 images of 16 x 16 pixels, accuracy on 500 validation images, {WORDS[len(rates)]} rates"
        f" from {rates[0]:g} to {rates[-1]:g}, {WORDS[plain20.seeds]} seeds ({WORDS[resnet56.seeds]} for the residual"
        " network of 56 layers).",
        f"in the {WORDS[len(learning)]} networks that learn, in this order, at least {enumerate_values(wider[ZNORM])}"
        f" times as wide; with `min_ndim=2`, at least {enumerate_values(wider[MATRICES])} times.",
        f"each range of ZNorm is cut off at {rates[0]:g}, the low end of the sweep and one step below its best rate",
        f"in the plain network of 20 layers their factors are {enumerate_values(single['none'])} with plain SGD, and"
        f" at least {enumerate_values(single[ZNORM])} with ZNorm.",
        "**Gradient centralization is level with it in two of three networks**, at rates like those of plain SGD: its"
        f" factor is at least {factors['gc'][0]} against at least {factors[ZNORM][0]} in the plain network, where"
        f" {rates[-1]:g}, the highest rate of the sweep, still works, and {factors['gc'][2]} against at least"
        f" {factors[ZNORM][2]} in the residual one of 56 layers. In the residual network of 20 layers it is"
        f" {factors['gc'][1]} against at least {factors[ZNORM][1]}.",
        f"Its best one is {smaller} times smaller than that of plain SGD",
        f"It is the same in these networks, {rate:g}, where that of plain SGD falls from {plain20.rate('none'):g} to"
        f" {resnet56.rate('none'):g}.",
        f"`znorm(min_ndim=2)` is {ahead} points ahead of plain SGD in the residual network of 20 layers (95% interval"
        f" {low} to {high}, but p = {resnet20.p[MATRICES]:.2g} after Holm's correction), and"
        " {} ({} to {}) in the plain one".format(*points(plain20.differences[MATRICES])),
        f"gradient centralization is {points(resnet20.differences['gc'])[0]} and"
        f" {points(plain20.differences['gc'])[0]} points ahead. With 56 layers and skips,"
        f" {WORDS[resnet56.seeds]} seeds are",
        f"In {steps * 32:,} images of 16 x 16 pixels, a plain network of 56 layers learns nothing",
        f"at most {peaks[ZNORM]:.3f} with ZNorm and {peaks['none']:.3f} with plain SGD, at whatever rate, though every"
        f" layer gets a step of the same size; gradient centralization reaches {peaks['gc']:.3f}.",
    ]


SECTIONS = {
    "CIFAR-10, ResNet-20, Adam (small)": write_cifar_adam,
    "CIFAR-10, ResNet-20, SGD (small)": write_cifar_sgd,
    "PatchCamelyon, ResNet-18, Adam (small)": write_pcam_adam,
    "PatchCamelyon, ResNet-18, SGD (small)": write_pcam_sgd,
    "LGG MRI, U-Net on ResNet-34, Adam (small)": write_lgg_adam,
    "LGG MRI, U-Net on ResNet-34, SGD (small)": write_lgg_sgd,
    "Learning rates: which of them work": write_rates,
}
PRESET, CLOCK, RULE, AUDIT = (
    "examples/paper/run.py",
    "the clock",
    "examples/paper/rates.py",
    "a run that is not published",
)
OTHERS = {  # part of the text: where its figures are from
    "accuracy on 2,000 of the test images": PRESET,
    "with momentum 0.9": PRESET,
    "scaled to 48 x 48 pixels; accuracy on 800 test patches": PRESET,
    "800 validation patches": PRESET,
    "64 x 64 pixels (the slices with tumour: 974 to train on, 211 to select on and 186 to test on": PRESET,
    "(40 minutes)": CLOCK,
    "(about 37 minutes)": CLOCK,
    "(36 minutes)": CLOCK,
    "(Adam at 0.003, seed 0; with today's order of the images": AUDIT,
    "the sixteen test patients. A bootstrap over these patients gives 0.51 to 0.80": AUDIT,
    "at least half as far above guessing (0.1)": RULE,
    "nowhere 0.03 above guessing": RULE,
    "the command above now begins at 0.000001": PRESET,
}


@cache
def collect(title):
    """Return the prose of a section, the sentences from its data, and parts with figures from elsewhere."""
    prose = find_prose(find_sections(PAGE)[title])
    return prose, SECTIONS[title](), [part for part in OTHERS if part in prose]


def test_each_section_with_its_runs_is_looked_at():
    assert {title for title, text in find_sections(PAGE).items() if "Every run" in text} == set(SECTIONS)
    assert {part for title in SECTIONS for part in collect(title)[2]} == set(OTHERS)


@pytest.mark.parametrize("title", SECTIONS)
def test_figures_are_those_of_the_runs(title):
    assert find_problems(*collect(title)) == []


@pytest.mark.parametrize("title", SECTIONS)
def test_a_digit_that_is_changed_is_found(title):
    prose, sentences, others = collect(title)
    changed = list(change_each_digit(prose))
    assert len(changed) > 10
    assert [text for text in changed if not find_problems(text, sentences, others)] == []


def test_overview():
    prose = " ".join(find_sections(PAGE)["In short"].split())
    plain, resnet = Runs("cifar10-resnet20-sgd"), Runs("depth-resnet56-sgd")
    assert f"its best rate is {plain.rate('none') / plain.rate(ZNORM):.0f} times smaller |" in prose
    assert f"too close to call ({WORDS[resnet.seeds]} seeds);" in prose
    assert f"learns nothing in {32 * Runs('depth-plain56-sgd').steps:,} images, with it or without |" in prose
    frames = [Runs(path.name.removesuffix("-small.csv")).frame for path in PAPER.glob("*.csv")]
    versions = {(*frame.torch, *frame.lightning) for frame in frames}
    assert {re.match(r"\d+\.\d+", version)[0] for both in versions for version in both} == {"2.15", "2.6"}
    assert "torch 2.15, Lightning 2.6." in prose
