"""Exponents of the resolved table compared with those that the maximal-update limit asks for.

No training shows a wrong attention exponent at one head size, a gain that learns too slowly, or a
decay whose timescale grows, but the numbers do. They are taken from `make_run` at several widths,
as for training, so a wrong resolver is found like a wrong table.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from mujax.check.findings import Finding, power
from mujax.errors import UserError
from mujax.parameterization import PARAMETERIZATIONS, Parameterization, Scaling
from mujax.parameterization.table import BASIC_ROLES
from mujax.params import ParamMeta, named_leaves
from mujax.training.run import Run, make_run

TOLERANCE = 0.02  # for exponents fitted to exact numbers; the mildest known bug is m^1/2
EXACT = 1e-4  # relative error of equal numbers, which are float32


@dataclasses.dataclass(frozen=True)
class Growth:
    """Exponents of fan_in and fan_out in the width."""

    fan_in: float
    fan_out: float


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Exponents in the width that keep every update maximal (2203.03466; 2310.17813, Condition 1).

    All are for the effective weight.

    init, update: of the root mean square, or of the spectral norm for orthogonalized updates.
    lr: in the optimizer's own unit.
    eps: of the weight's gradient.
    """

    init: float
    update: float
    lr: float
    eps: float


def growth(narrow: ParamMeta, wide: ParamMeta, width_ratio: float) -> Growth:
    def exponent(a: int, b: int) -> float:
        return math.log(b / a) / math.log(width_ratio)

    return Growth(exponent(narrow.fan_in, wide.fan_in), exponent(narrow.fan_out, wide.fan_out))


def wanted(meta: ParamMeta, grows: Growth, run: Run, initial: float) -> Wanted:
    """Returns the wanted exponents of a tensor.

    With fan_in and fan_out growing as n^i and n^o: a sum over fan_in aligned terms of the update
    must be of order 1, hence n^-i; a sum over random terms of the weight, hence n^-i/2, but n^-i
    for the readout, whose logits vanish. A gradient falls as the readout does, n^-o, or n^-o/2 in a
    table that means its initial logits to be of order 1.

    initial: the exponent that the weight really has, see initial_exponent, for updates that are
      relative to the weight.
    """
    optimizer = run.program.optimizer
    intended = PARAMETERIZATIONS[run.cfg.parameterization.name].intends.get("initial logits")
    is_readout = grows.fan_out == 0 and meta.role == "output"
    init = -grows.fan_in if is_readout else -grows.fan_in / 2
    update = -grows.fan_in
    gradient = 0.0 if is_readout else grows.fan_out * (intended.exponent if intended else -1.0)
    # the size of an update at learning rate 1
    lr = update - {0: initial, 1: 0.0, 2: gradient}[optimizer.gauge]
    if optimizer.orthogonalizes(meta):
        update = lr = (grows.fan_out - grows.fan_in) / 2
    return Wanted(init + 0.0, update + 0.0, lr + 0.0, gradient + 0.0)  # + 0.0 avoids minus zero


def initial_exponent(widths: Sequence[int], scalings: Sequence[Scaling]) -> float:
    """Returns the exponent of the effective weight's size; 0 for ones and zeros.

    For zeros, updates relative to the weight use a constant in its place.
    """
    sizes = [float(s.init * s.forward) for s in scalings]
    return fit_power(widths, sizes)[0] if all(sizes) else 0.0


ROLE_GROWTH = {  # role -> whether fan_in and fan_out grow with width; None if either may
    "input": (False, True),
    "hidden": (True, True),
    "output": (True, False),
    "vector": (False, None),
    "tied": (False, True),
    "kv": (True, None),
}


def static_findings(runs: Mapping[int, Run]) -> list[Finding]:
    """Returns findings from the resolved numbers of runs that differ in width alone."""
    widths = sorted(runs)
    narrow = runs[widths[0]]
    table = PARAMETERIZATIONS[narrow.cfg.parameterization.name]
    by_width = [named_leaves(runs[width].scalings) for width in widths]
    metas_by_width = [named_leaves(runs[width].metas) for width in widths]
    findings: list[Finding] = []
    for name, meta in metas_by_width[0].items():
        metas = [metas[name] for metas in metas_by_width]
        grows = growth(meta, metas[-1], widths[-1] / widths[0])
        scalings = [scalings[name] for scalings in by_width]
        # Under a wrong role every number is wrong, so they are not listed.
        findings += _role(name, meta, grows) or _tensor(
            name, metas, grows, narrow, widths, scalings
        )
    findings += _scales(table, runs)
    if table.relative:
        findings += _base_constants(narrow)
    return findings


