"""Scores of units of a language model trained on a real text, beside exact ablation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunecli.criteria.ablation import Ablation, Unit
from prunecli.criteria.base import Calibration, token_loss
from prunecli.criteria.enhanced import enhanced
from prunecli.criteria.gate_hessian import gate_obd
from prunecli.criteria.gradient import fisher, taylor
from prunecli.criteria.hessian import hap
from prunecli.criteria.obs import obs
from prunecli.criteria.random import random
from prunecli.criteria.ranks import spearman
from prunecli.models.loading import load_reference
from prunecli.surgery.tracing.trace import trace

_UNITS = 48


def _windows(data_root: Path) -> tuple[Tensor, Tensor, int]:
    """Tokens of the first characters of a text, and those that follow, shape (windows, 48)."""
    text = (data_root / "text" / "tinyshakespeare.txt").read_text()[:400_000]
    known = {character: number for number, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([known[character] for character in text])
    length = len(tokens) // 48 * 48
    return tokens[: length - 48].reshape(-1, 48), tokens[1 : length - 47].reshape(-1, 48), len(known)


def _trained(tokens: Tensor, following: Tensor, words: int) -> nn.Module:
    torch.manual_seed(0)
    model = load_reference("lm:lstm", num_classes=words, units=_UNITS, layers=1, embedding=24).model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for batch in torch.randperm(len(tokens))[: 250 * 32].split(32):
        optimizer.zero_grad()
        (token_loss(model(tokens[batch]), following[batch]) / len(batch)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@pytest.mark.slow
def test_scores_agree_with_ablation_of_a_trained_network(data_root: Path) -> None:
    tokens, following, words = _windows(data_root)
    model = _trained(tokens, following, words)
    held = [(tokens[-i - 32 : -i], following[-i - 32 : -i]) for i in range(32, 32 * 9, 32)]
    groups = [group for group in trace(model, tokens[:2]).groups if group.units == _UNITS]
    assert len(groups) == 1
    name = groups[0].name

    def calibration(**options: object) -> Calibration:
        return Calibration(batches=held, loss=token_loss, options=options)

    ablation = Ablation(model, groups, (Calibration(batches=held[::2], loss=token_loss), calibration()))
    assert ablation.baseline < 2.3  # in nats; every character alike has 4.1
    rises = torch.tensor([ablation.rises(Unit(name, unit))[1] for unit in range(_UNITS)])
    few = {"max_probes": 48}
    scores = {
        "fisher": fisher(model, groups, calibration()),
        "taylor": taylor(model, groups, calibration()),
        "gate-obd": gate_obd(model, groups, calibration(**few)),
        "hap": hap(model, groups, calibration(**few)),
        "obs": obs(model, groups, calibration()),
        "enhanced": enhanced(model, groups, calibration(**few)),
        "random": random(model, groups, calibration()),
    }
    agreement = {method: spearman(own[name], rises) for method, own in scores.items()}  # type: ignore[arg-type]
    assert min(agreement[method] for method in ("fisher", "taylor", "gate-obd")) > 0.7, agreement
    assert min(agreement[method] for method in ("hap", "obs", "enhanced")) > 0.3, agreement
    assert abs(agreement["random"]) < 0.4, agreement
