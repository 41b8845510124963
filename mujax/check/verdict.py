"""From slopes to a verdict: which tensor or forward scale is wrong, and by which power of the width."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mujax.check.coordinates import Measurements, Quantity, Slope, fit_slope
from mujax.check.findings import Finding, power, worst
from mujax.check.static import growth, initial_exponent, wanted
from mujax.parameterization import PARAMETERIZATIONS, is_scaling, named_leaves
from mujax.run import Run

# How far a slope may be off. The mildest bugs are off by 1/2; what a right model of width 32 to 256 shows
# after 10 steps is at most 0.21 (measured on mup, five optimizers, three seeds). Weights and activations at
# initialization are almost exact.
INITIAL_TOLERANCE = 0.2
TOLERANCE = 0.3
LOSS_TOLERANCE = 0.02  # relative

# Activation -> the forward scale in it, and the activations it is made of (of the same module, or of the model: /).
FORWARD_SCALES = {
    "attention_logits": ("attention scale", ("q", "k")),
    "logits": ("logits scale", ("final",)),
    "residual": ("residual scale", ("attention_out", "mlp_out", "/embedding")),
    "embedding": ("embedding scale", ()),
}


# Changes that may decline, up to this exponent, though all is right; a wrong scale shows at initialization too.
LARGEST_DECLINE = -0.6
HARMLESS_DECLINE = {
    "attention_logits": "at finite width q and k, which pass, line up less in larger models",
    "logits": "after few or small steps the initial readout, of size width^-1/2, has most of a part in their change",
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One tensor or activation: its exponents at initialization and at each horizon, measured and wanted."""

    name: str
    role: str
    initial: Slope | None
    wants_initial: float | None
    later: tuple[Slope | None, ...]
    wants_later: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """tensors, activations: a Line each; findings: of every part of the check."""

    tensors: tuple[Line, ...]
    activations: tuple[Line, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return worst(self.findings) != "fail"

    def level(self, subject: str) -> str:
        return worst(finding for finding in self.findings if finding.subject == subject)

    @property
    def culprits(self) -> tuple[str, ...]:
        """What failed, each once, in the order found; the loss only if nothing else explains it."""
        failed = dict.fromkeys(finding.subject for finding in self.findings if finding.level == "fail")
        return tuple(subject for subject in failed if subject != "loss" or len(failed) == 1)


def judge(runs: Mapping[int, Run], measured: Mapping[int, Measurements], earlier: Sequence[Finding]) -> Verdict:
    """The verdict.

    Args:
      runs: width -> a run (of any seed) of the table at hand.
      measured: width -> {Quantity: values [seeds]} of that table.
      earlier: findings of the static part and of the oracle.
    """
    widths = sorted(measured)
    first = measured[widths[0]]
    horizons = sorted({quantity.horizon for quantity in first if quantity.kind == "update"})

    def slope(kind: str, name: str, horizon: int = 0) -> Slope | None:
        return fit_slope(widths, [measured[width][Quantity(kind, name, horizon)] for width in widths])

    def is_zero(kind: str, name: str) -> bool:
        return not any(measured[width][Quantity(kind, name, horizon)].any() for width in widths for horizon in horizons)

    run, wide = runs[widths[0]], runs[widths[-1]]
    wide_metas = named_leaves(wide.metas)
    scalings = [named_leaves(runs[width].scalings, is_scaling) for width in widths]
    tensors, findings = [], list(earlier)
    outputs: dict[str, float] = {}  # output tensor -> how what it makes starts
    for name, meta in named_leaves(run.metas).items():
        grows = growth(meta, wide_metas[name], widths[-1] / widths[0])
        starts_as = initial_exponent(widths, [by_name[name] for by_name in scalings])
        want = wanted(meta, grows, run, starts_as)
        if meta.role == "output":
            outputs[name] = starts_as + grows.fan_in / 2  # a random sum over width
        is_drawn = meta.dist == "normal"
        later = tuple(slope("update", name, horizon) for horizon in horizons)
        initial = (slope("weight", name), want.init) if is_drawn else (None, None)
        line = Line(name, meta.role, *initial, later, want.update)
        tensors.append(line)
        own = [finding for finding in earlier if finding.subject == name]
        findings += _tensor_findings(line, run, own, is_zero("update", name))

    recorded = {quantity.name for quantity in first if quantity.kind == "activation"}
    readouts = [starts_as for name, starts_as in outputs.items() if f"{name}_logits" not in recorded]
    d_heads = [r.cfg.model.dims.get("head_dim", 1) for r in (run, wide)]
    heads_grow = d_heads[0] != d_heads[1]
    activations = []
    for name in sorted(recorded):
        later = tuple(slope("change", name, horizon) for horizon in horizons)
        wants_initial = _initial_activation(name, outputs, readouts, heads_grow)
        activations.append(Line(name, "", slope("activation", name), wants_initial, later, _change(name, run)))
    findings += _activation_findings(activations, run, findings)
    losses_WS = np.stack([measured[width][Quantity("loss", "loss", horizons[-1])] for width in widths])
    if not np.all(np.isfinite(losses_WS)):  # nothing else can be said of the training
        findings = list(earlier)
    findings += _loss_findings(widths, losses_WS)
    return Verdict(tuple(tensors), tuple(activations), tuple(findings))


def off(slope: Slope | None, wants: float | None, tolerance: float) -> float:
    """By how much a slope misses, 0 if within tolerance or if its interval reaches halfway into it."""
    if slope is None or wants is None:
        return 0.0
    deviation = slope.mean - wants
    certain = abs(deviation) - slope.half_width > tolerance / 2
    return deviation if abs(deviation) > tolerance and certain else 0.0


def _tensor_findings(line: Line, run: Run, earlier: Sequence[Finding], is_zero: bool) -> list[Finding]:
    """What training shows and the static part has not said: it read the table, this is what applies it."""
    if any(slope is None for slope in line.later) and not is_zero:
        text = "its update is zero or not finite at some widths and not at others"
        return [Finding(line.name, "fail", "coordinates", "update", text)]
    if is_zero:
        fix = "look at masks and stopped gradients"
        return [Finding(line.name, "fail", "coordinates", "update", "is never updated", fix)]
    findings = []
    failed = {finding.about for finding in earlier if finding.level == "fail"}
    benign = {finding.about: finding for finding in earlier if finding.level == "benign"}
    missing = off(line.initial, line.wants_initial, INITIAL_TOLERANCE)
    if missing and line.wants_initial is not None and not failed & {"role", "init"} and "init" not in benign:
        starts, wants = (power(x) for x in (line.wants_initial + missing, line.wants_initial))
        text = f"starts as {starts}, the limit wants {wants}, and the table has it right"
        findings.append(Finding(line.name, "fail", "coordinates", "init", text, f"initial size x {power(-missing)}"))
    missing = max((off(slope, line.wants_later, TOLERANCE) for slope in line.later), key=abs)
    if not missing or failed & {"role", "learning rate"} or "learning rate" in benign:
        return findings
    text = f"its update goes as {power(line.wants_later + missing)}, the limit wants {power(line.wants_later)}"
    fix = f"update x {power(-missing)}: the table has it right, what applies it (optimizer, mask, schedule) has not"
    if "eps" in benign and missing < 0:
        text = f"{text}; {benign['eps'].text.partition(';')[0]}"
        fix = f"{benign['eps'].fix} (eps = {run.cfg.optim.eps:g} is not small beside the gradient)"
    return [*findings, Finding(line.name, "fail", "coordinates", "update", text, fix)]


def _made_by(name: str) -> str:
    """The tensor that an activation is named after: `router_logits` after `router`, of the same module."""
    return name.removesuffix("_logits")


def _initial_activation(
    name: str, outputs: Mapping[str, float], readouts: Sequence[float], heads_grow: bool
) -> float | None:
    """As an output lets start what is named after it, and the readout, the output that nothing is named after, the
    logits; q.k / d_head as a random sum over d_head; of order 1 else.

    None for the logits of a tied embedding: a token's own is no random sum.
    """
    kind = name.rpartition("/")[2]
    if _made_by(name) in outputs:
        return outputs[_made_by(name)]
    if kind == "logits":
        return readouts[-1] if readouts else None
    return -0.5 if kind == "attention_logits" and heads_grow else 0.0


def _change(name: str, run: Run) -> float:
    """Of order 1, but of the embedding, which changes at the rate its table means."""
    meant = PARAMETERIZATIONS[run.cfg.parameterization.name].intends.get("embedding rate")
    return meant.exponent if meant and name.rpartition("/")[2] == "embedding" else 0.0


def _misses(line: Line) -> tuple[float, float]:
    """By how much an activation misses, at initialization and in its change.

    Growth counts at any horizon, decline at the last alone: before that a change still carries what
    initialization leaves, which vanishes with width.
    """
    changes = [off(slope, line.wants_later, TOLERANCE) for slope in line.later]
    change = max((*(miss for miss in changes if miss > 0), changes[-1]), key=abs)
    return off(line.initial, line.wants_initial, INITIAL_TOLERANCE), change


def _activation_findings(lines: Sequence[Line], run: Run, earlier: Sequence[Finding]) -> list[Finding]:
    """Forward scales whose activation misses though all that it is made of passes; else the activation itself.

    Nothing where a tensor has failed: then everything behind it may miss. Mend that first.
    """
    failed, metas = {finding.subject for finding in earlier if finding.level == "fail"}, named_leaves(run.metas)
    if failed & set(metas):
        return []
    misses = {line.name: miss for line in lines if any(miss := _misses(line))}
    findings, unexplained = [], []
    for name, (initial, change) in misses.items():
        module, _, kind = name.rpartition("/")
        miss = max(initial, change, key=abs)
        when = "starts" if abs(initial) >= abs(change) else "changes"
        text = f"{name} {when} as {power(miss)} relative to what the limit wants"
        declines = not initial and LARGEST_DECLINE <= change < 0
        if (own := metas.get(_made_by(name))) and own.role == "output" and declines:
            text = f"{text}; harmless: {HARMLESS_DECLINE['logits']}"
            findings.append(Finding(name, "benign", "coordinates", "", text))
            continue
        if kind not in FORWARD_SCALES:
            fix = "no tensor explains it: look at the operation that makes it"
            unexplained.append(Finding(name, "fail", "coordinates", "", text, fix))
            continue
        scale, made_of = FORWARD_SCALES[kind]
        if scale in failed or any(_absolute(module, part) in misses for part in made_of):
            continue
        if kind in HARMLESS_DECLINE and declines:
            text = f"{text}; harmless: {HARMLESS_DECLINE[kind]}"
            findings.append(Finding(scale, "benign", "coordinates", "", text))
        else:
            findings.append(Finding(scale, "fail", "coordinates", "", text, f"{scale} x {power(-miss)}"))
    explained = failed or any(finding.level == "fail" for finding in findings)
    return findings if explained else findings + unexplained


def _absolute(module: str, part: str) -> str:
    return part[1:] if part.startswith("/") else f"{module}/{part}".lstrip("/")


def _loss_findings(widths: Sequence[int], losses_WS: np.ndarray) -> list[Finding]:
    if not np.all(np.isfinite(losses_WS)):
        worse = [str(width) for width, losses in zip(widths, losses_WS, strict=True) if not np.all(np.isfinite(losses))]
        return [Finding("loss", "fail", "loss", "", f"diverged at width {', '.join(worse)}", "a smaller learning rate")]
    slope = fit_slope(widths, losses_WS)
    narrow, wide = losses_WS[0].mean(), losses_WS[-1].mean()
    if slope and slope.low > 0 and wide > narrow * (1 + LOSS_TOLERANCE):
        text = f"wider is worse: {narrow:.3f} at width {widths[0]}, {wide:.3f} at {widths[-1]}"
        return [Finding("loss", "fail", "loss", "", text)]
    return []