def _role(name: str, meta: ParamMeta, grows: Growth) -> list[Finding]:
    for side, wants in zip(("fan_in", "fan_out"), ROLE_GROWTH[meta.role], strict=True):
        if wants is not None and (getattr(grows, side) > 0) != wants:
            fits = [
                role
                for role, sides in ROLE_GROWTH.items()
                if _fits(sides, grows) and role in BASIC_ROLES
            ]
            does = "grows" if not wants else "does not grow"
            text = f"declared {meta.role!r} by {meta.text!r}, but its {side} {does} with width"
            return [
                Finding(
                    name,
                    "fail",
                    "static",
                    "role",
                    text,
                    fix=f"declare it {' or '.join(map(repr, fits))}",
                )
            ]
    return []


def _fits(sides, grows: Growth) -> bool:
    pairs = zip(sides, (grows.fan_in, grows.fan_out), strict=True)
    return all(wants is None or (exponent > 0) == wants for wants, exponent in pairs)


def _tensor(name, metas, grows, run: Run, widths, scalings) -> list[Finding]:
    optimizer, meta = run.program.optimizer, metas[0]
    want = wanted(meta, grows, run, initial_exponent(widths, scalings))
    rates = [s.lr * s.forward**optimizer.gauge for s in scalings]
    sizes = {
        "init": ([s.init * s.forward for s in scalings], want.init),
        "learning rate": (rates, want.lr),
        "eps": ([s.eps / s.forward for s in scalings], want.eps),
    }
    if meta.dist != "normal":
        del sizes["init"]
    if "eps" not in optimizer.hps or optimizer.orthogonalizes(meta):
        del sizes["eps"]
    decay = [s.weight_decay for s in scalings]
    if float(run.hps.weight_decay) > 0 and any(decay):
        form = run.cfg.optim.decay_form
        if form == "decoupled" or form == "l2" and optimizer.gauge == 2:  # equal in SGD
            gauges = [optimizer.decay_gauge(at, s) for at, s in zip(metas, scalings, strict=True)]
            sizes["decay"] = (
                [s.lr * g * s.weight_decay for s, g in zip(scalings, gauges, strict=True)],
                0.0,
            )
        elif form == "l2":  # keeps its size relative to the gradient
            sizes["decay"] = (decay, want.eps - (want.init if meta.dist == "normal" else 0.0))
        else:
            sizes["decay"] = (decay, 0.0)

    findings = []
    for what, (values, target) in sizes.items():
        if what == "init" and not any(values):
            continue  # zero init
        if not all(value > 0 for value in values):
            findings.append(
                Finding(name, "fail", "static", what, f"{what} is zero at width {widths[0]}")
            )
            continue
        exponent, error = fit_power(widths, values)
        if error > EXACT:
            shown = ", ".join(f"{v:.4g} at {w}" for v, w in zip(values, widths, strict=True))
            text = f"{what} is no power of the width: {shown}"
            fix = "use the exact ratio of widths, not an integer division"
            findings.append(Finding(name, "fail", "static", what, text, fix))
        elif abs(exponent - target) > TOLERANCE:
            findings.append(_wrong_exponent(name, meta, run, what, exponent, target))
    return findings


def _wrong_exponent(name, meta: ParamMeta, run: Run, what: str, exponent, target) -> Finding:
    says = f"{what} goes as {power(exponent)}, the limit wants {power(target)}"
    intention = {
        "init": "initial logits" if meta.role == "output" else "",
        "learning rate": "embedding rate" if meta.role == "input" else "",
        "decay": "decay",
    }.get(what, "")
    meant = PARAMETERIZATIONS[run.cfg.parameterization.name].intends.get(intention)
    if meant and abs(exponent - meant.exponent) <= TOLERANCE:
        return Finding(name, "benign", "static", what, f"{says}; meant so: {meant.reason}")
    if what == "eps":
        return Finding(
            name, "benign", "static", what,
            f"{says}; too small to matter as long as updates keep their exponent",
            fix=f"eps x {power(target - exponent)}",
        )  # fmt: skip
    if what == "decay":
        how = (
            "beside the gradient, decay"
            if run.cfg.optim.decay_form == "l2"
            else "the timescale of decay"
        )
        says = f"{how} depends on width: {power(exponent)} where the limit wants {power(target)}"
    return Finding(name, "fail", "static", what, says, fix=f"{what} x {power(target - exponent)}")


def _scales(table: Parameterization, runs: Mapping[int, Run]) -> list[Finding]:
    """Returns findings on the forward scales.

    attention: 1/d_head if heads grow. logits: 1/m if tied. The others do not depend on width.
    """
    widths = sorted(runs)
    run = runs[widths[0]]
    is_tied = any(meta.role == "tied" for meta in named_leaves(run.metas).values())
    d_heads = [run.cfg.model.dims.get("head_dim", 1) for run in (runs[width] for width in widths)]
    findings = []
    for scale, sizes, target in (
        ("attention", d_heads, -1.0),
        ("residual", widths, 0.0),
        ("logits", widths, -1.0 if is_tied else 0.0),
        ("embedding", widths, 0.0),
    ):
        subject = f"{scale} scale"
        values = [float(getattr(runs[width].scales, scale)) for width in widths]
        if sizes[0] == sizes[-1]:  # heads have one size at every width
            rule = run.rules.attention
            exponent = rule.fan_in + rule.ratio_in
            if "head_dim" in run.cfg.model.dims and exponent != target:
                text = (
                    f"goes as d_head^{exponent:g}, a constant here: d_head is {sizes[0]} at every "
                    "width"
                )
                findings.append(
                    Finding(
                        subject, "benign", "static", "", text, fix="d_head^-1 if heads should grow"
                    )
                )
            continue
        exponent, error = fit_power(sizes, values)
        size = "d_head" if scale == "attention" else "width"
        if error > EXACT or abs(exponent - target) > TOLERANCE:
            text = f"goes as {size}^{exponent:.3g}, the limit wants {size}^{target:g}"
            symbol = f"({size} ratio)" if scale == "attention" else "m"
            fix = f"{scale} scale x {power(target - exponent).replace('m', symbol, 1)}"
            findings.append(Finding(subject, "fail", "static", "", text, fix))
    return findings


def _base_constants(run: Run) -> list[Finding]:
    """Returns findings where a relative table differs from sp at the base width.

    A learning rate tuned there would mean something else.
    """
    base, sp = (_at_base(run, name) for name in (run.cfg.parameterization.name, "sp"))
    if base is None or sp is None:
        return []
    pairs = {
        f"{name} scale": (getattr(base.scales, name), getattr(sp.scales, name))
        for name in base.scales._fields
    }
    ours, theirs = (named_leaves(r.scalings) for r in (base, sp))
    gauge = run.program.optimizer.gauge
    effective = {
        "init": lambda s: s.init * s.forward,
        "learning rate": lambda s: s.lr * s.forward**gauge,
        "eps": lambda s: s.eps / s.forward,
    }
    findings = []
    for name in ours:
        for what, of in effective.items():
            value, reference = of(ours[name]), of(theirs[name])
            if value and not math.isclose(value, reference, rel_tol=EXACT):
                text = f"{what} at the base width is {value:.4g}, in sp {reference:.4g}"
                findings.append(
                    Finding(
                        name, "fail", "static", what, text, fix=f"{what} x {reference / value:.4g}"
                    )
                )
    for subject, (value, reference) in pairs.items():
        if not math.isclose(value, reference, rel_tol=EXACT):
            text = (
                f"at the base width it is {value:.4g}, in sp {reference:.4g}: a base constant is "
                "missing"
            )
            findings.append(
                Finding(
                    subject, "fail", "static", "", text, fix=f"{subject} x {reference / value:.4g}"
                )
            )
    return findings


def _at_base(run: Run, table: str) -> Run | None:
    """Returns the run at the base sizes under a plain table; None if a tensor has no rule."""
    cfg = run.cfg
    plain = dataclasses.replace(cfg.parameterization, name=table, override=())
    try:
        return make_run(dataclasses.replace(cfg, model=cfg.base_model, parameterization=plain))
    except UserError:
        return None


def fit_power(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Returns (exponent, largest relative error) of the power law through positive values.

    sizes: distinct.
    """
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(values, float))
    exponent, constant = np.polyfit(x, y, 1)
    return float(exponent), float(np.max(np.abs(np.expm1(y - exponent * x - constant))))
